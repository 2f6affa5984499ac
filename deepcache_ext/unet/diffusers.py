"""The shadowed ladder of diffusers' UNets: `conv_in`, `down_blocks`, `mid_block`, `up_blocks`, found by these names.

As in ldm.py a shadow is an entry in an instance's `__dict__`, here on the UNet and, where a branch ends inside a
block, on that block: its lists of layers are then shadowed by shorter ones. Skip connections are counted from the
input: 0 is the output of `conv_in`, then comes one for each layer of a down block and one for its downsampler. Branch
b runs what the skips 0..b need and the up layers that take them. That is DeepCacheSDHelper's meaning: block
b // (L + 1), layer b % (L + 1), for L layers per block (it writes 3 for L + 1, which is right for L = 2).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .calls import Call, Same
from .compiled import inner
from .ladder import Arguments, CachedWalks, Walks
from .shadows import Blocks, Cut, First, Noted, Observed, Supplied
from .support import UnknownLayout, check_diffusers, layer_lists, own_forward

CONTROL, MIDDLE, ADAPTER = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
"""What a ControlNet or a T2I-Adapter adds to the UNet, new at each evaluation."""

MISSING: Any = object()


@dataclass(frozen=True)
class Span:
    """The live part of a branch: `down` whole down blocks and `below` layers (no downsampler) of the next one; the up
    blocks from `up` on, of the first of them the layers from `above` on.
    """

    down: int
    below: int
    up: int
    above: int


class Processors:
    """The attention processors of a UNet and their scales, which a pipeline or a callback may change in mid-run.

    Which attentions there are is looked up once; an attention that is exchanged counts as changed weights.
    """

    def __init__(self, unet: nn.Module) -> None:
        # `set_attn_processor` puts a plain object into the instance's dict, a module (IP-Adapter's) among its modules.
        self._owners = [
            (module.__dict__, module._modules)
            for module in unet.modules()
            if "processor" in module.__dict__ or "processor" in module._modules
        ]
        self.now: tuple[Any, ...] = ()
        """Those of the last call."""
        self._scaled: list[dict[str, Any]] = []
        self.state()

    def state(self) -> Hashable:
        """Equal where the same processors act with the same scales; reads no tensor."""
        now = tuple([plain.get("processor") or modules.get("processor") for plain, modules in self._owners])
        if now != self.now:
            self.now = now
            self._scaled = [vars(processor) for processor in now if "scale" in getattr(processor, "__dict__", ())]
        return (now, tuple([_scale(held.get("scale")) for held in self._scaled]))


def _scale(value: Any) -> Hashable:
    """A scale, or a list of scales (of IP-Adapters, of their images), as it is now."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_scale, value))
    return value if value is None or isinstance(value, (bool, int, float)) else Same(value)


class DiffusersLadder:
    """The ladder of diffusers' UNet2DModel, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel and
    UNetSpatioTemporalConditionModel. Raises `UnknownLayout` for a UNet that has no such ladder.

    Lists are always short: a `forward` that is not the class's own (hooks that move weights aside, see `own_forward`)
    is refused when the call begins, by `UnknownLayout`.
    """

    def __init__(self, unet: nn.Module) -> None:
        check_diffusers(unet)
        self._unet = unet = inner(unet)
        self._processors = Processors(unet)
        self._parameters = tuple(inspect.signature(type(unet).forward).parameters)[1:]
        self._shadows: list[tuple[nn.Module, str, Any]] = []
        layers = sum(len(block.resnets) for block in self._blocks("up_blocks"))
        self._spans = [self._span(branch) for branch in range(layers)]

    @property
    def depth(self) -> int:
        """Number of layers on the way up; branches go from 0 to depth - 1."""
        return len(self._spans)

    @property
    def put_on(self) -> object:
        """The attention processors at the last call: another object when any was exchanged."""
        return self._processors.now

    # Arguments ----------------------------------------------------------------------------------------------

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Whether there are residuals of a control network, and whether they are all zero (so a pipeline gives them
        outside a ControlNet's guidance range), is part of a call; what else they hold is not. A strength that moves
        between two values, and one control network of several that ends, are taken like any change of the picture in
        mid-run: what is kept is never older than the plan's last full evaluation. The middle's residual stands for
        all where there is one, else the first of the list.
        """
        named = self._named(args, kwargs)
        x = named.pop("sample", None)
        timestep = named.pop("timestep", None)
        residuals = {name: named.pop(name, None) for name in (MIDDLE, CONTROL, ADAPTER)}
        # Not the very element of a list: how long that lives tells where a loop ends (`driver.Loop`).
        timestep = timestep.detach() if isinstance(timestep, torch.Tensor) else timestep
        passing = (timestep, *residuals.values())
        for name, given in residuals.items():
            first = given[0] if isinstance(given, (list, tuple)) and given else given
            if name == CONTROL and residuals[MIDDLE] is not None:
                first = given is not None or None
            # A tensor without dimensions: compared with the conditioning, so that a GPU is not waited for here.
            named[name] = (first != 0).any() if isinstance(first, torch.Tensor) else None if first is None else True
        call = Call.of_named(x, sorted(named.items()), passing)
        return replace(call, state=self._processors.state())

    def arguments(self, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Without the residuals that belong to skipped blocks. The kept feature already holds the middle's, so that
        becomes a plain 0: left out, the others would no longer count as a ControlNet's.
        """
        named = self._named(args, kwargs)
        control, middle, adapter = (named.get(name) for name in (CONTROL, MIDDLE, ADAPTER))
        changes: dict[str, Any] = {}
        if adapter is not None:
            changes[ADAPTER] = self._trimmed_adapter(branch, adapter)
        if middle is not None:
            changes[MIDDLE] = 0
        if control is not None:
            # Without a middle, and with no list of its own, this is a T2I-Adapter's (deprecated, but understood).
            is_adapter = middle is None and adapter is None and ADAPTER in self._parameters
            changes[CONTROL] = self._trimmed_adapter(branch, control) if is_adapter else tuple(control)[: branch + 1]
        if not changes:
            return args, kwargs
        places = self._parameters
        return (
            tuple(changes.get(places[i], value) if i < len(places) else value for i, value in enumerate(args)),
            {name: changes.get(name, value) for name, value in kwargs.items()},
        )

    def _trimmed_adapter(self, branch: int, residuals: Sequence[Any]) -> list[Any]:
        """One residual for each live down block. It is added after the last layer where the block has attention, else
        after the downsampler, so of the block where the branch ends it is left out unless all its layers run.
        """
        span, blocks = self._spans[branch], self._blocks("down_blocks")
        ends_in = blocks[span.down] if span.below else None
        last_layer_runs = (
            ends_in is not None
            and span.below == len(ends_in.resnets)
            and bool(getattr(ends_in, "has_cross_attention", False))
        )
        return list(residuals)[: span.down + last_layer_runs]

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        named = dict(zip(self._parameters, args, strict=False))
        named.update((str(place), value) for place, value in enumerate(args) if place >= len(self._parameters))
        return {**named, **kwargs}

    # One call -----------------------------------------------------------------------------------------------

    def up_full(self, branches: Sequence[int], full_length: bool) -> Walks:
        """Prepare a full call that keeps what enters the first live layer on the way up of each of the `branches`: with
        the middle's residual and before anything (FreeU) writes into it.
        """
        self._check_forwards(branches)
        walks, blocks = Walks(f"full, keeping {[*branches]}"), self._blocks("up_blocks")
        for place, block in enumerate(blocks):
            for name, entries in self._keeping(branches, walks, place).items():
                self._put(block, name, Blocks(entries, block._modules[name]))
        self._put(self._unet, "up_blocks", Blocks(self._entered(branches, walks), self._real("up_blocks")))
        for branch in branches:
            self._meet(branch, walks)
        return walks

    def _meet(self, branch: int, walks: Walks) -> None:
        """A look at what the first layer is given that a cached call at `branch` leaves out on the way down."""
        span, below = self._spans[branch], self._blocks("down_blocks")
        owner: Any = below[span.down] if span.below else self._unet
        name, place = "down_blocks", span.down
        if span.below:
            name, place = "resnets", span.below
            if span.below == len(below[span.down].resnets):
                name, place = "downsamplers", 0
        elif span.down == len(below):
            if self._real("mid_block") is not None:
                self._put(self._unet, "mid_block", Noted(self._real("mid_block"), walks.meet(branch)))
            return
        entries = list(owner.__dict__.get(name) or owner._modules[name])  # another branch may be met there already
        entries[place] = Noted(entries[place], walks.meet(branch))
        self._put(owner, name, Blocks(entries, owner._modules[name]))

    def _keeping(self, branches: Sequence[int], walks: Walks, place: int) -> dict[str, list[Any]]:
        """The lists of the up block at that place, by their names, with one changed for each of the `branches` that
        begins within the block: what the layer before it gives is kept.
        """
        found: dict[str, list[Any]] = {}
        block = self._blocks("up_blocks")[place]
        for branch in branches:
            span = self._spans[branch]
            if span.up == place and span.above:
                before = span.above - 1
                name, layers = [(name, those) for name, those in layer_lists(block) if those[before] is not None][-1]
                entries = found.setdefault(name, list(layers))
                entries[before] = Observed(entries[before], _first_of(walks.keep(branch)))
        return found

    def _entered(self, branches: Sequence[int], walks: Walks) -> list[Any]:
        """The up blocks, with one changed for each of the `branches` that begins with it: what enters it is kept."""
        blocks = self._blocks("up_blocks")
        for branch in branches:
            span = self._spans[branch]
            if not span.above:
                blocks[span.up] = Noted(blocks[span.up], walks.keep(branch))
        return blocks

    def up_cached(
        self,
        branch: int,
        features: Sequence[torch.Tensor],
        full: Walks,
        full_length: bool = False,
        renewed: Sequence[int] = (),
    ) -> CachedWalks:
        """Prepare a call that runs the live blocks of `branch` alone, on `features` (one for each walk), and keeps the
        features of the `renewed` branches.
        """
        self._check_forwards((branch, *renewed))
        rung, span = f"cached at {branch}, renewing {[*renewed]}", self._spans[branch]
        walks = CachedWalks(rung, branch=branch, given=features, full=full)
        below, above = self._blocks("down_blocks"), self._blocks("up_blocks")
        entered = self._entered(renewed, walks)
        live = below[: span.down + bool(span.below)]
        if span.below:
            ends_in = live[-1]
            for name, layers in layer_lists(ends_in):
                self._put(ends_in, name, Blocks(list(layers)[: span.below], layers))
            if ends_in.downsamplers is not None:
                self._put(ends_in, "downsamplers", Blocks([], ends_in.downsamplers))
                live[-1] = Cut(ends_in, span.below)
        for place in range(span.up, len(above)):
            keeping, skipped = self._keeping(renewed, walks, place), span.above if place == span.up else 0
            for name, layers in layer_lists(above[place]):
                if skipped or name in keeping:
                    entries = keeping.get(name, list(layers))[skipped:]
                    self._put(above[place], name, Blocks(entries, layers))
        self._put(self._unet, "down_blocks", First(live, self._real("down_blocks")))
        stand_in = Supplied(self._real("mid_block"), walks.supply)
        self._put(self._unet, "mid_block", Noted(stand_in, walks.meet(branch)))
        self._put(self._unet, "up_blocks", Blocks(entered[span.up :], self._real("up_blocks")))
        return walks

    def skipped(self, branch: int) -> list[nn.Module]:
        """The blocks and layers that a cached call at `branch` leaves out."""
        span, below, above = self._spans[branch], self._blocks("down_blocks"), self._blocks("up_blocks")
        found = [*below[span.down + bool(span.below) :], self._real("mid_block"), *above[: span.up]]
        if span.below:
            ends_in = below[span.down]
            found += [layer for _, layers in layer_lists(ends_in) for layer in layers[span.below :]]
            found += list(ends_in.downsamplers or ())
        found += [layer for _, layers in layer_lists(above[span.up]) for layer in layers[: span.above]]
        return [module for module in found if isinstance(module, nn.Module)]

    def take_down(self) -> dict[str, Any]:
        """Remove our shadows, whatever the state; returns them, for `put_back`."""
        found: dict[str, Any] = {}
        while self._shadows:
            module, name, before = self._shadows.pop()
            value = module.__dict__.pop(name, MISSING)
            if before is not MISSING:
                module.__dict__[name] = before
            if value is not MISSING:
                found[str(len(self._shadows))] = (module, name, value)
        return found

    def put_back(self, shadows: dict[str, Any]) -> None:
        """Undo a `take_down`, for the outer call after a nested one."""
        for module, name, value in shadows.values():
            self._put(module, name, value)

    def _put(self, module: nn.Module, name: str, value: Any) -> None:
        # `mid_block = None` is a plain attribute: it comes back when the shadow goes.
        self._shadows.append((module, name, module.__dict__.get(name, MISSING)))
        module.__dict__[name] = value

    def _real(self, name: str) -> Any:
        return self._unet._modules.get(name)

    def _blocks(self, name: str) -> list[Any]:
        """The real blocks as they are now."""
        return list(self._real(name))

    def _span(self, branch: int) -> Span:
        above = self._blocks("up_blocks")
        up, missing = len(above) - 1, branch + 1
        while missing > len(above[up].resnets):
            missing -= len(above[up].resnets)
            up -= 1
        down = 0
        for block in self._blocks("down_blocks"):
            if branch < _skips(block):
                break
            branch -= _skips(block)
            down += 1
        return Span(down, branch, up, len(above[up].resnets) - missing)

    def _check_forwards(self, branches: Sequence[int]) -> None:
        if own_forward(self._unet) is not None:
            raise UnknownLayout("another extension replaced the UNet's forward")
        ends = []
        for span in map(self._spans.__getitem__, branches):
            ends.append(self._blocks("up_blocks")[span.up])
            if span.below:
                ends.append(self._blocks("down_blocks")[span.down])
        if any(own_forward(block) is not None for block in ends):
            raise UnknownLayout("another extension replaced the forward of one of the UNet's blocks")


def _first_of(keep: Callable[[torch.Tensor], None]) -> Callable[[Any], None]:
    """`keep` for what a layer returns: a tensor, or a tuple that begins with one."""
    return lambda output: keep(output if torch.is_tensor(output) else output[0])


def _skips(block: Any) -> int:
    """How many skip connections start in a down block."""
    return len(block.resnets) + (block.downsamplers is not None)
