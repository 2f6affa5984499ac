"""LoRAs that a host adds to a layer's weight whenever the layer runs, with no trace in the weight itself.

Facts of the hosts: Forge keeps them in a layer's `forge_online_loras`, by the name of the weight lists of
`[strength, value, strength of the model, offset, function]`; Forge Neo in its `weight_function` and `bias_function`,
lists of objects with such lists or tuples in `patch`, or in `patches[key]`. Extensions move strengths in mid-run, in
place.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from torch import nn

LISTS = ("weight_function", "bias_function")
NAMES = frozenset({"forge_online_loras", *LISTS})


def with_online(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Those layers to which something is added."""
    # The first question is the cheap one; Forge Neo leaves empty lists on all layers.
    told = [layer for layer in layers if not NAMES.isdisjoint(layer.__dict__)]
    return [layer for layer in told if any(layer.__dict__.get(name) for name in NAMES)]


def strengths(layer: nn.Module) -> Hashable:
    """What is added to this layer now, and how strongly; equal as long as nothing changes."""
    own = layer.__dict__
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
