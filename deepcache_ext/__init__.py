"""DeepCache for Stable Diffusion WebUIs: the whole UNet at some evaluations, a shallow part at the others.

Method: Ma, Fang, Wang, "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858.

The way of the data: `settings` -> `plan` -> `session` (which shadows blocks by `unet`) -> `report`. `python` and
`hosts` drive it, `interface` shows it. For Python programs: `DeepCache` and `DeepCacheSDHelper`, loaded when they are
asked for, so that a WebUI loads nothing of `python` on their account.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measure.trial import NotMeasured
    from .python.deepcache import DeepCache
    from .python.sdhelper import DeepCacheSDHelper
    from .settings.fields import SettingsError

__all__ = ["DeepCache", "DeepCacheSDHelper", "NotMeasured", "SettingsError"]

__version__ = "0.1.0"

_HOMES = {
    "DeepCache": ".python.deepcache",
    "DeepCacheSDHelper": ".python.sdhelper",
    "NotMeasured": ".measure.trial",
    "SettingsError": ".settings.fields",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
