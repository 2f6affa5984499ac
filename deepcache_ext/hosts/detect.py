"""Which WebUI has loaded this script, by the names of its modules, and its adapter.

The first kind that has one of its marks is the host. Read in the code of A1111 1.10.1, Forge 2025-06, reForge 2026-03,
Forge Classic 2025-02, Forge Neo 2.22, ersatzForge 2026-08 and SD.Next 2026-07: none of them has a mark of a kind that
stands before its own in the list, and SD.Next has none of A1111's.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure.store import Profiles
from .inert import Inert

if TYPE_CHECKING:
    from .adapter import Adapter

log = logging.getLogger("deepcache")


@dataclass(frozen=True)
class Kind:
    """Hosts that one adapter serves. `marks`: modules of theirs alone, any of which tells them; `adapter`: its module,
    below this package, and its class. `pastes_updates_only`, `hides_ticks`: as the adapter has them.
    """

    name: str
    marks: tuple[str, ...]
    adapter: tuple[str, str]
    pastes_updates_only: bool = False
    hides_ticks: bool = False


KINDS = (
    Kind(
        "SD.Next",
        (
            "modules.processing_diffusers",
            "modules.sd_samplers_diffusers",
            "modules.sd_models_compile",
            "modules.scripts_manager",
        ),
        (".sdnext", "SDNext"),
        pastes_updates_only=True,
        hides_ticks=True,
    ),
    Kind("Forge", ("modules_forge",), (".forge", "Forge")),
    Kind(
        "A1111",
        ("modules.sd_samplers_kdiffusion", "modules.sd_hijack_unet", "modules.launch_utils"),
        (".a1111.adapter", "A1111"),
    ),
)

FORGES = {"ersatz": "ersatzForge", "^classic": "Forge Classic", "^neo": "Forge Neo", r"^1\.": "reForge"}
"""By what `modules_forge.forge_version.version` says; Forge's own begins with 2."""


def adapter() -> Adapter | Inert:
    """The host's adapter, or `Inert`, never another host's; the log says which host it is. Profiles lie beside the
    host's checkpoints.
    """
    profiles = Profiles(_models())
    kind = next((kind for kind in KINDS if any(map(_has, kind.marks))), None)
    if kind is None:
        marks = ", ".join(mark for kind in KINDS for mark in kind.marks)
        return _inert(f"this WebUI is none that is known (it has none of {marks})", profiles)
    module, name = kind.adapter
    try:
        made: Adapter = getattr(importlib.import_module(module, __package__), name)(profiles=profiles)
    except ImportError as error:
        why = f"this {kind.name} lacks what is needed of it: {error}"
        return _inert(why, profiles, kind.pastes_updates_only, kind.hides_ticks)
    log.info("this is %s", _name(kind))
    return made


def allow_in_control_tab(scripts: Any, title: str) -> None:
    """SD.Next shows a script in its Control tab only when its title is in a list; other hosts have no such list."""
    listed = getattr(scripts, "control_extensions", None)
    if isinstance(listed, list) and title not in listed:
        listed.append(title)


def say_whose_title_is_ours(scripts: Any, title: str, ours: type) -> None:
    """The API finds a script by its title: another extension's of the same title takes our place, or we its.

    To be asked when all scripts are loaded. `scripts`: the host's module of that name; `ours`: our script's class.
    """
    for data in getattr(scripts, "scripts_data", ()):
        found = getattr(data, "script_class", None)
        try:
            # Asked of the class: to make another extension's script is the host's to do.
            same = found is not ours and str(found.title(None)).lower() == title.lower()  # type: ignore[union-attr]
        except Exception:  # a title that needs more, or a class that is no script
            continue
        if same:
            log.warning("another extension has the title %s too: %s; only one is found by it", title, data.path)


def _inert(why: str, profiles: Profiles, pastes_updates_only: bool = False, hides_ticks: bool = False) -> Inert:
    log.warning("not active: %s", why)
    return Inert(why, profiles, pastes_updates_only, hides_ticks)


def _name(kind: Kind) -> str:
    try:
        version = str(importlib.import_module("modules_forge.forge_version").version) if kind.name == "Forge" else ""
    except (ImportError, AttributeError):
        version = ""
    found = (name for pattern, name in FORGES.items() if re.search(pattern, version))
    return f"{next(found, kind.name)} ({version})" if version else kind.name


def _models() -> Path | None:
    try:
        return Path(importlib.import_module("modules.paths").models_path) / "DeepCache"
    except (ImportError, AttributeError):
        return None


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # loaded, without a spec
        return True
    except ImportError:  # nor is there what it would be in
        return False
