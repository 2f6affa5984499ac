"""What a run will do, before it is run: the page's strip, the API's answer and the run itself take it from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..settings.settings import Settings
from . import cost
from .ageing import Ageing
from .estimators import Estimator
from .importance import USUAL, Nature
from .noise import needs_few_steps
from .plan import Plan, UniformPlan
from .strategies import apart, estimator_for, plan_for


@dataclass(frozen=True)
class PassAhead:
    """A pass that is to come, as its host announces it.

    `total`: how many evaluations the host announces, about; 0 where nobody tells. `sigmas`: the noise level of each,
    where the host tells (`strategies.plan_for`); their number is the better one. `depth`: how many output blocks the
    UNet has, 0 where no model is loaded. `nature`: of its sampler and model. `early`: more will be known when the pass
    begins, so that a plan that goes by noise levels is not to be made yet. `feature_bytes`: what one kept feature
    takes, by branch; empty where that is not known. `checkpoint`, `checksum` and `sampler`: as the host calls them, for
    what is measured; "" where it does not tell.
    """

    hires: bool
    total: int
    sigmas: tuple[float, ...] | None = None
    depth: int = 0
    nature: Nature = USUAL
    checkpoint: str = ""
    checksum: str = ""
    sampler: str = ""
    early: bool = False
    feature_bytes: tuple[int, ...] = ()

    @property
    def evaluations(self) -> int:
        return len(self.sigmas) if self.sigmas else self.total


@dataclass(frozen=True)
class PlannedPass:
    """A pass with its plan. `estimator` is new for each; `remark`: what the user should know, or ""; `hint`: what helps
    to choose, before the run, or ""; `refusal`: why it cannot be run by the plan, or "".
    """

    ahead: PassAhead
    plan: Plan
    estimator: Estimator
    remark: str
    hint: str = ""
    refusal: str = ""

    @property
    def hires(self) -> bool:
        return self.ahead.hires

    @property
    def branches(self) -> list[int | None]:
        """The branch that each evaluation runs, None for the whole UNet."""
        return [self.plan.branch_at(k) for k in range(self.ahead.evaluations)]

    @property
    def kinds(self) -> list[str]:
        """`full`, `medium` or `cached` for each evaluation."""
        shallowest = min(self.plan.branches)
        return ["full" if b is None else "medium" if b > shallowest else "cached" for b in self.branches]

    @property
    def live_branches(self) -> list[int]:
        """Those that run at any evaluation, shallowest first; none where the whole UNet always runs."""
        return sorted({branch for branch in self.branches if branch is not None})

    @property
    def fraction(self) -> str:
        """For instance `10 of 30 full`."""
        return fraction(self.kinds)

    def speed_up(self) -> float | None:
        """Of the UNet's time, by arithmetic; None where the UNet or the number of evaluations is not known."""
        if not self.ahead.depth or not self.ahead.evaluations:
            return None
        return cost.speed_up(self.branches, self.ahead.depth)

    def kept_bytes(self) -> int | None:
        """The most that is kept at a time, where all of a pass's calls are alike; None where that is not known."""
        known, keeps = self.ahead.feature_bytes, self.estimator.keeps
        if not self.live_branches:
            return 0 if known else None
        if max(self.plan.branches) >= len(known):
            return None
        full = sum(b is None and self.plan.worth_keeping(k, keeps) for k, b in enumerate(self.branches))
        times = {one: full + sum(b is not None and b > one for b in self.branches) for one in self.plan.branches}
        return sum(known[one] * min(keeps, times[one]) for one in self.plan.branches)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        speed_up, kinds = self.speed_up(), self.kinds
        return {
            "pass": "hires" if self.hires else "first",
            "evaluations": self.ahead.evaluations,
            "full": [k for k, kind in enumerate(kinds) if kind == "full"],
            "medium": [k for k, kind in enumerate(kinds) if kind == "medium"],
            "cache_branch_id": min(self.plan.branches),
            "deeper_branch_id": max(self.plan.branches) if "medium" in kinds else None,
            "estimator": self.estimator.name,
            "speed_up": None if speed_up is None else round(speed_up, 3),
            "kept_bytes": self.kept_bytes(),
            "remark": self.remark or self.hint,
        }


def planned(settings: Settings, ahead: PassAhead, ageing: Ageing | None = None) -> PlannedPass:
    """The plan that `settings` give for a pass; `ageing`: of the model, where it was measured. Raises `SettingsError`
    for full evaluations that cannot be read.
    """
    own, sigmas = settings.for_pass(ahead.hires), None if ahead.sigmas is None else list(ahead.sigmas)
    if settings.covers(ahead.hires):
        plan, remark = plan_for(own, ahead.total, sigmas, ahead.depth, ahead.nature, ageing)
    else:
        plan, remark = UniformPlan(1, own.cache_branch_id, ahead.total), ""
    estimator = estimator_for(own, plan, ahead.total, sigmas, ahead.nature, ahead.depth)
    is_windowed = settings.start > 0 or settings.end < 1
    refusal = NO_LENGTH if is_windowed and not ahead.evaluations else ""
    found = PlannedPass(ahead, plan, estimator, remark, refusal=refusal)
    return replace(found, hint=_hint(found)) if own.strategy == "weighted" else found


NO_LENGTH = "start and end need the number of steps, which cannot be known here"


def fraction(kinds: Sequence[str]) -> str:
    """For instance `10 of 30 full`, or `6 of 30 full + 6 medium`; kinds as in `PlannedPass.kinds`, and `mixed`."""
    told = [f"{kinds.count('full')} of {len(kinds)} full"]
    told += [f"{kinds.count(kind)} {kind}" for kind in ("medium", "mixed") if kind in kinds]
    return " + ".join(told)


def _hint(one: PlannedPass) -> str:
    """What the user should know of a plan by a speed-up: that it is fast for its steps, or that fewer steps serve as
    well; "" where neither is so.
    """
    ahead, speed_up = one.ahead, one.speed_up()
    full = cost.full_for(ahead.evaluations, speed_up, cost.share(0, ahead.depth)) if speed_up else 1
    is_wide = bool(speed_up) and (apart(full, ahead.sigmas) or 0) > WIDE
    if not one.live_branches or not (is_wide or needs_few_steps(ahead.sampler)):
        return ""
    if ahead.nature.fresh_noise:  # fewer steps draw another picture there
        return "fast for so few steps: the picture changes visibly"
    fewer = f"{round(ahead.evaluations / speed_up)} steps" if speed_up else "fewer steps"
    return f"{fewer} without DeepCache take as long and may come as close"


WIDE = 1.0
"""In log sigma, on average: where full evaluations of a plan of branch 0 that is as fast lie further apart, the worst
network of the laboratory's choosing half can be behind fewer uncached steps (up to 2.6 dB), at guidance 7 and 12 to 20
steps (research/laboratory.md).
"""


def speed_up_of(passes: Sequence[PlannedPass]) -> float | None:
    """Of all passes together, every evaluation weighing the same (a hires one costs more); None where unknown."""
    gains = [one.speed_up() for one in passes]
    if not passes or None in gains:
        return None
    evaluations = sum(one.ahead.evaluations for one in passes)
    spent = sum(one.ahead.evaluations / gain for one, gain in zip(passes, gains, strict=True) if gain)
    return evaluations / spent if spent else None
