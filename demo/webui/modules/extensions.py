"""The installed extensions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Extension:
    """A folder with scripts/, javascript/, style.css, install.py, preload.py: each of them optional."""

    name: str
    path: str
    enabled: bool = True
    is_builtin: bool = False


extensions: list[Extension] = []


def active() -> list[Extension]:
    """The enabled ones, in order of loading."""
    return [extension for extension in extensions if extension.enabled]
