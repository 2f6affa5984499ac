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
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from .calls import Call
from .shadows import Blocks, Noted, Observed, Shadow, Supplied
from .support import other_cache

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a UNet's forward is called with: positional and named."""

NAMES = ("input_blocks", "middle_block", "output_blocks")


class UnknownLayout(ValueError):
    """The UNet cannot be cached; `str()` says why, in words for a user."""


@dataclass(frozen=True)
class Shape:
    """What a skipped block's output looked like at the full call."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


@dataclass
class Walks:
    """What one call did on the ladder. A forward usually walks it once; ControlNet's reference_only twice.

    `features`: by branch, clones of the boundary's output, one for each walk, as far as the call ran it. `count`: how
    many walks it kept something of. `shapes`: for each skipped position, the output shapes in order of the walks (full
    calls under a forward that is not the class's own).
    `supplied`: how often a cached call asked for its feature; `strayed`: it ran a block that the full call did not.
    `sizes`: by branch, (height, width) of what came out of its live input blocks, one for each walk; `expected_sizes`:
    what it was at the full call, set on a cached one. Where they differ, the kept feature has no place (see `fitting`).
    `ran`: which other networks ran in the call, in order; `expected`: which ones should have, if that is known;
    `controls`: notes of what they did (see `control_ladder`).
    """

    features: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    count: int = 0
    shapes: dict[str, list[Shape]] = field(default_factory=dict)
    supplied: int = 0
    strayed: bool = False
    sizes: dict[int, list[torch.Size | None]] = field(default_factory=dict)
    expected_sizes: Mapping[int, list[torch.Size | None]] | None = None
    ran: list[Any] = field(default_factory=list)
    expected: list[Any] | None = None
    controls: list[Any] = field(default_factory=list)
    failed: Exception | None = None

    @property
    def astray(self) -> bool:
        """Whether a cached call did something else than the full call that it goes back to."""
        return (
            self.strayed
            or (self.expected is not None and self.ran != self.expected)
            or any(self.sizes[branch] != sizes for branch, sizes in self._expected().items())
        )

    def _expected(self) -> dict[int, list[torch.Size | None]]:
        """The expected sizes at the branches of which this call could know."""
        return {branch: sizes for branch, sizes in (self.expected_sizes or {}).items() if branch in self.sizes}

    def meet(self, branch: int) -> Callable[[Any], None]:
        """Looks at what comes out of the live input blocks of `branch`, (rows, channels, height, width)."""
        sizes = self.sizes.setdefault(branch, [])
        return lambda h: sizes.append(h.shape[2:] if isinstance(h, torch.Tensor) else None)

    def fitting(self, branch: int, feature: torch.Tensor) -> torch.Tensor:
        """The kept feature; or where another size was met than at the full call, zeros that the forward can go on
        with, since the call will run again in full.
        """
        met, expected = self.sizes.get(branch), self._expected().get(branch)
        if not met or expected is None or expected[len(met) - 1 : len(met)] == met[-1:]:
            return feature
        size = met[-1]
        return feature if size is None else feature.new_zeros((*feature.shape[:2], *size))

    def keep(self, branch: int) -> Callable[[torch.Tensor], None]:
        """Keeps what it is given as the feature of `branch`."""

        def keep(feature: torch.Tensor) -> None:
            # A clone, since FreeU and its like go on to write into the tensor.
            try:
                kept = self.features.setdefault(branch, [])
                kept.append(feature.detach().clone())
                self.count = max(self.count, len(kept))
            except Exception as error:  # out of memory here must not end the host's picture
                self.failed = error

        return keep

    def note(self, position: str, output: torch.Tensor) -> None:
        self.shapes.setdefault(position, []).append(Shape(output.shape, output.dtype, output.device))


def own_forward(unet: nn.Module) -> Callable[..., Any] | None:
    """The forward that another extension put on this very instance, or None where the class's own runs.

    ControlNet and others "restore" by leaving the class's forward, bound, in the instance's `__dict__`. The hooks of
    accelerate and diffusers that move weights wrap whatever is there and call it with all its arguments: what counts
    is the forward inside, which stays the same when a host puts such hooks up anew.
    """
    forward: Any = unet.__dict__.get("forward")
    while _defined_in(forward) in WEIGHT_MOVERS:
        forward = getattr(forward, "__wrapped__", None)
    if getattr(forward, "__self__", None) is unet and getattr(forward, "__func__", None) is type(unet).forward:
        return None
    return forward


WEIGHT_MOVERS = ("accelerate.hooks", "diffusers.hooks.hooks")


def _defined_in(function: Any) -> str:
    """The module whose code a function, or a partial of one, runs; wrappers disguise their `__module__`."""
    return getattr(getattr(function, "func", function), "__globals__", {}).get("__name__", "")


class AnyLadder(Protocol):
    """What a session asks of a ladder, whatever the UNet's layout. All but `call` and `arguments` is about one call,
    which begins with one of `up_full` and `up_cached` and ends with `take_down`.
    """

    @property
    def depth(self) -> int:
        """Number of branches; they go from 0 to depth - 1."""

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """What distinguishes the call with these arguments. Timesteps, and what skipped blocks alone would use or a
        host renews at each evaluation (a control network's residuals), are no part of it.
        """

    def arguments(self, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """What a cached call is to be run with; never changes what it is given."""

    def up_full(self, branches: Sequence[int], full_length: bool) -> Walks:
        """Prepare a full call that keeps the input of the first live output block of each of the `branches`."""

    def up_cached(
        self, branch: int, features: Sequence[torch.Tensor], full: Walks | None, renewed: Sequence[int] = ()
    ) -> Walks:
        """Prepare a call that runs the live blocks of `branch` alone, on `features` (one for each walk), and keeps
        the features of the `renewed` branches, which are less deep. `full`: what the full call did that the features
        go back to, where a foreign forward runs.
        """

    def take_down(self) -> dict[str, Any]:
        """Remove our shadows, whatever the state; returns them, for `put_back`."""

    def put_back(self, shadows: dict[str, Any]) -> None:
        """Undo a `take_down`, for the outer call after a nested one."""


class Ladder:
    """The ladder of ldm's and sgm's UNets. Raises `UnknownLayout` for a UNet that has no such ladder."""

    def __init__(self, unet: nn.Module) -> None:
        check_layout(unet)
        self._unet = unet

    @property
    def depth(self) -> int:
        """Number of output blocks; branches go from 0 to depth - 1."""
        return len(self._real("output_blocks"))

    @property
    def is_up(self) -> bool:
        return any(isinstance(self._unet.__dict__.get(name), Shadow) for name in NAMES)

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
        self, branch: int, features: Sequence[torch.Tensor], full: Walks | None, renewed: Sequence[int] = ()
    ) -> Walks:
        """Prepare a call that runs the live blocks of `branch` alone, on `features` (one for each walk), and keeps
        the features of the `renewed` branches.

        With `full`, what a full call under the same foreign forward noted, the lists keep their length and
        skipped entries return zeros of the noted shape; else the lists hold just the live blocks.
        """
        walks = Walks()
        inputs, middle, outputs = self._blocks()
        last, met = len(outputs) - 2, (branch, *renewed)
        boundary = last - branch
        for one in renewed:
            outputs[last - one] = Observed(outputs[last - one], walks.keep(one))

        def feature() -> torch.Tensor:
            walks.supplied += 1
            return walks.fitting(branch, features[min(walks.supplied, len(features)) - 1])

        if full is None:
            live, stand_in = _noted(met, inputs[: branch + 1], Supplied(middle, feature), walks)
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
        middle = Supplied(middle, feature if boundary < 0 else zeros("middle"))
        outputs = [
            b if i > boundary else Supplied(b, feature if i == boundary else zeros(f"output {i}"))
            for i, b in enumerate(outputs)
        ]
        self._put(*_noted(met, inputs, middle, walks), outputs)
        return walks

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
            shadows["input_blocks"] = Blocks(inputs, self._real("input_blocks"))
        if isinstance(middle, Shadow):  # the real one stays where it is
            shadows["middle_block"] = middle
        if outputs is not None:
            shadows["output_blocks"] = Blocks(outputs, self._real("output_blocks"))


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


def check_layout(unet: Any) -> None:
    """Raise `UnknownLayout` where the ladder cannot be shadowed; the message is for the user."""
    if isinstance(unet, torch.jit.ScriptModule):
        raise UnknownLayout("the UNet is a TorchScript module")
    if not isinstance(unet, nn.Module):
        raise UnknownLayout("the model has no UNet module")
    if hasattr(unet, "_orig_mod") or getattr(unet, "_compiled_call_impl", None) is not None:
        raise UnknownLayout("the UNet is compiled")
    other = other_cache(unet)
    if other is not None:
        raise UnknownLayout(f"another extension caches this UNet already ({other}); use one of the two")
    children = unet._modules
    if any(children.get(name) is None for name in NAMES):
        raise UnknownLayout("the model is not a UNet with input, middle and output blocks")
    below, above = children["input_blocks"], children["output_blocks"]
    if not isinstance(below, nn.ModuleList) or not isinstance(above, nn.ModuleList):
        raise UnknownLayout("the UNet's blocks are not in lists")
    inputs, outputs = len(below), len(above)
    if inputs != outputs or not outputs:
        raise UnknownLayout(f"the UNet has {inputs} input and {outputs} output blocks")
    if any(name in unet.__dict__ and not isinstance(unet.__dict__[name], Shadow) for name in NAMES):
        raise UnknownLayout("another extension shadows the UNet's blocks")
