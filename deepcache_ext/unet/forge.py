"""The shadowed ladder of the UNets of Forge, reForge and Forge Classic: ldm's layout, called by another protocol.

Facts of the three forwards: `transformer_options["block"] = (side, id)` is counted while going through the lists, and
every transformer raises `transformer_options["transformer_index"]`: patches are keyed by both. Control residuals are
popped from the ends of `control["input" | "middle" | "output"]`, one for each block. Forge and Classic run block
modifiers before and after each block; Forge calls a block, reForge and Classic go through its layers.

A cached call runs on copies of both: what is counted in the short lists reads as in a full run, and each live block
pops the residual that it would pop there. All that comes after the boundary's block runs as in a full call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .calls import Call
from .ladder import Arguments, CachedWalks, Walks
from .ldm import Ladder
from .neighbours import names_of_functions, origin
from .shadows import Noted
from .support import own_forward

PARAMETERS = ("x", "timesteps", "context", "y", "control", "transformer_options")
"""Of the forwards, in their order; whatever else is named goes through."""

RENEWED = frozenset(
    {
        "sigmas",
        "sample_sigmas",
        "cond_mark",
        "cond_indices",
        "uncond_indices",
        "uuids",
        "original_shape",
        "activations_shape",
        "transformer_index",
        "block",
        "block_index",
        "n_heads",
        "dim_head",
    }
)
"""Options that a host renews at each call, follow from others, or were left behind by an earlier call."""


class ForgeLadder(Ladder):
    """The ladder of one of the family's UNets. Raises `UnknownLayout`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._options: Shifted | None = None

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """What the call's arguments say, residuals by their shapes alone: a control network renews them."""
        named = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
        control, options = named.pop("control", None), named.pop("transformer_options", None)
        x, passing = named.pop("x", None), (named.pop("timesteps", None), control)
        others: list[tuple[str, Any]] = [(name, named[name]) for name in sorted(named)]
        others.append(("control", _shapes(control)))
        if not isinstance(options, dict):
            return replace(Call.of_named(x, others, passing), whole="a call without transformer_options")
        kept = sorted(str(name) for name in options if name not in RENEWED)
        others += [(f"option {name}", options[name]) for name in kept if name in options]
        functions = tuple(names_of_functions([options[name] for name in kept if name in options]))
        marks = options.get("cond_or_uncond")
        both = {0, 1} <= set(marks) if isinstance(marks, (list, tuple)) else None
        call = Call.of_named(x, others, passing)
        return replace(call, functions=functions, whole=self._whole(options), has_both=both)

    def _whole(self, options: Mapping[str, Any]) -> str:
        forward, inner = own_forward(self._unet), options.get("block_inner_modifiers")
        if forward is not None:
            return origin(forward)
        # Where layers are gone through, ours would be modified as if it were one of the block's.
        return ", ".join(names_of_functions(inner)) or "block_inner_modifiers" if inner else ""

    def arguments(self, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The call's arguments with residuals and options of its own; the host's stay as they are."""
        first = self.depth - 1 - branch
        given = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
        self._options = Shifted(given["transformer_options"], first, self._skipped_transformers(branch))
        own = {"transformer_options": self._options, "control": trimmed(given.get("control"), first)}
        args = tuple(own.get(name, value) for name, value in zip(PARAMETERS, args, strict=False)) + args[6:]
        return args, {name: own.get(name, value) for name, value in kwargs.items()}

    def up_cached(
        self,
        branch: int,
        features: Sequence[torch.Tensor],
        full: Walks,
        full_length: bool = False,
        renewed: Sequence[int] = (),
    ) -> CachedWalks:
        walks = super().up_cached(branch, features, full, full_length, renewed)
        options, self._options = self._options, None
        if options is None:
            return walks
        # Astray, until the forward is seen to count in the options that it was given.
        walks.strayed, options.walks = True, walks
        self._put(None, Noted(self._unet.__dict__["middle_block"], lambda _: options.pass_by()), None)
        return walks

    def _skipped_transformers(self, branch: int) -> int:
        inputs, middle, outputs = self._blocks()
        skipped = [*inputs[branch + 1 :], middle, *outputs[: self.depth - 1 - branch]]
        return sum(hasattr(layer, "transformer_blocks") for block in skipped for layer in block)


class Shifted(dict[str, Any]):
    """`transformer_options` of a cached call. Its forward counts output blocks from 0; here they read as in a full
    run, where `first` comes first. While the middle block's stand-in is at work, it is the boundary's turn.
    """

    def __init__(self, options: Mapping[str, Any], first: int, transformers: int) -> None:
        super().__init__(options)
        self.walks: CachedWalks | None = None
        self._first, self._transformers = first, transformers
        self._standing_in = False
        modifiers = options.get("block_modifiers")
        if modifiers and first:
            super().__setitem__("block_modifiers", [self._modifier(modifier) for modifier in modifiers])

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "block":
            value = self._in_full(*value)
        super().__setitem__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)

    def pass_by(self) -> None:
        """The stand-in takes the skipped blocks' turn: their transformers count as if they had run."""
        self["transformer_index"] = self.get("transformer_index", 0) + self._transformers

    def _in_full(self, side: str, place: int) -> tuple[str, int]:
        self._standing_in = side == "middle" and self._first > 0
        if self._standing_in:
            return "output", self._first - 1
        if side == "output" and place == 0 and self.walks is not None:
            self.walks.strayed = False
        return side, place + self._first if side == "output" else place

    def _modifier(self, modifier: Any) -> Any:
        def modify(h: torch.Tensor, when: str, options: Any) -> Any:
            # What would be modified before the boundary's block is not here: only its output is.
            return h if self._standing_in and when == "before" else modifier(h, when, options)

        return modify


def trimmed(control: Any, first: int) -> Any:
    """The residuals with which each live block pops what it would pop in a full run, which has `first` output blocks
    more, and the middle's. New lists of the same tensors; what is no such mapping is left as it is.
    """
    if not isinstance(control, Mapping):
        return control
    own = {name: list(values) if isinstance(values, (list, tuple)) else values for name, values in control.items()}
    outputs = own.get("output")
    if isinstance(outputs, list):
        own["output"] = outputs[: max(0, len(outputs) - first)]
    if first and isinstance(own.get("middle"), list):
        own["middle"] = []
    return own


def _shapes(control: Any) -> Any:
    """Where there are residuals, and of what shape."""
    if not isinstance(control, Mapping):
        return control
    return {
        str(name): tuple(tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in values)
        if isinstance(values, (list, tuple))
        else values
        for name, values in control.items()
    }
