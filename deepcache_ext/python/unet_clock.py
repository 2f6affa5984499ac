"""Plain diffusers: no host announces a pass or an evaluation, so the UNet's calls are what the clock goes by.

Every pipeline goes through `scheduler.timesteps` and hands each element to the UNet. Such an element is a view into
the list's memory: where it points tells the evaluation, even when a list holds a timestep twice (Heun, PNDM), and
another list is another pass, since each run of a pipeline makes its own. Only where a timestep comes as something
else (a number, a tensor of its own) does its value decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch

from ..plan.importance import Nature
from ..plan.noise import adds_noise_by_name, replaces_noise_by_name, sigma_at

LIKENESS = 0.4
"""Least cosine of an evaluation's x and the one's before it, where nothing but likeness joins the two. Measured with
random weights: 0.47 and more over the evaluations of ten samplers; two pictures' noise gives about 0."""


class Beat(Enum):
    """What a call of the UNet is the first of, or no first at all."""

    PASS = "a new pass"
    EVALUATION = "a new evaluation of the same pass"
    CALL = "a further call of the same evaluation"


@dataclass(frozen=True)
class Place:
    """A timestep that is an element of a list: `view` points into it, and keeps its memory from being given away."""

    view: torch.Tensor
    version: int

    @classmethod
    def of(cls, timestep: Any) -> Place | None:
        """None where `timestep` is no view of one element of a longer list."""
        if not isinstance(timestep, torch.Tensor) or timestep.layout is not torch.strided:
            return None
        if timestep.numel() != 1 and any(timestep.stride()):  # one element may be expanded to all rows
            return None
        if timestep.untyped_storage().nbytes() <= timestep.element_size():
            return None
        return cls(timestep, 0 if timestep.is_inference() else timestep._version)

    @property
    def index(self) -> int:
        return int(self.view.storage_offset())

    @property
    def length(self) -> int:
        """How many elements the list has; a part of it may be all that is run."""
        return self.view.untyped_storage().nbytes() // self.view.element_size()

    def shares(self, other: Place) -> bool:
        """Whether both are of the same list, unchanged since."""
        return (
            self.view.untyped_storage().data_ptr() == other.view.untyped_storage().data_ptr()
            and self.view.dtype == other.view.dtype
            and self.version == other.version
        )


class Clock:
    """Tells passes and evaluations from the UNet's calls, in their order.

    A timestep whose value decides must fall from one evaluation to the next, and the scheduler must have stepped on.
    Where its step is unknown, x must be like the last one (`LIKENESS`): the call may be the first of another picture,
    whose predecessor was broken off, or of a test at random timesteps. Two pictures that begin at low noise from one
    image are alike: there a program says where a run begins (`DeepCache.new_run`). Where the value repeats, the same x
    is a further call; with another x it may be a second-order sampler's, another tile's or another picture's, and only
    the scheduler's own step tells: without one it begins a new pass, so that nothing is cached on a guess.
    """

    def __init__(self) -> None:
        self._place: Place | None = None
        self._value: float | None = None
        self._step: tuple[Any, Any] = (None, None)
        self._x: torch.Tensor | None = None
        self.remaining: int | None = None
        """How many evaluations the list still holds, with the one at hand; None where there is no list."""
        self.left_out = False
        """Whether the scheduler stepped on, or the list went on, since the evaluation before without a call."""
        self._stride: int | None = None

    def look(self, x: torch.Tensor, timestep: Any, scheduler: Any = None) -> Beat:
        """What the call with these arguments is; ask once for each. `scheduler`: the pipeline's, where known."""
        self.left_out, before, self._place = False, self._place, Place.of(timestep)
        step, self._step = self._step, (getattr(scheduler, "timesteps", None), getattr(scheduler, "step_index", None))
        if self._place is not None:
            self._value = self._x = None
            listed: Any = getattr(scheduler, "timesteps", None)
            index = self.index_in(listed)
            # The list may itself be the beginning of a longer one.
            self.remaining = self._place.length - self._place.index if index is None else len(listed) - index
            if before is None or not self._place.shares(before) or self._place.index < before.index:
                self._stride = None
                return Beat.PASS
            on = self._place.index - before.index
            if not on:
                return Beat.CALL
            # A loop over a part of a list (`timesteps[::2]`) goes on by as many each time.
            self._stride = self._stride or on
            self.left_out = on != self._stride or _has_stepped_twice(step, self._step)
            return Beat.EVALUATION
        value, self._value = self._value, _value(timestep)
        last, self._x = self._x, x.detach().clone()
        self.remaining = None
        if value is None or self._value is None or self._value > value or step[0] is not self._step[0]:
            return Beat.PASS
        known = None not in (step[0], step[1], self._step[1])
        if self._value < value:
            joined = (known and self._step[1] > step[1]) or _is_like(last, x)
            return Beat.EVALUATION if joined else Beat.PASS
        if last is not None and last.shape == x.shape and last.device == x.device and torch.equal(last, x):
            return Beat.CALL
        if not known:
            return Beat.PASS
        return Beat.CALL if step[1] == self._step[1] else Beat.EVALUATION

    def index_in(self, timesteps: Any) -> int | None:
        """Where in a scheduler's list the evaluation at hand stands; None where it is another list."""
        if not isinstance(timesteps, torch.Tensor) or self._place is None or timesteps.dim() != 1:
            return None
        here, first = self._place.view.data_ptr(), timesteps.data_ptr()
        index = (here - first) // timesteps.element_size()
        same = self._place.view.dtype == timesteps.dtype and self._place.view.device == timesteps.device
        return index if same and 0 <= index < len(timesteps) else None

    def noise_level(self, scheduler: Any) -> float | None:
        """The sigma of the evaluation at hand, where the scheduler's list tells it."""
        return noise_level(scheduler, self.index_in(getattr(scheduler, "timesteps", None)))

    def noise_levels(self, scheduler: Any) -> list[float] | None:
        """Those of the evaluation at hand and of all to come."""
        first = self.index_in(getattr(scheduler, "timesteps", None))
        if first is None:
            return None
        levels = noise_levels(scheduler)[first : first + (self.remaining or 0)]
        return [level for level in levels if level is not None] if None not in levels else None


def _has_stepped_twice(before: tuple[Any, Any], now: tuple[Any, Any]) -> bool:
    """Whether a scheduler, by its list and its step, went through a whole step between the two."""
    (one, first), (other, second) = before, now
    return one is other and isinstance(first, int) and isinstance(second, int) and second > first + 1


def _is_like(last: torch.Tensor | None, x: torch.Tensor) -> bool:
    """Whether every row of x is like the same row before (cosine). What is equal in both, as the mask and the image
    that an inpainting UNet gets in further channels, is no evidence. Waits for a GPU.
    """
    if last is None or last.shape != x.shape or last.device != x.device or x.dim() < 2:
        return False
    changed = last != x
    one, other = (torch.where(changed, t, 0).flatten(1).float() for t in (last, x.detach()))
    cosine = (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt().clamp_min(1e-30)
    return bool((cosine >= LIKENESS).all())


def _value(timestep: Any) -> float | None:
    """A timestep in numbers (on a GPU this waits for it); None where rows differ."""
    if not isinstance(timestep, torch.Tensor):
        return float(timestep)
    values = timestep.flatten()
    if len(values) > 1 and not bool((values == values[0]).all()):
        return None
    return float(values[0])


def noise_level(scheduler: Any, index: int | None) -> float | None:
    """The sigma of the evaluation at `index` of a scheduler's list, as k-diffusion counts it
    (sqrt((1 - alpha_bar) / alpha_bar)); None where the scheduler does not tell.
    """
    if index is None or not 0 <= index < len(scheduler.timesteps):
        return None
    listed, level = _listed(scheduler)
    return level(float(listed[index]))


def noise_levels(scheduler: Any) -> list[float | None]:
    """That of each element. Reads the list at once, which may lie on a device."""
    listed, level = _listed(scheduler)
    return list(map(level, listed.tolist()))


def _listed(scheduler: Any) -> tuple[torch.Tensor, Callable[[float], float | None]]:
    """A scheduler's list, and what makes a sigma of its numbers."""
    timesteps, sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(timesteps) <= len(sigmas) <= len(timesteps) + 1:
        # Shares of noise in a latent of unit variance, as of SD.Next's VDM Solver: another measure, that ends at 1.
        is_known = float(sigmas.max()) > 1
        return sigmas[: len(timesteps)], lambda sigma: sigma if is_known else None
    return timesteps, partial(sigma_at, getattr(scheduler, "alphas_cumprod", None))


def adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler adds fresh noise in the course of a run; an unknown one may."""
    if scheduler is None:
        return True
    algorithm = str(getattr(getattr(scheduler, "config", None), "algorithm_type", ""))
    return algorithm.startswith("sde") or adds_noise_by_name(type(scheduler).__name__)


def nature_of(scheduler: Any) -> Nature:
    """Of the sampler."""
    return Nature(adds_noise(scheduler), replaces_noise_by_name(type(scheduler).__name__))
