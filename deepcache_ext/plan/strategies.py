"""Which evaluations of a pass are full: the strategies other than every Nth one, and how settings choose a plan.

Evaluations are counted from 0; the first one is always full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..settings.evaluation_list import custom
from ..settings.settings import Settings
from . import cost
from .ageing import UNMEASURED, Ageing, Spread, candidates, least_error
from .estimators import (
    ESTIMATORS,
    FORECAST_BY_DEPTH_UP_TO,
    FORECAST_UP_TO,
    FORECAST_UP_TO_STEPS,
    SETTLED,
    Estimator,
    Forecast,
)
from .importance import USUAL, Nature
from .noise import are_known
from .plan import ListedPlan, Plan, UniformPlan

FEW = 12
"""Below so many evaluations a pass is a few-step one (LCM, Turbo, Lightning, low denoising strength). Chosen by hand;
the demo's first checkpoint at 6 to 16 steps agrees (research/plans.md).
"""

ENDLESS = 1000
"""What a plan is made for where the number of evaluations is not known: as many as a model has timesteps."""

SECOND = 1
"""The branch that plans without noise levels run at least on UNets where it costs next to nothing (9 output blocks),
and with samplers that add fresh noise: there the shallowest features age fastest (`ageing.UNMEASURED`).
"""


def plan_for(
    settings: Settings,
    total: int,
    sigmas: Sequence[float] | None,
    depth: int,
    nature: Nature = USUAL,
    ageing: Ageing | None = None,
) -> tuple[Plan, str]:
    """The plan of a pass of `total` evaluations on a UNet of `depth` output blocks, and a remark for the user or "".

    `sigmas`: the noise level of each evaluation as `Moment.sigma` counts it, or None where the host does not tell;
    their number is the better one. `total` is 0 where nobody tells it. `nature`: of sampler and model. `ageing`: of the
    model, where it was measured. Raises `SettingsError` for a list of full evaluations that cannot be read.
    """
    branch, window = settings.cache_branch_id, (settings.start, settings.end)
    deeper = settings.deeper_branch_id
    uniform = UniformPlan(settings.cache_interval, branch, total, *window, deeper)
    few, is_known, total = 0 < total < FEW, bool(total), total or ENDLESS
    if settings.strategy == "uniform":
        warned = few and uniform.caches
        return uniform, "so few steps: caching may change the picture much" if warned else ""
    if settings.strategy == "custom":
        full_ones, renewed, own = custom(settings.full_evaluations, total, branch)
        if "/" in settings.full_evaluations:
            return ListedPlan(full_ones, branch, total, *window, renewed, own), ""
        return _in_turns(full_ones, branch, total, window, deeper), ""
    if settings.strategy == "non-uniform" and not is_known:
        return uniform, UNKNOWN
    if settings.strategy == "non-uniform":
        listed = non_uniform(total, settings.cache_interval, round(settings.center * total), settings.power)
        return _in_turns(listed, branch, total, window, deeper), ""
    if few:
        return UniformPlan(1, branch, total), f"nothing is skipped in a run of fewer than {FEW} steps"
    total = len(sigmas) if sigmas else total
    if not are_known(sigmas):
        if deeper <= branch and (nature.fresh_noise or depth == 9):
            branch = max(branch, SECOND)
        shares = [cost.share(one, depth) for one in ((branch, deeper) if deeper > branch else (branch,))]
        evenly = _evenly(total, settings.speed_up, shares)
        if evenly is None:  # every second one on the deeper branch is faster than wanted already
            evenly, deeper = _evenly(total, settings.speed_up, shares[:1]), branch
        remark = EVENLY if is_known else UNKNOWN
        # Without a model (depth 0) there is no run yet whose noise levels could be known.
        return _in_turns(evenly or (), branch, total, window, deeper), remark if depth else ""
    outside = frozenset(k for k in range(total) if UniformPlan(2, branch, total, *window).is_outside(k))
    full, renewed, shallow, medium = _spread(settings, sigmas, depth, nature, outside, ageing)
    return ListedPlan(full, shallow, total, *window, renewed, medium if renewed else 0), ""


def _spread(
    settings: Settings,
    sigmas: Sequence[float],
    depth: int,
    nature: Nature,
    must: frozenset[int],
    ageing: Ageing | None,
) -> Spread:
    """Of the branches that the settings name, or, where they name none, of those with the least predicted error."""
    branch, deeper = settings.cache_branch_id, settings.deeper_branch_id
    ageing = ageing or UNMEASURED.get((depth, nature.fresh_noise))
    if ageing and branch == 0 and deeper <= branch:
        return least_error(sigmas, settings.speed_up, depth, ageing, must, nature)
    named = [(branch, deeper)] if deeper > branch else []
    single, *pair = candidates(sigmas, settings.speed_up, depth, [(branch,), *named], must, nature)
    # Where every evaluation of a pair renews something, it is faster than what was asked for.
    return pair[0] if pair and len(pair[0][0]) + len(pair[0][1]) < len(sigmas) else single


UNKNOWN = "the number of steps is not known before the run, so the full steps are spaced evenly"
EVENLY = "the sampler's noise levels are not known before the run, so the full steps are spaced evenly"


def _evenly(total: int, speed_up: float, shares: Sequence[float]) -> tuple[int, ...] | None:
    """Evaluations at equal distances, as few as are needed to be no faster than `speed_up`, or None; `shares`: what
    cached evaluations cost of a full one, those of the deeper branch last where there is one.
    """
    for count in range(1, total + 1):
        full = -(-count // len(shares))
        spent = full + (count - full) * shares[-1] + (total - count) * shares[0]
        if spent * speed_up >= total - 1e-9:
            return tuple(k * total // count for k in range(count))
    return None


def _in_turns(listed: Sequence[int], branch: int, total: int, window: tuple[float, float], deeper: int) -> ListedPlan:
    """Full at the listed evaluations; with a `deeper` branch every second one runs that instead."""
    if deeper <= branch:
        return ListedPlan(tuple(listed), branch, total, *window)
    return ListedPlan(tuple(listed[::2]), branch, total, *window, tuple(listed[1::2]), deeper)


def estimator_for(
    settings: Settings,
    plan: Plan,
    total: int,
    sigmas: Sequence[float] | None = None,
    nature: Nature = USUAL,
    depth: int = 0,
) -> Estimator:
    """The estimator that the settings name; `auto` forecasts where evaluations that renew the kept feature lie close
    enough, and fresh noise does not reach it: what lies deeper than branch 0 goes on as it went beside Euler a's
    (research/laboratory.md). `total`: the number of evaluations, or 0 where it is not known; `depth`: of the UNet's
    output blocks.
    """
    name = settings.estimator
    if name == "auto" and (nature.all_fresh or (nature.fresh_noise and not any(plan.branches))):
        name = "copy"
    elif name == "auto":
        gap = apart(_renewals(plan, len(sigmas or ())), sigmas)
        if gap is not None:
            near = gap <= (FORECAST_BY_DEPTH_UP_TO if len(plan.branches) > 1 else FORECAST_UP_TO)
        else:
            total = total or 120
            near = total / FORECAST_UP_TO_STEPS <= _renewals(plan, total)
        name = "forecast" if near else "copy"
    return Forecast(SETTLED.get(depth, 0.0)) if name == "forecast" else ESTIMATORS[name]()


def apart(renewals: int, sigmas: Sequence[float] | None) -> float | None:
    """How far apart in log sigma so many evaluations lie on average; None where the noise levels are not known."""
    if not are_known(sigmas):
        return None
    return _width(sigmas) / max(renewals, 1)


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
