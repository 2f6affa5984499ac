"""What parts of a call cost, in shares of a full one: counted as `deepcache_ext.plan.cost` counts its own.

FLOPs of the real ldm and sgm UNets at 512 and 1024 pixels, attention included, two rows. A laboratory network with 12
output blocks is taken for SD1.5, one with 9 for SDXL, as for the extension's own plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import unets
from deepcache_ext.plan.cost import USUAL_DEPTH


@dataclass(frozen=True)
class Shares:
    """`stem`: the first convolution. `led`: the first two input blocks, that convolution and the first with residual
    and attention layers. `modulated`: the first layers of that block's residual part. `last`: the last layer.
    `self_attention`, `cross_attention`: all of these, their projections included.
    """

    stem: float
    led: float
    modulated: float
    last: float
    self_attention: float
    cross_attention: float


SHARES = {
    12: Shares(0.0001, 0.0671, 0.0094, 0.0001, 0.2162, 0.04),
    9: Shares(0.0001, 0.009, 0.0045, 0.0001, 0.2501, 0.082),
}
"""By the number of output blocks."""

LAYOUTS = {12: ("sd15", 64), 9: ("sdxl", 128)}
"""What they are counted on: the layout and the side of its latents."""


def of(depth: int) -> Shares:
    """Of a UNet with so many output blocks; one of another depth is taken for SD1.5."""
    return SHARES.get(depth, SHARES[USUAL_DEPTH])


def counted(depth: int) -> Shares:
    """The shares, counted anew."""
    layout, size = LAYOUTS[depth]
    unet, given = unets.on_meta(layout), unets.inputs(layout, 2, size, device="meta")
    emb, context = unets.embedding(unet, given), given["context"]
    whole = _flops(lambda: unets.full(unet, given))
    stem = unet.input_blocks[0](given["x"], emb, context)
    block = unet.input_blocks[1]
    found = {
        "stem": _flops(lambda: unet.input_blocks[0](given["x"], emb, context)),
        "led": _flops(lambda: block(unet.input_blocks[0](given["x"], emb, context), emb, context)),
        "modulated": _flops(lambda: block[0].in_layers(stem)),
        "last": _flops(lambda: unet.out(stem)),
    }
    for name, kind in (("self_attention", "attn1"), ("cross_attention", "attn2")):
        found[name] = whole - _flops_without(unet, kind, lambda: unets.full(unet, given))
    return Shares(**{name: round(flops / whole, 4) for name, flops in found.items()})


def _flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def _flops_without(unet: Any, kind: str, run: Callable[[], Any]) -> int:
    """With the layers of that name giving back what they are given."""
    layers = [layer for name, layer in unet.named_modules() if name.endswith(f".{kind}")]
    for layer in layers:
        layer.forward = lambda x, *_, **__: x
    try:
        return _flops(run)
    finally:
        for layer in layers:
            del layer.forward
