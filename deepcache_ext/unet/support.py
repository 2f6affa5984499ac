"""Other extensions that skip parts of the same UNet: never both at once."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

CACHES = re.compile(r"(?:deep|tea|mag|easy|first_?block|fb)_?cache", re.IGNORECASE)
"""Names under which such extensions put marks and forwards on a UNet: `_deepcache_hooked` (aria1th's
sd-webui-deepcache-standalone), `_teacache_patched` (feffy380's sd-webui-teacache) and their like.
"""


def other_cache(unet: nn.Module) -> str | None:
    """The name that another extension's cache left on this UNet, if one is at work there."""
    for name, value in vars(unet).items():
        # Their marks stay behind as False when they are done.
        if CACHES.search(name) and value:
            return name
    for forward in (unet.__dict__.get("forward"), type(unet).forward):
        function: Any = getattr(forward, "__func__", forward)
        for name in (getattr(function, "__qualname__", ""), getattr(function, "__module__", "") or ""):
            if CACHES.search(name):
                return name
    return None
