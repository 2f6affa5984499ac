"""What the host does with an extension before loading its scripts: preload.py and install.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from modules import cmd_args, errors, extensions, paths, paths_internal, shared_cmd_options


def load_module(path: Path) -> object:
    """Execute a file as a module under its own name, without entering it in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(path.name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(arguments: Sequence[str], install: bool = True) -> None:
    """Run every extension's preload and, if wanted, its installer; then parse the command line."""
    for extension in extensions.active():
        preload = Path(extension.path) / "preload.py"
        if preload.exists():
            try:
                load_module(preload).preload(cmd_args.parser)  # type: ignore[attr-defined]
            except Exception:
                errors.report(f"Error running preload() for {preload}", exc_info=True)
    vars(shared_cmd_options.cmd_opts).clear()
    cmd_args.parser.parse_args(list(arguments), namespace=shared_cmd_options.cmd_opts)
    if shared_cmd_options.cmd_opts.models_dir:
        paths_internal.models_path = paths.models_path = shared_cmd_options.cmd_opts.models_dir
    if install:
        for extension in extensions.active():
            _run_installer(Path(extension.path))


def _run_installer(folder: Path) -> None:
    installer = folder / "install.py"
    if not installer.exists():
        return
    webui = str(Path(__file__).resolve().parents[1])
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([webui, os.environ.get("PYTHONPATH", "")]))
    ran = subprocess.run([sys.executable, installer.name], cwd=folder, env=env, capture_output=True, text=True)
    if ran.stdout.strip():
        print(ran.stdout.strip())
    if ran.returncode:
        errors.report(f"Error running install.py for extension {folder}.\n{ran.stderr}")
