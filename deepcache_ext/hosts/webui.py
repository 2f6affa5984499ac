"""Which adapter serves the WebUI that has loaded this script."""

from __future__ import annotations

import importlib.util

from .a1111 import A1111
from .forge import Forge


def adapter(disabled: bool = False) -> A1111:
    """The host's adapter; `disabled`: the kill switch."""
    return (Forge if _has("modules_forge") else A1111)(disabled=disabled)


def _has(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # loaded, without a spec
        return True
