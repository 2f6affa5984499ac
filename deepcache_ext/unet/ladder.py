"""What every ladder answers, whatever the UNet's layout, and what one call did on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

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
    `controls`: notes of what they did (see `controlnet`).
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
