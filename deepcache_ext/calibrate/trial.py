"""Calibrating, wherever the pictures come from: uncached ones, plan after plan, and others by which both are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from ..plan.plan import UniformPlan
from ..plan.strategies import FEW
from ..report.run_report import PassOutcome
from ..settings.fields import NO_DEEPER
from ..settings.settings import Settings
from .profile import CalibratedPlan, MadeFor, ProfileError
from .search import Proposal, Wanted, Wish, bounded, search

WHOLE = {"strategy": "uniform", "cache_interval": 1}
"""Uncached, bit for bit, and yet with passes that tell how they went."""


class NotCalibrated(Exception):
    """`str()` says why."""


class Studio(Protocol):
    """Makes the pictures of some seeds, always of the same ones until `move_on`. `told`: what is being done, for
    whoever waits.
    """

    told: str

    @property
    def first_pass(self) -> PassOutcome:
        """Of the last pictures."""

    def make(self, settings: Mapping[str, Any]) -> Sequence[Any]:
        """The pictures with these settings. Raises `NotCalibrated` where they are not what was asked for."""

    def scores(self, pictures: Sequence[Any], reference: Sequence[Any]) -> list[float]:
        """PSNR in dB of each picture. Raises `NotCalibrated` where they cannot be compared."""

    def move_on(self) -> None:
        """To as many other seeds."""


def calibrated(studio: Studio, settings: Settings, wish: Wish) -> tuple[MadeFor, CalibratedPlan]:
    """The plan of `settings.speed_up` that came closest, and what it holds for. Raises `NotCalibrated`."""
    weighted = {"strategy": "weighted", "speed_up": settings.speed_up, "deeper_branch_id": NO_DEEPER}
    pictures = studio.make(weighted)
    wanted, made_for = _wanted(settings, studio.first_pass)
    first = Proposal(tuple(studio.first_pass.planned.branches), settings.estimator)
    uncached = studio.make(WHOLE)
    scored = [bounded(studio.scores(pictures, uncached))]

    def judge(plan: Proposal) -> list[float]:
        studio.told = f"plan {len(scored) + 1} of {wish.tries}, best {max(map(fmean, scored)):.1f} dB"
        scored.append(bounded(studio.scores(studio.make(listed(plan)), uncached)))
        return scored[-1]

    found = search(wanted, first, scored[0], wish.tries, judge)
    # Judged by pictures that the search has not seen: what was found by chance does not stand this.
    studio.move_on()
    reference = studio.make(WHOLE)
    before = after = fmean(bounded(studio.scores(studio.make(listed(found.first)), reference)))
    if found.best != found.first:
        after = fmean(bounded(studio.scores(studio.make(listed(found.best)), reference)))
    plan = found.best if after > before else found.first
    return made_for, CalibratedPlan(
        settings.speed_up,
        plan.text,
        round(max(before, after), 2),
        round(before, 2),
        wish.pictures,
        found.tries,
        plan.branch,
        plan.estimator,
    )


def _wanted(settings: Settings, seen: PassOutcome) -> tuple[Wanted, MadeFor]:
    """`seen`: a first pass with the weighted plan. Raises `NotCalibrated`."""
    ahead, first = seen.planned.ahead, tuple(seen.planned.branches)
    try:
        made_for = MadeFor.of(ahead, settings)
    except ProfileError as error:
        raise NotCalibrated(str(error)) from error
    count = len(made_for.sigmas)
    if count < FEW:
        raise NotCalibrated(f"only {count} steps: it needs {FEW} or more")
    if seen.report.evaluations != count:  # DPM adaptive
        raise NotCalibrated(f"the sampler ran {seen.report.evaluations} steps instead of {count}")
    window = UniformPlan(2, settings.cache_branch_id, count, settings.start, settings.end)
    must = frozenset(k for k in range(count) if window.is_outside(k))
    wanted = Wanted(made_for.sigmas, settings.speed_up, made_for.branch, made_for.blocks, ahead.nature, must)
    if not wanted.allows(first):
        reached = seen.planned.speed_up() or 1.0
        raise NotCalibrated(f"{settings.speed_up:g}x cannot be reached with these settings, only {reached:.2f}x")
    return wanted, made_for


def listed(plan: Proposal) -> dict[str, Any]:
    """The settings that run it."""
    return {
        "strategy": "custom",
        "full_evaluations": plan.text,
        "cache_branch_id": plan.branch,
        "estimator": plan.estimator,
        "deeper_branch_id": NO_DEEPER,
    }
