"""The plan whose pictures come closest to uncached ones, found by trying: for one checkpoint, sampler and schedule.

An uncached run alone does not tell how errors feed on each other (research/plans.md), so every proposal is run, and
what its pictures say decides. First come the plans that other weights would have given, then small changes of the best.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..plan import cost
from ..plan.importance import USUAL, Law, Nature, by_depth, weighted
from ..plan.strategies import DEEPER
from ..settings.evaluation_list import written
from ..settings.fields import MAX_TEXT, Field, SettingsError

Branches = tuple[int | None, ...]
"""What each evaluation runs; None: the whole UNet."""

Judge = Callable[[str], Sequence[float]]
"""Runs a plan, as typed for the strategy `custom`; the PSNR in dB of each of its pictures, always of the same ones."""

LAWS = tuple(Law(order, tilt) for order in (2.0, 1.5, 1.0) for tilt in (-0.2, 0.0, -0.4))
"""Of `importance.weights`, those around the two that are in use; the likeliest first. Chosen by hand."""
NEAR = 3
"""No further apart do two evaluations lie that a small change exchanges. Chosen by hand."""

SURE = 0.5
"""A proposal must be better by so many standard errors of the mean over the pictures: else chance would choose. Chosen
by hand.
"""

EQUAL = 100.0
"""dB; what two equal pictures count as, since infinity has no mean. Chosen by hand."""


PICTURES = Field(
    "pictures",
    "Pictures",
    4,
    "Seeds by which each plan is judged, and as many others at the end.",
    minimum=2,
    maximum=16,
)
TRIES = Field("tries", "Plans to try", 40, "More take longer and may find a better one.", minimum=4, maximum=400)


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
        fast = cost.speed_up(plan, self.blocks) >= cost.NEARLY * self.speed_up
        return fast and any(branch is not None for branch in plan) and len(self.text(plan)) <= MAX_TEXT

    def text(self, plan: Branches) -> str:
        """As typed for the strategy `custom`. Of branches deeper than `branch` there may be one."""
        full = [k for k, branch in enumerate(plan) if branch is None]
        renewed = {k: branch for k, branch in enumerate(plan) if branch is not None and branch != self.branch}
        (deeper,) = set(renewed.values()) or {0}
        return written(full, list(renewed), deeper)


@dataclass(frozen=True)
class Found:
    """`plan` and `first`, the one to beat, as typed for the strategy `custom`; `tries`: how many were."""

    plan: str
    first: str
    tries: int


def search(wanted: Wanted, first: Branches, scores: Sequence[float], tries: int, judge: Judge, seed: int = 0) -> Found:
    """The best of at most `tries` plans, with `first`, the one to beat, whose pictures scored `scores`. The same seed
    and scores give the same plans.
    """
    chance, changing = random.Random(seed), False
    best, scored = first, {first: bounded(scores)}
    proposals = _by_weights(wanted)
    while len(scored) < tries:
        proposal = next((one for one in proposals if one not in scored), None)
        if proposal is None or (not changing and len(scored) >= tries / 2):
            if changing:
                break
            proposals, changing = _changed(best, wanted, chance), True
            continue
        scored[proposal] = bounded(judge(wanted.text(proposal)))
        if _is_better(scored[proposal], scored[best]):
            best = proposal
            if changing:
                proposals = _changed(best, wanted, chance)
    return Found(wanted.text(best), wanted.text(first), len(scored))


def _by_weights(wanted: Wanted) -> Iterator[Branches]:
    """By depth and with one branch, each by several laws."""
    count, shallow = len(wanted.sigmas), cost.share(wanted.branch, wanted.blocks)
    full = cost.full_for(count, wanted.speed_up, shallow)
    rest = (wanted.must, wanted.nature)
    branches = wanted.branch, wanted.deeper
    for law in LAWS:
        found: list[tuple[Sequence[int], Sequence[int]]] = [(weighted(wanted.sigmas, full, *rest, law), ())]
        if wanted.deeper > wanted.branch:
            found.append(by_depth(wanted.sigmas, wanted.speed_up, branches, wanted.blocks, *rest, law))
        for listed, renewed in found:
            kinds: dict[int, int | None] = {**dict.fromkeys(renewed, wanted.deeper), **dict.fromkeys(listed, None)}
            plan = tuple(kinds.get(k, wanted.branch) for k in range(count))
            if wanted.allows(plan):
                yield plan


def _changed(plan: Branches, wanted: Wanted, chance: random.Random) -> Iterator[Branches]:
    """What differs little, in random order: two near evaluations exchanged, or one that runs more where there is time
    left for it.
    """
    count = len(plan)
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
            yield changed


def _cost(branch: int | None, wanted: Wanted) -> float:
    return 1.0 if branch is None else cost.share(branch, wanted.blocks)


def _is_better(scores: Sequence[float], than: Sequence[float]) -> bool:
    gains = [a - b for a, b in zip(scores, than, strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return fmean(gains) > SURE * error


def bounded(scores: Sequence[float]) -> list[float]:
    """Scores of which means can be taken."""
    return [min(float(score), EQUAL) for score in scores]
