"""Which evaluations of a pass are full: the strategies other than every Nth one, and how settings choose a plan.

Evaluations are counted from 0; the first one is always full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..settings.settings import AS_IT_PAYS, CALIBRATED, Settings, ranges
from . import cost
from .estimators import ESTIMATORS, FORECAST_BY_DEPTH_UP_TO, FORECAST_UP_TO, FORECAST_UP_TO_STEPS, Estimator
from .plan import ListedPlan, Plan, UniformPlan


@dataclass(frozen=True)
class Nature:
    """What of a pass decides how much an error counts. `fresh_noise`: its sampler adds noise in the course of it
    (ancestral, SDE). `prediction`: what the UNet predicts, "eps" (noise) or "v".
    """

    fresh_noise: bool = False
    prediction: str = "eps"


USUAL = Nature()

FEW = 12
"""Below so many evaluations a pass is a few-step one (LCM, Turbo, Lightning, low denoising strength)."""

ONE_BRANCH_UP_TO = 0.5
"""How far apart in log sigma full evaluations may lie on average: where they would lie further apart, every second one
runs a deeper branch instead, and there are more of them for the same cost (docs/strategies.md).
"""
DEEPER = {12: 5, 9: 5}
"""The deeper branch by the number of output blocks: the two finest levels of SD1.x (measured), SD2.x and SDXL (not)."""


def plan_for(
    settings: Settings, total: int, sigmas: Sequence[float] | None, depth: int, nature: Nature = USUAL
) -> tuple[Plan, str]:
    """The plan of a pass of `total` evaluations on a UNet of `depth` output blocks, and a remark for the user or "".

    `sigmas`: the noise level of each evaluation as `Moment.sigma` counts it, or None where the host does not tell;
    their number is the better one. `nature`: of sampler and model.
    Raises `SettingsError` for a list of full evaluations that cannot be read.
    """
    branch, window = settings.cache_branch_id, (settings.start, settings.end)
    deeper = settings.deeper_branch_id
    uniform = UniformPlan(settings.cache_interval, branch, total, *window, deeper)
    few = total < FEW
    if settings.strategy == "uniform":
        warned = few and uniform.caches
        return uniform, f"only {total} evaluations: caching may change the picture much" if warned else ""
    if settings.strategy == CALIBRATED:
        plan, remark = plan_for(replace(settings, strategy="weighted"), total, sigmas, depth, nature)
        return plan, remark or "no profile: weighted instead of calibrated"
    if settings.strategy == "custom":
        full_ones, renewed, own = custom(settings.full_evaluations, total, branch)
        if "/" in settings.full_evaluations:
            return ListedPlan(full_ones, branch, total, *window, renewed, own), ""
        return _in_turns(full_ones, branch, total, window, deeper), ""
    if settings.strategy == "non-uniform":
        listed = non_uniform(total, settings.cache_interval, round(settings.center * total), settings.power)
        return _in_turns(listed, branch, total, window, deeper), ""
    if few:
        return UniformPlan(1, branch, total), f"only {total} evaluations: nothing is skipped in so short a run"
    total = len(sigmas) if sigmas else total
    if not sigmas or not all(0 < s < math.inf for s in sigmas):
        interval = _interval(total, settings.speed_up, [cost.share(one, depth) for one in uniform.branches])
        return UniformPlan(interval, branch, total, *window, deeper), ""
    full = cost.full_for(total, settings.speed_up, cost.share(branch, depth))
    outside = frozenset(k for k in range(total) if UniformPlan(2, branch, total, *window).is_outside(k))
    if deeper == AS_IT_PAYS:
        # With a UNet that predicts noise and a sampler that adds some, by depth was the better at any distance.
        near = 0.0 if nature.fresh_noise and nature.prediction == "eps" else ONE_BRANCH_UP_TO
        deeper = DEEPER.get(depth, branch) if _width(sigmas) / full > near else branch
    if deeper > branch:
        listed, renewed = by_depth(sigmas, settings.speed_up, (branch, deeper), depth, outside, nature)
        if len(listed) + len(renewed) < total:  # else that alone would be faster than wanted
            return ListedPlan(listed, branch, total, *window, renewed, deeper), ""
    return ListedPlan(weighted(sigmas, full, outside, nature), branch, total, *window), ""


def _interval(total: int, speed_up: float, shares: Sequence[float]) -> int:
    """The least interval at which a uniform plan is nearly that much faster; `shares`: what cached evaluations cost of
    a full one, those of the deeper branch last where there is one.
    """
    for interval in range(1, total + 1):
        renewals = -(-total // interval)
        full = -(-renewals // len(shares)) if interval > 1 else renewals
        spent = full + (renewals - full) * shares[-1] + (total - renewals) * shares[0]
        if spent * cost.NEARLY * speed_up <= total + 1e-9:
            return interval
    return total


def _in_turns(
    listed: Sequence[int], branch: int, total: int, window: tuple[float, float], deeper: int
) -> ListedPlan:
    """Full at the listed evaluations; with a `deeper` branch every second one runs that instead."""
    if deeper <= branch:
        return ListedPlan(tuple(listed), branch, total, *window)
    return ListedPlan(tuple(listed[::2]), branch, total, *window, tuple(listed[1::2]), deeper)


def estimator_for(
    settings: Settings, plan: Plan, total: int, sigmas: Sequence[float] | None = None
) -> Estimator:
    """The estimator that the settings name; `auto` forecasts where evaluations that renew the kept feature lie close
    enough. `total`: the number of evaluations, or 0 where it is not known.
    """
    name = settings.estimator
    if name == "auto":
        apart = gap(plan, sigmas)
        if apart is not None:
            near = apart <= (FORECAST_BY_DEPTH_UP_TO if len(plan.branches) > 1 else FORECAST_UP_TO)
        else:
            total = total or 120
            near = total / FORECAST_UP_TO_STEPS <= _renewals(plan, total)
        name = "forecast" if near else "copy"
    return ESTIMATORS[name]()


def gap(plan: Plan, sigmas: Sequence[float] | None) -> float | None:
    """How far apart in log sigma evaluations that renew the kept feature lie on average; None where the noise levels
    are not known.
    """
    if not sigmas or not all(0 < s < math.inf for s in sigmas):
        return None
    return _width(sigmas) / max(_renewals(plan, len(sigmas)), 1)


def _renewals(plan: Plan, total: int) -> int:
    return sum(plan.branch_at(k) != min(plan.branches) for k in range(total))


def _width(sigmas: Sequence[float]) -> float:
    """Of a run, in log sigma."""
    return math.log(max(sigmas) / min(sigmas))


# The paper's -------------------------------------------------------------------------------------------------


def non_uniform(total: int, interval: int, center: int, power: float) -> tuple[int, ...]:
    """The paper's non-uniform 1:N (arXiv 2312.00858, eq. 7): full evaluations lie densest around `center`.

    k = ceil(total / interval) of them, at unique(int(l^p)) + center for l evenly spaced between the p-th roots of
    -center and total - center, the end excluded. The published sequences come from the complex root of the negative
    end, of whose powers the real part is taken, and begin with 0 in any case; p is lowered in steps of 0.02 until
    there are k different ones.
    """
    wanted = -(-total // interval)
    center = min(max(center, 0), total)
    while power > 0.02:
        ends = complex(-center) ** (1 / power), complex(total - center) ** (1 / power)
        offsets = np.unique(np.trunc((np.linspace(*ends, wanted + 1) ** power).real).astype(int))
        found = sorted({0, *(int(offset) + center for offset in offsets[1:-1])})
        if len(found) == wanted and found[0] == 0:
            return tuple(found)
        power -= 0.02
    return tuple(range(0, total, interval))


# What a user types -------------------------------------------------------------------------------------------


def custom(text: str, total: int, branch: int = 0) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """As typed (`settings.ranges`): full evaluations, and 0; those that run a branch deeper than `branch`, and which.
    Those beyond the run's end are left out; those whose branch is not deeper are full. Raises `SettingsError`.
    """
    full, renewed, deeper = {0}, set[int](), 0
    for part, own in ranges(text):
        if own is None or own <= branch:
            full.update(part[:total])
        else:
            renewed.update(part[:total])
            deeper = own
    found = sorted(k for k in full if k < total), sorted(k for k in renewed - full if k < total)
    return tuple(found[0]), tuple(found[1]), deeper


def written(full: Sequence[int], renewed: Sequence[int] = (), deeper: int = 0) -> str:
    """The text that `custom` reads as these evaluations: `0-3, 6/5, 9`."""
    kinds = {**dict.fromkeys(renewed, deeper), **dict.fromkeys(full)}
    parts: list[tuple[int, int, int | None]] = []
    for k, branch in sorted(kinds.items()):
        if parts and parts[-1][1:] == (k - 1, branch):
            parts[-1] = parts[-1][0], k, branch
        else:
            parts.append((k, k, branch))
    return ", ".join(
        (f"{first}" if first == last else f"{first}-{last}") + ("" if branch is None else f"/{branch}")
        for first, last, branch in parts
    )


# Where an error counts most ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Law:
    """How the error of a plan is predicted. `order`: an error of the forecast grows with this power of the distance in
    log sigma. `tilt`: further power of sigma in the weights, below 0 for more at the end of the run.
    """

    order: float = 1.5
    tilt: float = 0.0


ONE_BRANCH = Law()
BY_DEPTH = Law(order=2.0, tilt=-0.2)
"""What gave the best pictures of the tuning half (docs/strategies.md)."""


def weights(sigmas: Sequence[float], nature: Nature = USUAL, law: Law = ONE_BRANCH) -> np.ndarray:
    """How much an error of the UNet's kept feature at each evaluation counts in the finished picture, (n,).

    Three factors, of the noise level s before and s' after the step. 1 - s'/s: the share of the denoised estimate
    that the step takes into the latent. 1 / sqrt(1 + s'^2): what of a change of the latent at that level is left at
    the end, exact for Gaussian data. (0.8 + 0.35 s) s / sqrt(1 + s^2): roughly how fast the estimate drifts there by
    log s, measured on the trained checkpoint. A single error is forgotten faster than the second factor says, but
    early errors feed on each other; of the laws that were tried this one gave the best pictures (docs/strategies.md).
    A sampler that adds fresh noise forgets more of what went wrong early; there the third factor is left out.

    That is for a UNet that predicts v, of which the denoised estimate takes s / sqrt(1 + s^2) times an error. Of noise
    it takes s times as much: there the third factor gets the quotient of the two, sqrt(1 + s^2), and stays with fresh
    noise too.
    """
    now = np.asarray(sigmas, dtype=np.float64)
    after = np.append(now[1:], 0.0)
    taken = np.abs(1 - after / now)
    left = 1 / np.sqrt(1 + after**2)
    drift = (0.8 + 0.35 * now) * now / np.sqrt(1 + now**2)
    if nature.prediction != "v":
        drift *= np.sqrt(1 + now**2)
    elif nature.fresh_noise:
        drift = np.ones_like(now)
    return taken * left * drift * now**law.tilt


def weighted(
    sigmas: Sequence[float], full: int, must: frozenset[int] = frozenset(), nature: Nature = USUAL,
    law: Law = ONE_BRANCH,
) -> tuple[int, ...]:
    """The `full` evaluations (more where `must` asks for more) with the least predicted error of all such choices.

    A cached evaluation adds the square of its weight times (distance in log sigma from the last full one)^order;
    dynamic programming over the last full evaluation and how many there were.
    """
    count = len(sigmas)
    full = max(full, len(must | {0}))
    if full >= count:
        return tuple(range(count))
    place, weight = np.log(np.asarray(sigmas, dtype=np.float64)), weights(sigmas, nature, law)
    widest = min(count, max(8, 3 * -(-count // full)))
    # added[k, gap - 1]: what the cached evaluations between a full one at k and the next at k + gap add.
    added = np.full((count, widest), np.inf)
    for k in range(count):
        total = 0.0
        for gap in range(1, widest + 1):
            added[k, gap - 1] = total
            if k + gap >= count:
                break
            if k + gap in must:
                break
            total += float((weight[k + gap] * abs(place[k + gap] - place[k]) ** law.order) ** 2)
    best = np.full(count, np.inf)
    best[0] = 0.0
    came_from = np.zeros((full, count), dtype=int)
    for n in range(1, full):
        following = np.full(count, np.inf)
        for gap in range(1, min(widest, count - 1) + 1):
            reached = best[:-gap] + added[: count - gap, gap - 1]
            better = reached < following[gap:]
            following[gap:][better] = reached[better]
            came_from[n, gap:][better] = np.nonzero(better)[0]
        best = following
    ends = [best[k] + (added[k, count - k - 1] if count - k <= widest else np.inf) for k in range(count)]
    last = int(np.argmin(ends))
    if not math.isfinite(ends[last]):
        return tuple(sorted({0, *must, *range(0, count, -(-count // full))}))
    found = [last]
    for n in range(full - 1, 0, -1):
        found.append(int(came_from[n, found[-1]]))
    return tuple(reversed(found))


def by_depth(
    sigmas: Sequence[float],
    speed_up: float,
    branches: tuple[int, int],
    depth: int,
    must: frozenset[int] = frozenset(),
    nature: Nature = USUAL,
    law: Law = BY_DEPTH,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The full evaluations, and those that run the deeper one of the two `branches`: of the `weighted` ones, as many as
    `speed_up` allows, every second runs the deeper branch, but where `must` asks for a full one.
    """
    shallow, deeper = (cost.share(branch, depth) for branch in branches)
    count = len(sigmas)
    pairs = (count / (cost.NEARLY * speed_up) - count * shallow) / (1 + deeper - 2 * shallow)
    least = max(2, len(must | {0}))
    renewals = min(max(int(2 * pairs) + 1, least), count)  # one too many, at most: of an odd number one more is full
    while True:
        chosen = weighted(sigmas, renewals, must, nature, law)
        full = tuple(k for place, k in enumerate(chosen) if place % 2 == 0 or k in must)
        renewed = tuple(k for k in chosen if k not in full)
        spent = len(full) + len(renewed) * deeper + (count - len(chosen)) * shallow
        if renewals <= least or count / spent >= cost.NEARLY * speed_up:
            return full, renewed
        renewals -= 1
