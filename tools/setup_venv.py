"""Builds .venv from requirements/, once. Run it through tools/setup.sh, which chooses the interpreter.

A stamp inside .venv holds a hash of everything the installation depends on. It is written last, so an
interrupted set-up has none, and the next run starts over.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one set-up at a time is the user's own care
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint() -> str:
    digest = hashlib.sha256(f"{platform.python_version()} {platform.machine()}\n".encode())
    for path in [Path(__file__), *sorted(REQUIREMENTS.glob("*.txt"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def is_ready(wanted: str) -> bool:
    # PYTHON is a link: it counts as missing when the interpreter it was made from is gone.
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted


def pip_install(*args: str) -> None:
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    # -qq: errors only. close_fds=False hands the lock down: should we be killed, it lasts until pip ends too.
    subprocess.run([*pip, "-qq", *args], check=True, stdin=subprocess.DEVNULL, close_fds=False)


def build(wanted: str) -> None:
    version = platform.python_version()
    print(f"Setting up .venv with Python {version} (once; takes minutes and 2 GB or more) ...", flush=True)
    STAMP.unlink(missing_ok=True)
    venv.create(VENV, clear=True, with_pip=True)
    apart = sorted(REQUIREMENTS.glob("gradio-*.txt"))
    special = [*apart, REQUIREMENTS / "constraints.txt", REQUIREMENTS / "no-deps.txt"]
    lists = sorted(p for p in REQUIREMENTS.glob("*.txt") if p not in special)
    pip_install("-c", str(REQUIREMENTS / "constraints.txt"), *(a for p in lists for a in ("-r", str(p))))
    pip_install("--no-deps", "-r", str(REQUIREMENTS / "no-deps.txt"))
    for path in apart:  # other hosts' Gradio, for a process that has this folder first on its path
        pip_install("--no-deps", "--target", str(VENV / path.stem), "-r", str(path))
    # Written aside and renamed, so that the stamp is whole or not there.
    partial = STAMP.with_suffix(".partial")
    partial.write_text(wanted)
    os.replace(partial, STAMP)


def main() -> int:
    wanted = fingerprint()
    if fcntl is not None:
        # One set-up at a time in a checkout; the lock goes with the process, however it ends.
        lock = os.open(REQUIREMENTS, os.O_RDONLY)
        os.set_inheritable(lock, True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    if is_ready(wanted):
        return 0
    try:
        build(wanted)
    except subprocess.CalledProcessError:
        print("Setting up .venv failed: see pip's message above.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the next run starts the set-up over.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
