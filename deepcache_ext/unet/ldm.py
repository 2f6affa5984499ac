"""The shadowed ladder of a UNet with `input_blocks`, `middle_block` and `output_blocks` (ldm, sgm and their kin).

`nn.Module` keeps children in `_modules` and finds them through `__getattr__`, which Python asks only when the
instance's `__dict__` has no such name. An entry there named `input_blocks` is therefore what `self.input_blocks`
finds inside any forward, while `state_dict()`, `named_modules()`, `.to()` and LoRA loaders go on seeing the real
children. Shadows stand for one call only; no forward and no block is replaced.

Terms: n blocks on each side; branch b (0 = shallowest) runs input blocks 0..b and the last b + 1 output blocks;
its *boundary* is the block whose output is the kept feature: output block n-2-b, or the middle block for b = n-1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .calls import Call
from .ladder import Arguments, CachedWalks, Walks
from .shadows import Noted, Observed, OwnBlocks, OwnStand, Shadow, Supplied
from .support import NAMES, check_ldm


class Ladder:
    """The ladder of ldm's and sgm's UNets. Raises `UnknownLayout` for a UNet that has no such ladder."""

    def __init__(self, unet: nn.Module) -> None:
        check_ldm(unet)
        self._unet = unet

    @property
    def depth(self) -> int:
        """Number of output blocks; branches go from 0 to depth - 1."""
        return len(self._real("output_blocks"))

    @property
    def put_on(self) -> object:
        """Nothing that `session.changes` does not see."""
        return None

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        return Call.of(args, kwargs)

    def arguments(self, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return args, kwargs

    def up_full(self, branches: Sequence[int], full_length: bool) -> Walks:
        """Prepare a full call that keeps the input of output block n-1-b for each b of the `branches`.

        With `full_length` the output shapes of all blocks that a cached call would skip are noted too.
        """
        walks = Walks()
        inputs, middle, outputs = self._blocks()
        shallowest, last = min(branches), len(outputs) - 2

        def place(position: str, block: Any) -> Any:
            return Observed(block, lambda output: walks.note(position, output))

        if full_length:
            inputs = [b if i <= shallowest else place(f"input {i}", b) for i, b in enumerate(inputs)]
            middle = place("middle", middle)
            outputs = [b if i > last - shallowest else place(f"output {i}", b) for i, b in enumerate(outputs)]
        for branch in branches:
            if branch > last:
                middle = Observed(middle, walks.keep(branch))
            else:
                outputs[last - branch] = Observed(outputs[last - branch], walks.keep(branch))
        self._put(*_noted(branches, inputs, middle, walks), outputs)
        return walks

    def up_cached(
        self,
        branch: int,
        features: Sequence[torch.Tensor],
        full: Walks,
        full_length: bool = False,
        renewed: Sequence[int] = (),
    ) -> CachedWalks:
        """Prepare a call that runs the live blocks of `branch` alone, on `features` (one for each walk), and keeps
        the features of the `renewed` branches.

        With `full_length` the lists keep their length and skipped entries return zeros of the shape that `full`, a
        call under the same foreign forward, noted; else the lists hold just the live blocks.
        """
        walks = CachedWalks(branch=branch, given=features, full=full)
        inputs, middle, outputs = self._blocks()
        last, met = len(outputs) - 2, (branch, *renewed)
        boundary = last - branch
        for one in renewed:
            outputs[last - one] = Observed(outputs[last - one], walks.keep(one))
        if not full_length:
            live, stand_in = _noted(met, inputs[: branch + 1], Supplied(middle, walks.supply), walks)
            self._put(live, stand_in, outputs[boundary + 1 :])
            return walks

        def zeros(position: str) -> Callable[[], torch.Tensor]:
            noted = full.shapes.get(position, [])
            shapes = iter(noted)

            def supply() -> torch.Tensor:
                if not noted:  # the full call left this block out: not the same walk
                    walks.strayed = True
                    return features[-1]
                # Real zeros: whoever adds a residual to the block's output in place may do so here.
                return next(shapes, noted[-1]).zeros()

            return supply

        inputs = [b if i <= branch else Supplied(b, zeros(f"input {i}")) for i, b in enumerate(inputs)]
        middle = Supplied(middle, walks.supply if boundary < 0 else zeros("middle"))
        outputs = [
            b if i > boundary else Supplied(b, walks.supply if i == boundary else zeros(f"output {i}"))
            for i, b in enumerate(outputs)
        ]
        self._put(*_noted(met, inputs, middle, walks), outputs)
        return walks

    def skipped(self, branch: int) -> list[nn.Module]:
        """The blocks that a cached call at `branch` leaves out."""
        inputs, middle, outputs = self._blocks()
        return [*inputs[branch + 1 :], middle, *outputs[: len(outputs) - 1 - branch]]

    def take_down(self) -> dict[str, Any]:
        """Remove our shadows, whatever the state; returns them, for `put_back`."""
        found = {}
        for name in NAMES:
            if isinstance(self._unet.__dict__.get(name), Shadow):
                found[name] = self._unet.__dict__.pop(name)
        return found

    def put_back(self, shadows: dict[str, Any]) -> None:
        """Undo a `take_down`, for the outer call after a nested one."""
        self._unet.__dict__.update(shadows)

    def _real(self, name: str) -> Any:
        return self._unet._modules[name]

    def _blocks(self) -> tuple[list[Any], Any, list[Any]]:
        """The real blocks as they are now: other extensions may have exchanged some."""
        return list(self._real("input_blocks")), self._real("middle_block"), list(self._real("output_blocks"))

    def _put(self, inputs: list[Any] | None, middle: Any, outputs: list[Any] | None) -> None:
        shadows = self._unet.__dict__
        if inputs is not None:
            shadows["input_blocks"] = OwnBlocks(inputs, self._real("input_blocks"))
        if isinstance(middle, Shadow):  # the real one stays where it is
            shadows["middle_block"] = OwnStand(self._real("middle_block"), middle)
        if outputs is not None:
            shadows["output_blocks"] = OwnBlocks(outputs, self._real("output_blocks"))


def _noted(branches: Sequence[int], inputs: list[Any], middle: Any, walks: Walks) -> tuple[list[Any], Any]:
    """The input blocks and the middle block of a call, with a look at what comes out of the first b + 1 for each branch
    b. What the next one is given is looked at, since hosts' patches act between the blocks.
    """
    inputs = list(inputs)
    for branch in branches:
        if branch + 1 < len(inputs):
            inputs[branch + 1] = Noted(inputs[branch + 1], walks.meet(branch))
        else:
            middle = Noted(middle, walks.meet(branch))
    return inputs, middle


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
