"""Ways to make a picture sooner: what ships, what it is held against, and what was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deepcache_ext.plan import cost
from deepcache_ext.plan.ageing import Ageing
from deepcache_ext.plan.estimators import ESTIMATORS, Estimator
from deepcache_ext.plan.importance import Nature
from deepcache_ext.plan.plan import ListedPlan, Plan, UniformPlan
from deepcache_ext.plan.strategies import estimator_for, plan_for
from deepcache_ext.settings.settings import parse

SPEED_UPS = (1.6, 2.0, 2.6)


@dataclass(frozen=True)
class Pass:
    """What a way may know of a run: its noise levels, the number of output blocks, and the sampler's and model's
    nature.
    """

    sigmas: tuple[float, ...]
    depth: int
    nature: Nature

    @property
    def steps(self) -> int:
        return len(self.sigmas)


@dataclass(frozen=True)
class Way:
    """`name`: without the speed-up. `wanted`: the speed-up it was made for, 0 where it has its own. `fewer`: uncached
    steps; else `plan` and `estimator` (a maker: an estimator serves one run).
    """

    name: str
    wanted: float
    speed_up: float
    plan: Plan | None = None
    estimator: Callable[[], Estimator] | None = None
    fewer: int = 0

    @property
    def key(self) -> str:
        return f"{self.name} @{self.wanted:g}" if self.wanted else self.name


def way(name: str, wanted: float, plan: Plan, estimator: Callable[[], Estimator], ahead: Pass) -> Way:
    speed_up = cost.speed_up([plan.branch_at(k) for k in range(ahead.steps)], ahead.depth)
    return Way(name, wanted, round(speed_up, 3), plan, estimator)


def even(steps: int, full: int) -> tuple[int, ...]:
    """So many full evaluations, as evenly as it goes: uniform caching between two intervals."""
    return tuple(k * steps // full for k in range(full))


def full_for(ahead: Pass, wanted: float, branch: int) -> int:
    """How many evaluations may be full at that speed-up; 0 where the branch is too slow for it."""
    share = cost.share(branch, ahead.depth)
    full = int((ahead.steps / (cost.NEARLY * wanted) - ahead.steps * share) / (1 - share) + 1e-9)
    return full if full >= 2 else 0


def every(ahead: Pass) -> Iterator[Way]:
    """All that is measured at each sampler, number of steps and guidance."""
    for interval in (2, 3):
        yield way(f"interval {interval}", 0, UniformPlan(interval, 0, ahead.steps), ESTIMATORS["copy"], ahead)
    for wanted in SPEED_UPS:
        for branch, estimator in UNIFORM:
            full = full_for(ahead, wanted, branch)
            if full:
                plan = ListedPlan(even(ahead.steps, full), branch, ahead.steps)
                yield way(f"uniform {estimator} b{branch}", wanted, plan, ESTIMATORS[estimator], ahead)
        yield shipped(wanted, ahead)
        if not ahead.nature.fresh_noise:
            yield from fewer(ahead.steps, wanted)


UNIFORM = ((0, "copy"), (0, "forecast"), (1, "copy"), (2, "copy"))
"""Branch and estimator."""


def shipped(wanted: float, ahead: Pass, ageing: Ageing | None = None) -> Way:
    """What the extension's presets run at that speed-up; on a model of measured `ageing`."""
    settings = parse([{"enabled": True, "strategy": "weighted", "speed_up": wanted}])
    plan, _ = plan_for(settings, ahead.steps, ahead.sigmas, ahead.depth, ahead.nature, ageing)
    return way(
        "preset",
        wanted,
        plan,
        lambda: estimator_for(settings, plan, ahead.steps, ahead.sigmas, ahead.nature, ahead.depth),
        ahead,
    )


SLOWEST, FASTEST = cost.NEARLY, 1.08
"""What plans run at beside the speed-up that was wanted: full evaluations come in whole numbers."""


def fewer(steps: int, wanted: float) -> Iterator[Way]:
    """Numbers of uncached steps that take as long as the plans made for that speed-up."""
    for count in range(int(steps / wanted / FASTEST), math.ceil(steps / wanted / SLOWEST) + 1):
        yield Way(f"{count} steps", 0, round(steps / count, 3), fewer=count)


def fewer_at(likeness: dict[int, float], steps: int, speed_up: float) -> float | None:
    """What uncached steps reach in the time of that speed-up: on the line between two numbers of steps; None where
    those two were not measured.
    """
    wanted = steps / speed_up
    below, above = math.floor(wanted), math.ceil(wanted)
    if below not in likeness or above not in likeness:
        return None
    share = wanted - below
    return likeness[below] * (1 - share) + likeness[above] * share


def of(sampler_sigmas: Sequence[float], depth: int, nature: Nature) -> Pass:
    return Pass(tuple(sampler_sigmas), depth, nature)
