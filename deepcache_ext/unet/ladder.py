"""What every ladder answers, whatever the UNet's layout, and what one call did on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from .calls import Call

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a UNet's forward is called with: positional and named."""


@dataclass(frozen=True)
class Shape:
    """What a skipped block's output looked like at the full call."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


Met = torch.Size
"""What a walk met where its live input blocks end: (rows, height, width)."""


@dataclass
class Walks:
    """What one call did on the ladder. A forward usually walks it once; ControlNet's reference_only twice.

    `rung`: which shadows are up, in words: the same words for the same ones (diffusers). `features`: by branch, clones
    of the boundary's output, one for each walk, as far as the call ran it. `count`: how many walks it kept something
    of. `shapes`: for each skipped position, the output shapes in order of the walks (full calls under a forward that is
    not the class's own). `sizes`: by branch, what came out of its live input blocks, one for each walk, None where that
    was no tensor. `ran`: which other networks ran in the call, in order; `controls`: notes of what they did (see
    `controlnet`). `differentiated`: gradients are asked for of what came out of live input blocks. `failed`: why a
    feature could not be kept.
    """

    rung: str = ""
    features: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    count: int = 0
    shapes: dict[str, list[Shape]] = field(default_factory=dict)
    sizes: dict[int, list[Met | None]] = field(default_factory=dict)
    ran: list[Any] = field(default_factory=list)
    controls: list[Any] = field(default_factory=list)
    differentiated: bool = False
    failed: Exception | None = None

    def meet(self, branch: int) -> Callable[[Any], None]:
        """Looks at what comes out of the live input blocks of `branch`, (rows, channels, height, width)."""
        sizes = self.sizes.setdefault(branch, [])

        def meet(h: Any) -> None:
            is_tensor = isinstance(h, torch.Tensor)
            sizes.append(h.shape[:1] + h.shape[2:] if is_tensor else None)
            self.differentiated = self.differentiated or (is_tensor and h.requires_grad)

        return meet

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


@dataclass
class CachedWalks(Walks):
    """What a cached call did, held against the full call that it goes back to (`full`).

    `branch`: the one that it runs; `given`: the features that it runs on, one for each walk. `supplied`: how often it
    asked for one; `strayed`: it did something that the full call did not. `same_networks`: the same other networks must
    have run.
    """

    branch: int = 0
    given: Sequence[torch.Tensor] = ()
    full: Walks = field(default_factory=Walks)
    supplied: int = 0
    strayed: bool = False
    same_networks: bool = False

    def supply(self) -> torch.Tensor:
        """The next walk's feature; or where another size was met than at the full call, zeros that the forward can go
        on with, since the call will run again in full.
        """
        self.supplied += 1
        feature = self.given[min(self.supplied, len(self.given)) - 1]
        met = self.sizes.get(self.branch, [])
        if not met or met[-1] is None or self._fits(self.branch, len(met) - 1):
            return feature
        rows, *size = met[-1]
        return feature.new_zeros((rows, feature.shape[1], *size))

    def _fits(self, branch: int, walk: int) -> bool:
        """Whether a walk met what it met in the full call, as far as either could see it; one more than there were met
        what the last one met, whose feature it is given.
        """
        met, expected = self.sizes[branch][walk], self.full.sizes.get(branch, [])
        then = expected[min(walk, len(expected) - 1)] if expected else None
        return None in (met, then) or met == then

    @property
    def met_other_sizes(self) -> bool:
        """Whether something came out of the live input blocks in another size than at the full call."""
        return any(not self._fits(branch, walk) for branch, met in self.sizes.items() for walk in range(len(met)))

    @property
    def is_astray(self) -> bool:
        """Whether it did something else than the full call: then what it gave is worth nothing."""
        renewed = [] if self.failed is not None else [len(those) for those in self.features.values()]
        return (
            self.strayed
            or self.differentiated
            or (self.same_networks and self.ran != self.full.ran)
            or any(count != len(self.given) for count in (self.supplied, *renewed))
            or self.met_other_sizes
        )


class AnyLadder(Protocol):
    """What a session asks of a ladder, whatever the UNet's layout. All but `call` and `arguments` is about one call,
    which begins with one of `up_full` and `up_cached` and ends with `take_down`.
    """

    @property
    def depth(self) -> int:
        """Number of branches; they go from 0 to depth - 1."""

    @property
    def put_on(self) -> object:
        """What the last call found on all layers (diffusers' attention processors): another object when any is."""

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """What distinguishes the call with these arguments. Timesteps, and what skipped blocks alone would use or a
        host renews at each evaluation (a control network's residuals), are no part of it.
        """

    def arguments(self, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """What a cached call is to be run with; never changes what it is given."""

    def up_full(self, branches: Sequence[int], full_length: bool) -> Walks:
        """Prepare a full call that keeps the input of the first live output block of each of the `branches`."""

    def up_cached(
        self,
        branch: int,
        features: Sequence[torch.Tensor],
        full: Walks,
        full_length: bool = False,
        renewed: Sequence[int] = (),
    ) -> CachedWalks:
        """Prepare a call that runs the live blocks of `branch` alone, on `features` (one for each walk), and keeps
        the features of the `renewed` branches, which are less deep. `full`: what the full call did that the features
        go back to; `full_length`: a foreign forward runs.
        """

    def skipped(self, branch: int) -> list[nn.Module]:
        """The blocks and layers that a cached call at `branch` leaves out."""

    def take_down(self) -> dict[str, Any]:
        """Remove our shadows, whatever the state; returns them, for `put_back`."""

    def put_back(self, shadows: dict[str, Any]) -> None:
        """Undo a `take_down`, for the outer call after a nested one."""
