#!/bin/sh
# Prepares .venv: chooses an interpreter, then tools/setup_venv.py does the rest.
# PYTHON=... chooses the interpreter by hand.
set -eu
cd "$(dirname "$0")/.."

# Really run it: a pyenv shim may exist and fail, and Debian's python3 may lack venv and ensurepip.
suitable='import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))'
for candidate in ${PYTHON:-python3.11 python3.10 python3}; do
    if "$candidate" -c "$suitable" >/dev/null 2>&1; then
        exec "$candidate" tools/setup_venv.py
    fi
done

echo "No suitable Python: need 3.10 or 3.11 with its venv module; tried: ${PYTHON:-python3.11 python3.10 python3}." >&2
echo "Install one (on Debian and Ubuntu also the package python3-venv), or name it: make PYTHON=/path/to/python3.11 ..." >&2
exit 1
