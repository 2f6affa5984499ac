"""The library versions of a host other than A1111: a folder in .venv, put first on the path of a new process."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

from demo.webui.hosts import HOSTS


def begin_again_with_those_of(host: str, program: str = "demo") -> None:
    """Return where this process has the host's Gradio; else become a process that has it, with the same arguments."""
    wanted = HOSTS[host].pins["gradio"]
    if version("gradio") == wanted:
        return
    folder = Path(sys.prefix) / f"gradio-{wanted}"
    if not folder.is_dir():
        sys.exit(f"Gradio {wanted} is not in {folder}: `make setup` installs it")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    if os.environ.get("DEEPCACHE_DEMO_PATH") == os.environ.get("PYTHONPATH", ""):
        sys.exit(f"{folder} does not hold Gradio {wanted}: `make distclean` and `make setup` make it anew")
    again = [sys.executable, "-m", program, *sys.argv[1:]]
    sys.stdout.flush()
    os.execve(sys.executable, again, {**os.environ, "PYTHONPATH": path, "DEEPCACHE_DEMO_PATH": path})
