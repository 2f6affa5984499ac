"""Which adapter serves the WebUI that has loaded this script."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules import paths

from ..calibrate.store import Profiles
from ..plan.preview import PassAhead
from .a1111 import preview
from .a1111.adapter import A1111
from .forge import Forge

try:
    from .sdnext import SDNext
except ImportError:  # `modules.sd_models_compile` is SD.Next's alone
    SDNext = None  # type: ignore[assignment,misc]


def adapter(disabled: bool = False) -> A1111:
    """The host's adapter; `disabled`: the kill switch. Profiles lie beside the host's checkpoints."""
    profiles = Profiles(Path(paths.models_path) / "DeepCache" if hasattr(paths, "models_path") else None)
    if SDNext is not None:
        return SDNext(disabled, profiles)
    return (Forge if _has("modules_forge") else A1111)(disabled, profiles)


def foresee(values: Mapping[str, Any]) -> list[PassAhead]:
    """The passes that a page's controls or a request ask for; none where the host does not tell before a run."""
    return [] if SDNext is not None else preview.foresee(values)


def pastes_updates_only() -> bool:
    """Whether what a function reads out of a pasted infotext must be Gradio's update: SD.Next looks for a plain
    value's name among those that the user wants left alone, and fails over a function, the whole paste with it.
    """
    return SDNext is not None


def allow_in_control_tab(scripts: Any, title: str) -> None:
    """SD.Next shows a script in its Control tab only when its title is in a list; other hosts have no such list."""
    listed = getattr(scripts, "control_extensions", None)
    if isinstance(listed, list) and title not in listed:
        listed.append(title)


def _has(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # loaded, without a spec
        return True
