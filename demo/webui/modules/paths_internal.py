"""Folders, by the names that extensions ask for."""

from __future__ import annotations

import os

modules_path = os.path.dirname(os.path.realpath(__file__))
script_path = os.path.dirname(modules_path)
data_path = script_path
extensions_dir = os.path.join(data_path, "extensions")
models_path = os.path.join(os.path.dirname(data_path), "out", "models")
"""`--models-dir` sets another."""
