"""Control networks on cached calls: only those of their blocks run whose residuals a live block takes.

A control network is a copy of the UNet's input side. The hooked UNet adds the output of its `zero_convs[i]` to the skip
of input block i, and that of `middle_block_out` behind the middle block. On a cached call all but the first b + 1 of
these land on stand-ins, so leaving them out changes nothing. The network's lists are shadowed as the UNet's are (see
`ldm`), for one call of the UNet; nothing is patched. What is not known to be such a network runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any

import torch
from torch import nn

from .calls import Call
from .hooks import OwnHook
from .ladder import CachedWalks, Shape, Walks
from .ldm import Ladder
from .shadows import Observed, OwnBlocks, OwnStand, Supplied

LISTS = ("input_blocks", "zero_convs")
SINGLES = ("middle_block", "middle_block_out")
MOUNTED = "control networks"
"""Key of what `ControlledLadder.take_down` returns besides the UNet's own shadows."""


@dataclass(frozen=True)
class ControlUnit:
    """One unit of an extension like ControlNet, as it stands at a call.

    `model`: the module that it may run inside the UNet's call, or None. `state`: what else decides how it acts (on or
    off, weight), in plain values; compared from call to call.
    """

    model: nn.Module | None
    state: Hashable


Units = Callable[[nn.Module], Sequence[ControlUnit]]
"""Which units a UNet's call involves now; empty where there are none, or where nothing is known of them."""


@dataclass
class ControlRun:
    """What one run of a control network did in a full call.

    `trail`: its positions in the order in which they ran; `shapes`: their outputs. `live`: it was seen to return,
    before all else, the outputs of its first b + 1 zero convolutions, made before any deeper block ran, b being
    `branch`. A run that leaves deeper ones out returns the same there, and so it does at every branch below b.
    """

    network: nn.Module
    branch: int
    blocks: int
    trail: list[str] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    live: bool = False
    _residuals: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def see(self, position: str, output: torch.Tensor) -> None:
        self.trail.append(position)
        self.shapes[position] = Shape(output.shape, output.dtype, output.device)
        if position.startswith("zero_convs") and len(self._residuals) <= self.branch and not output.is_inference():
            self._residuals.append((output, output._version))

    def end(self, output: Any) -> None:
        seen, self._residuals = self._residuals, []
        self.live = (
            self.trail == [f"{name} {i}" for i in range(self.blocks) for name in LISTS] + list(SINGLES)
            and isinstance(output, (list, tuple))
            and len(output) == self.blocks + 1
            and len(seen) == self.branch + 1
            and all(_same(given, *those) for given, those in zip(output, seen, strict=False))
        )


def _same(given: Any, seen: torch.Tensor, version: int) -> bool:
    """Whether `given` is what was seen, or that in another type: ControlNet casts its residuals to the type of x."""
    if seen._version != version:  # written to by whom, and with what, is not known
        return False
    if given is seen:
        return True
    return isinstance(given, torch.Tensor) and given.shape == seen.shape and torch.equal(given, seen.to(given))


@dataclass
class Mounted:
    """Our hooks and shadows on one control network, put up and taken down together."""

    network: nn.Module
    before: Callable[..., None]
    after: Callable[..., None] | None = None
    shadows: Mapping[str, Any] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def up(self) -> None:
        self._handles = [self.network.register_forward_pre_hook(OwnHook(_here(self.before)))]
        if self.after is not None:
            self._handles.append(self.network.register_forward_hook(OwnHook(_here(self.after))))
        self.network.__dict__.update(self.shadows)

    def down(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for name, shadow in self.shadows.items():
            if self.network.__dict__.get(name) is shadow:
                del self.network.__dict__[name]


def _here(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, for calls from this thread alone."""
    thread = get_ident()

    def asked(*args: Any) -> None:
        if get_ident() == thread:
            hook(*args)

    return asked


def watched(network: nn.Module, branch: int, depth: int, walks: Walks) -> Mounted:
    """For a full call: note that the network runs, and what its run is made of."""

    def begin(*_: Any) -> None:
        walks.ran.append(id(network))
        if shadows:
            walks.controls.append(ControlRun(network, branch, depth))

    def end(_network: nn.Module, _args: Any, output: Any) -> None:
        walks.controls[-1].end(output)

    def see(position: str, real: Any) -> Observed:
        return Observed(real, lambda output: walks.controls[-1].see(position, output))

    shadows = _shadows(network, see) if is_control_network(network, depth) else {}
    return Mounted(network, begin, end if shadows else None, shadows)


def shortened(network: nn.Module, branch: int, walks: Walks, full: Walks) -> Mounted:
    """For a cached call: run the live blocks alone, where all the network's runs in the full call allow it."""
    runs = [run for run in full.controls if run.network is network]

    def begin(*_: Any) -> None:
        walks.ran.append(id(network))

    def stand_in(position: str, real: Any) -> Any:
        name, _, number = position.partition(" ")
        if name in LISTS and int(number) <= branch:
            return real
        shapes = iter([run.shapes[position] for run in runs])
        # Real zeros, since the host may write into residuals. A run too many is found out by `CachedWalks.is_astray`.
        return Supplied(real, lambda: next(shapes, runs[-1].shapes[position]).zeros())

    live = bool(runs) and all(run.live and run.branch >= branch for run in runs)
    return Mounted(network, begin, shadows=_shadows(network, stand_in) if live else {})


def _shadows(network: nn.Module, stand_in: Callable[[str, Any], Any]) -> dict[str, Any]:
    children: Mapping[str, Any] = network._modules
    made: dict[str, Any] = {name: OwnStand(children[name], stand_in(name, children[name])) for name in SINGLES}
    for name in LISTS:
        blocks = [stand_in(f"{name} {i}", block) for i, block in enumerate(children[name])]
        made[name] = OwnBlocks(blocks, children[name])
    return made


def is_control_network(module: nn.Module, depth: int) -> bool:
    """Whether the module has a control network's blocks, `depth` of them; how it runs them is another question."""
    children, names = module._modules, (*LISTS, *SINGLES)
    lists = [children.get(name) for name in LISTS]
    return (
        all(children.get(name) is not None and name not in module.__dict__ for name in names)
        and all(isinstance(those, nn.ModuleList) for those in lists)
        and all(len(those) == depth for those in lists)  # type: ignore[arg-type]
    )


class ControlledLadder(Ladder):
    """The ladder of a UNet together with the control networks that run inside its calls.

    `units` is asked at every call, and so is `state`: what else acts on the call besides its arguments. A unit that
    changes (on, off, another weight) changes the call's state; networks that run in another number or order than at
    the full call, whatever the units say, lead the cached call astray.
    """

    def __init__(self, unet: nn.Module, units: Units, state: Callable[[], Hashable] = tuple) -> None:
        super().__init__(unet)
        self._units = units
        self._state = state
        self._mounted: list[Mounted] = []

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        call = super().call(args, kwargs)
        return replace(call, state=(self._state(), *(unit.state for unit in self._units(self._unet))))

    def up_full(self, branches: Sequence[int], full_length: bool) -> Walks:
        walks = super().up_full(branches, full_length)
        if full_length:
            self._mount([watched(network, max(branches), self.depth, walks) for network in self._networks()])
        return walks

    def up_cached(
        self,
        branch: int,
        features: Sequence[torch.Tensor],
        full: Walks,
        full_length: bool = False,
        renewed: Sequence[int] = (),
    ) -> CachedWalks:
        walks = super().up_cached(branch, features, full, full_length, renewed)
        if full_length:
            walks.same_networks = True
            # The deepest branch skips no input block: the middle's residual is live too, and so is the whole network.
            known = full if branch < self.depth - 1 else Walks()
            self._mount([shortened(network, branch, walks, known) for network in self._networks()])
        return walks

    def take_down(self) -> dict[str, Any]:
        found = super().take_down()
        if self._mounted:
            found[MOUNTED], self._mounted = self._mounted, []
            for mounted in found[MOUNTED]:
                mounted.down()
        return found

    def put_back(self, shadows: dict[str, Any]) -> None:
        self._mount(shadows.pop(MOUNTED, []))
        super().put_back(shadows)

    def _mount(self, mounted: list[Mounted]) -> None:
        for one in mounted:
            self._mounted.append(one)
            one.up()

    def _networks(self) -> list[nn.Module]:
        """Each module once, though several units may run it. A unit's model wraps its network as `control_model`."""
        found: dict[int, nn.Module] = {}
        for unit in self._units(self._unet):
            inner = getattr(unit.model, "control_model", None)
            # With another number of blocks than the UNet's its residuals would mean other positions.
            if isinstance(inner, nn.Module) and is_control_network(inner, self.depth):
                found[id(inner)] = inner
            elif unit.model is not None:
                found[id(unit.model)] = unit.model
        return [network for network in found.values() if network is not self._unet]
