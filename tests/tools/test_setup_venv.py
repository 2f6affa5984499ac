"""tools/setup_venv.py can be loaded, and knows where Python is, on Windows too."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parents[2] / "tools" / "setup_venv.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_venv_again", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_fcntl_it_sets_up_without_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows: its import fails
    module, built = loaded(), []
    monkeypatch.setattr(module, "is_ready", lambda wanted: False)
    monkeypatch.setattr(module, "build", built.append)
    assert module.main() == 0 and built == [module.fingerprint()]


def test_the_interpreter_is_where_venv_puts_it() -> None:
    assert loaded().PYTHON.parent.name == ("Scripts" if os.name == "nt" else "bin")
