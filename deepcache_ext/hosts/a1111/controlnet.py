"""ControlNet (Mikubill's extension, 1.1.4xx) on A1111: which of its units act on a UNet.

Facts of the extension: its `UnetHook.hook` puts a forward on the UNet's instance that closes over the hook object
(`outer`); the hook holds one `ControlParams` for each unit in `control_params`. A unit's `guidance_stopped` is renewed
at each `on_cfg_denoiser` from its guidance start and end, for every kind of unit. Anything found to be otherwise means:
no units known, so every control network runs whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from torch import nn

from ...unet.controlnet import ControlUnit
from ...unet.support import own_forward, plain_function

FAR = 3
"""How many functions deep the hook object is looked for: wrappers of other extensions may lie around the forward."""

STATE = ("guidance_stopped", "weight", "soft_injection", "cfg_injection", "advanced_weighting")
"""What of a unit decides how it acts, and may change from one evaluation to the next."""


def control_units(unet: nn.Module) -> list[ControlUnit]:
    """The units behind the forward that stands on this UNet."""
    forward = own_forward(unet)
    if forward is None:
        return []
    for held in _held_by(forward, FAR):
        params = getattr(held, "__dict__", {}).get("control_params")
        if isinstance(params, (list, tuple)) and params:
            return [_unit(param) for param in params]
    return []


def _unit(param: Any) -> ControlUnit:
    model = getattr(param, "control_model", None)
    state = tuple(_plain(getattr(param, name, None)) for name in STATE)
    return ControlUnit(model if isinstance(model, nn.Module) else None, (id(model), *state))


def _plain(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return tuple((str(key), _plain(item)) for key, item in value.items())
    return value if isinstance(value, (bool, int, float, str)) or value is None else id(value)


def _held_by(function: Any, far: int) -> Iterator[Any]:
    """What a function closes over, nearest first; functions among it are looked into in their turn."""
    inner = []
    for cell in getattr(plain_function(function), "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield held
        if callable(held) and not isinstance(held, (type, nn.Module)):
            inner.append(held)
    if far > 1:
        for held in inner:
            yield from _held_by(held, far - 1)
