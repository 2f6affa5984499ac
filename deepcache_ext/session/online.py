"""LoRAs that a host adds to a layer's weight whenever the layer runs, with no trace in the weight itself.

Facts of the hosts: Forge keeps them in a layer's `forge_online_loras`, by the name of the weight lists of
`[strength, value, strength of the model, offset, function]`; Forge Neo in its `weight_function` and `bias_function`,
lists of objects with such lists or tuples in `patch`, or in `patches[key]`. Extensions move strengths in mid-run, in
place.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import repeat
from typing import Any

from torch import nn

LISTS = ("weight_function", "bias_function")
NAMES = ("forge_online_loras", *LISTS)


class Online:
    """What is added to some layers whenever they run."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._own = [layer.__dict__ for layer in layers]
        self.look()

    def look(self) -> None:
        """Look for those to which something is added now. Forge Neo leaves empty lists on all layers."""
        found = [list(map(dict.get, self._own, repeat(name))) for name in NAMES]
        self._told = []
        if any(map(any, found)):
            self._told = [own for own in self._own if any(map(own.get, NAMES))]

    def strengths(self) -> Hashable:
        """What is added now, and how strongly; equal as long as nothing changes."""
        return tuple(map(_strengths, self._told))


def _strengths(own: dict[str, Any]) -> Hashable:
    added = [tuple(map(_patch, patches)) for patches in (own.get("forge_online_loras") or {}).values()]
    return tuple(added), tuple(_function(function) for name in LISTS for function in own.get(name) or ())


def _function(function: Any) -> Hashable:
    patches = getattr(function, "patch", None)
    if patches is None:
        by_key = getattr(function, "patches", None)
        patches = by_key.get(getattr(function, "key", None)) if isinstance(by_key, dict) else None
    return id(function), tuple(map(_patch, patches)) if isinstance(patches, (list, tuple)) else None


def _patch(patch: Any) -> Hashable:
    """Numbers by their value, all else by what object it is."""
    parts = patch if isinstance(patch, (list, tuple)) else (patch,)
    return tuple(part if isinstance(part, (int, float)) else id(part) for part in parts)
