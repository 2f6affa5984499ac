"""The plan whose pictures come closest to uncached ones, found by trying: for one checkpoint, sampler and schedule.

An uncached run alone does not tell how errors feed on each other (research/laboratory.md), so every proposal is run,
and what its pictures say decides. First come the plans of other rules, of which now one and now another is the best on
the laboratory's networks, then small changes of the best.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..plan import cost
from ..plan.importance import ONE_BRANCH, USUAL, Law, Nature, by_depth, weighted
from ..plan.strategies import DEEPER
from ..settings.evaluation_list import written
from ..settings.fields import MAX_TEXT, Field, SettingsError

Branches = tuple[int | None, ...]
"""What each evaluation runs; None: the whole UNet."""

LAWS = tuple(Law(order, tilt) for order in (1.5, 2.0, 1.0) for tilt in (-0.4, 0.0, 0.4))
"""Of `importance.weights`, those around the one that is in use. Chosen by hand."""
NEAR = 3
"""No further apart do two evaluations lie that a small change exchanges. Chosen by hand."""

SURE = 0.5
"""A proposal must be better by so many standard errors of the mean over the pictures: else chance would choose. Chosen
by hand.
"""

EQUAL = 100.0
"""dB; what two equal pictures count as, since infinity has no mean. Chosen by hand."""


@dataclass(frozen=True)
class Proposal:
    """A plan with its estimator. Of branches deeper than the shallowest there may be one."""

    plan: Branches
    estimator: str = "auto"

    @property
    def branch(self) -> int:
        """What most cached evaluations run (`cache_branch_id`)."""
        return min((branch for branch in self.plan if branch is not None), default=0)

    @property
    def text(self) -> str:
        """As typed for the strategy `custom`."""
        full = [k for k, branch in enumerate(self.plan) if branch is None]
        renewed = {k: branch for k, branch in enumerate(self.plan) if branch is not None and branch != self.branch}
        (deeper,) = set(renewed.values()) or {0}
        return written(full, list(renewed), deeper)


Judge = Callable[[Proposal], Sequence[float]]
"""Runs a plan; the PSNR in dB of each of its pictures, always of the same ones."""


PICTURES = Field(
    "pictures",
    "Pictures",
    2,
    "Seeds by which each plan is judged, and as many others at the end.",
    minimum=2,
    maximum=16,
)
TRIES = Field("tries", "Plans to try", 8, "More take longer and may find a better one.", minimum=4, maximum=400)


@dataclass(frozen=True)
class Wish:
    """`pictures`: of how many seeds each plan is judged, and then of as many others the one that was found.
    `tries`: how many plans are tried.
    """

    pictures: int = PICTURES.default
    tries: int = TRIES.default

    @classmethod
    def parse(cls, given: Any) -> Wish:
        """From `true`, or from an object with one or both names. Raises `SettingsError`."""
        if given is True:
            return cls()
        if isinstance(given, Wish):
            return given
        if not isinstance(given, Mapping) or not set(given) <= {PICTURES.name, TRIES.name}:
            raise SettingsError("calibrate", given, "true, or an object with pictures and tries")
        return cls(**{one.name: one.parse(given[one.name]) for one in (PICTURES, TRIES) if one.name in given})

    @property
    def runs(self) -> int:
        """Generations of `pictures` pictures: the plans and an uncached one, and three of other seeds."""
        return self.tries + 4

    def cost(self, speed_up: float) -> float:
        """In uncached pictures."""
        return self.pictures * (2 + (self.tries + 2) / speed_up)


@dataclass(frozen=True)
class Wanted:
    """What a plan is looked for. `sigmas`: the noise level of each evaluation, as k-diffusion counts it; `speed_up`: at
    least that, of the UNet; `branch`: what cached evaluations run (`cache_branch_id`); `blocks`: how many output blocks
    the UNet has; `must`: evaluations that are full in any case.
    """

    sigmas: tuple[float, ...]
    speed_up: float
    branch: int = 0
    blocks: int = cost.USUAL_DEPTH
    nature: Nature = USUAL
    must: frozenset[int] = frozenset()

    @property
    def deeper(self) -> int:
        """The deeper of two branches, or `branch` where there is but one."""
        return max(DEEPER.get(self.blocks, self.branch), self.branch)

    def allows(self, plan: Branches) -> bool:
        """Whether it is fast enough, leaves something out, and can be written down."""
        if all(branch is None for branch in plan) or len({*plan, None}) > 3:
            return False
        return cost.speed_up(plan, self.blocks) >= cost.NEARLY * self.speed_up and len(Proposal(plan).text) <= MAX_TEXT


@dataclass(frozen=True)
class Found:
    """The best, the one to beat, and how many were tried."""

    best: Proposal
    first: Proposal
    tries: int


def search(wanted: Wanted, first: Proposal, scores: Sequence[float], tries: int, judge: Judge, seed: int = 0) -> Found:
    """The best of at most `tries` plans, with `first`, the one to beat, whose pictures scored `scores`. The same seed
    and scores give the same plans.
    """
    chance, changing = random.Random(seed), False
    best, scored = first, {first: bounded(scores)}
    proposals = by_rules(wanted)
    while len(scored) < tries:
        proposal = next((one for one in proposals if one not in scored), None)
        if proposal is None:
            if changing:
                break
            proposals, changing = _changed(best, wanted, chance), True
            continue
        scored[proposal] = bounded(judge(proposal))
        if _is_better(scored[proposal], scored[best]):
            best = proposal
            if changing:
                proposals = _changed(best, wanted, chance)
    return Found(best, first, len(scored))


def by_rules(wanted: Wanted) -> Iterator[Proposal]:
    """The present weights at two branches, copied and forecast; evenly, at two branches; by depth; other weights."""
    branches = [one for one in (wanted.branch, wanted.branch + 1) if one < wanted.blocks]
    usual = [_listed(wanted, branch, _weighted(wanted, branch)) for branch in branches]
    even = [_listed(wanted, branch, _evenly(wanted, branch)) for branch in branches]
    plans = [(one, name) for name in ("forecast", "copy") for one in usual] + [(one, "copy") for one in even]
    if wanted.deeper > wanted.branch:
        pair = wanted.branch, wanted.deeper
        found = by_depth(wanted.sigmas, wanted.speed_up, pair, wanted.blocks, wanted.must, wanted.nature)
        plans.append((_listed(wanted, wanted.branch, *found), "forecast"))
    for law in LAWS:
        plans.append((_listed(wanted, wanted.branch, _weighted(wanted, wanted.branch, law)), "forecast"))
    yield from (Proposal(plan, name) for plan, name in plans if wanted.allows(plan))


def _full(wanted: Wanted, branch: int) -> int:
    return cost.full_for(len(wanted.sigmas), wanted.speed_up, cost.share(branch, wanted.blocks))


def _weighted(wanted: Wanted, branch: int, law: Law = ONE_BRANCH) -> Sequence[int]:
    return weighted(wanted.sigmas, _full(wanted, branch), wanted.must, wanted.nature, law)


def _evenly(wanted: Wanted, branch: int) -> Sequence[int]:
    count, full = len(wanted.sigmas), _full(wanted, branch)
    return sorted({k * count // full for k in range(full)} | wanted.must)


def _listed(wanted: Wanted, branch: int, full: Sequence[int], renewed: Sequence[int] = ()) -> Branches:
    kinds: dict[int, int | None] = {**dict.fromkeys(renewed, wanted.deeper), **dict.fromkeys(full, None)}
    return tuple(kinds.get(k, branch) for k in range(len(wanted.sigmas)))


def _changed(proposal: Proposal, wanted: Wanted, chance: random.Random) -> Iterator[Proposal]:
    """What differs little, in random order: two near evaluations exchanged, or one that runs more where there is time
    left for it.
    """
    plan, count = proposal.plan, len(proposal.plan)
    changes: list[dict[int, int | None]] = []
    for k in range(1, count):
        if k in wanted.must:
            continue
        for other in range(k + 1, min(k + NEAR + 1, count)):
            if plan[k] != plan[other] and other not in wanted.must:
                changes.append({k: plan[other], other: plan[k]})
        changes += [{k: more} for more in (None, wanted.deeper) if _cost(more, wanted) > _cost(plan[k], wanted)]
    chance.shuffle(changes)
    for change in changes:
        changed = tuple(change.get(k, branch) for k, branch in enumerate(plan))
        if wanted.allows(changed):
            yield Proposal(changed, proposal.estimator)


def _cost(branch: int | None, wanted: Wanted) -> float:
    return 1.0 if branch is None else cost.share(branch, wanted.blocks)


def _is_better(scores: Sequence[float], than: Sequence[float]) -> bool:
    gains = [a - b for a, b in zip(scores, than, strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return fmean(gains) > SURE * error


def bounded(scores: Sequence[float]) -> list[float]:
    """Scores of which means can be taken."""
    return [min(float(score), EQUAL) for score in scores]
