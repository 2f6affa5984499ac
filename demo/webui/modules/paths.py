"""Folders, by the names that extensions ask for."""

from modules.paths_internal import data_path, extensions_dir, models_path, modules_path, script_path

__all__ = ["data_path", "extensions_dir", "models_path", "modules_path", "script_path"]
