"""What keeping features takes, before it is done: from the UNet's own numbers of channels."""

from __future__ import annotations

from typing import Any


def numbers_per_place(unet: Any) -> tuple[float, ...]:
    """By branch, how many numbers a kept feature has for each place of the latent and each row: its channels over the
    square of how much smaller it is. For ldm's and sgm's UNets; empty where the blocks do not tell.

    A branch's feature and the skip connection of its last input block enter the first of its output blocks together.
    """
    try:
        below, above = list(unet.input_blocks), list(unet.output_blocks)
        found, smaller = [], 1
        for branch, block in enumerate(below):
            smaller *= 2 if any(_halves(layer) for layer in block) else 1
            skip = [layer.out_channels for layer in block if hasattr(layer, "out_channels")][-1]
            first = next(iter(above[len(above) - 1 - branch]))
            found.append((first.channels - skip) / smaller**2)
    except (AttributeError, IndexError, StopIteration, TypeError):
        return ()
    return tuple(found)


def _halves(layer: Any) -> bool:
    """A block that makes the latent smaller, or ldm's residual block that does so by the way."""
    return "Downsample" in (type(layer).__name__, type(getattr(layer, "h_upd", None)).__name__)
