"""Measuring a model's ageing, wherever the pictures come from: uncached ones, and cached ones branch by branch.

How much a picture suffers from old features is seen in the finished picture alone: an uncached run does not tell how
errors feed on each other (research/laboratory.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from ..plan import cost
from ..plan.ageing import SOUNDED, Ageing
from ..plan.strategies import FEW
from ..report.run_report import PassOutcome
from ..settings.fields import NO_DEEPER, Field, SettingsError
from .profile import LEAST, MOST, MadeFor

WHOLE = {"strategy": "uniform", "cache_interval": 1}
"""Uncached, bit for bit, and yet with passes that tell how they went."""

EQUAL = 100.0
"""dB; what two equal pictures count as, since infinity has no mean. Chosen by hand."""

RUNS = 1 + max(map(len, SOUNDED.values()))
"""Generations of the pictures: an uncached one, and one for each branch."""


class NotMeasured(Exception):
    """`str()` says why."""


PICTURES = Field("pictures", "Pictures", 2, "Seeds by which each branch is judged.", minimum=1, maximum=16)


@dataclass(frozen=True)
class Wish:
    """`pictures`: of how many seeds each branch is judged."""

    pictures: int = PICTURES.default

    @classmethod
    def parse(cls, given: Any) -> Wish:
        """From `true`, or from an object with `pictures`. Raises `SettingsError`."""
        if given is True:
            return cls()
        if isinstance(given, Wish):
            return given
        if not isinstance(given, Mapping) or not set(given) <= {PICTURES.name}:
            raise SettingsError("measure", given, "true, or an object with pictures")
        return cls(**{name: PICTURES.parse(value) for name, value in given.items()})

    def cost(self, blocks: int = cost.USUAL_DEPTH) -> float:
        """In uncached pictures, on a UNet of so many output blocks."""
        sounded = SOUNDED.get(blocks, SOUNDED[cost.USUAL_DEPTH])
        return self.pictures * (1 + sum((1 + cost.share(branch, blocks)) / 2 for branch in sounded))


class Studio(Protocol):
    """Makes the pictures of some seeds, always of the same ones. `told`: what is being done, for whoever waits."""

    told: str

    @property
    def first_pass(self) -> PassOutcome:
        """Of the last pictures."""

    def make(self, settings: Mapping[str, Any]) -> Sequence[Any]:
        """The pictures with these settings. Raises `NotMeasured` where they are not what was asked for."""

    def scores(self, pictures: Sequence[Any], reference: Sequence[Any]) -> list[float]:
        """PSNR in dB of each picture. Raises `NotMeasured` where they cannot be compared."""


def measured(studio: Studio) -> tuple[MadeFor, Ageing]:
    """What was measured, by `SOUNDED`'s branches, and of what. Raises `NotMeasured`."""
    studio.told = "uncached"
    uncached = studio.make(WHOLE)
    made_for, scores = _made_for(studio.first_pass), {}
    branches = SOUNDED[made_for.blocks]
    for place, branch in enumerate(branches):
        studio.told = f"part {place + 1} of {len(branches)}"
        scores[branch] = studio.scores(studio.make(every_second(made_for, branch)), uncached)
    return made_for, ageing_of(scores)


def every_second(made_for: MadeFor, branch: int) -> dict[str, Any]:
    """The settings that cache every second evaluation at that branch, in the whole run."""
    return {
        "strategy": "custom",
        "full_evaluations": f"0-{made_for.steps - 1}:2",
        "cache_branch_id": branch,
        "deeper_branch_id": NO_DEEPER,
        "estimator": "auto",
        "start": 0.0,
        "end": 1.0,
    }


def ageing_of(scores: Mapping[int, Sequence[float]]) -> Ageing:
    """From the PSNR of each picture by branch, 0 among them, in dB. Raises `NotMeasured`."""
    if any(math.isnan(score) for those in scores.values() for score in those):
        raise NotMeasured("a picture holds what is not a number")
    if min(scores[0]) >= EQUAL:
        raise NotMeasured("nothing changed: it cannot be measured")
    means = {branch: fmean(min(score, EQUAL) for score in those) for branch, those in scores.items()}
    # The mean of errors' logarithms is that of their PSNR.
    return {branch: min(max(10 ** ((means[0] - mean) / 20), LEAST), MOST) for branch, mean in means.items()}


def _made_for(seen: PassOutcome) -> MadeFor:
    """`seen`: an uncached first pass. Raises `NotMeasured`."""
    ahead, ran = seen.planned.ahead, seen.report.evaluations
    if ahead.depth not in SOUNDED:
        known = " or ".join(map(str, sorted(SOUNDED)))
        raise NotMeasured(f"its UNet has {ahead.depth} output blocks: only those of {known} can be measured")
    if ahead.evaluations < FEW:
        raise NotMeasured(f"only {ahead.evaluations} steps: it needs {FEW} or more")
    if ran != ahead.evaluations:  # DPM adaptive
        raise NotMeasured(f"the sampler ran {ran} steps instead of {ahead.evaluations}")
    return MadeFor.of(ahead)
