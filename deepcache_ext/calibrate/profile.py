"""One profile: calibrated plans by speed-up, what they were made for, and the text of the file that holds them.

JSON with a version and a checksum over all the rest. The checksum tells damage, not who wrote it: every value is
checked as if a stranger had written it, and nothing in the file is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..plan import cost
from ..plan.preview import PassAhead
from ..settings.evaluation_list import custom, ranges
from ..settings.fields import FIELD, MAX_TEXT
from ..settings.settings import Settings

VERSION = 1

NEAR = 0.02
"""How far apart, in log sigma, noise levels may lie and still be the same. Chosen by hand."""

SAME_SPEED = 0.02
"""So much may a wanted speed-up differ from a calibrated one. Chosen by hand: the page's slider goes by 0.1."""

TOO_FAST = 1.15
"""A plan that is by more than this factor faster than it says is none of Calibrate's. Chosen by hand."""

LONGEST_NAME = 300
"""Letters of a checkpoint's or sampler's name in a file. Chosen by hand."""
MOST_EVALUATIONS = 1000
"""Of a run that a file is made for. Chosen by hand, far above any in use."""


class ProfileError(ValueError):
    """A profile that cannot be used; `str()` says why."""


@dataclass(frozen=True)
class MadeFor:
    """`checksum`: of the checkpoint, as the host tells it, "" where it does not. `sigmas`: of each evaluation.
    `branch`: what cached evaluations run (`cache_branch_id`). `blocks`: how many output blocks the UNet has. `start`
    and `end`: the part of the run in which anything is skipped.
    """

    checkpoint: str
    checksum: str
    sampler: str
    sigmas: tuple[float, ...]
    branch: int
    blocks: int
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def of(cls, ahead: PassAhead, settings: Settings) -> MadeFor:
        """Raises `ProfileError` where the noise levels of the pass are not known."""
        if not ahead.sigmas or not all(0 < sigma < math.inf for sigma in ahead.sigmas):
            raise ProfileError("the noise levels of this run are not known beforehand")
        return cls(
            ahead.checkpoint,
            ahead.checksum,
            ahead.sampler,
            tuple(round(sigma, 5) for sigma in ahead.sigmas),
            settings.cache_branch_id,
            ahead.depth,
            settings.start,
            settings.end,
        )

    def misfit(self, other: MadeFor) -> tuple[int, str]:
        """Why what was made for this does not fit `other`, in words, or ""; and how many of the things that are
        compared do fit.
        """
        known = self.checksum and other.checksum
        same = self.checksum == other.checksum if known else self.checkpoint == other.checkpoint
        count, wanted = len(self.sigmas), len(other.sigmas)
        window, other_window = (f"start {one.start:g} and end {one.end:g}" for one in (self, other))
        checks = (
            (same, f"made for checkpoint {self.titled}, this is {other.titled}"),
            (self.sampler == other.sampler, f"made for sampler {self.sampler}, this is {other.sampler}"),
            (count == wanted, f"made for {count} steps, this run has {wanted}"),
            (self._lies_near(other), "made for other noise levels (schedule, denoising strength)"),
            (self.branch == other.branch, f"made for branch {self.branch}, not {other.branch}"),
            (self.blocks == other.blocks, f"made for a UNet of {self.blocks} output blocks"),
            (window == other_window, f"made for {window}, not {other_window}"),
        )
        return next(((k, why) for k, (fits, why) in enumerate(checks) if not fits), (len(checks), ""))

    @property
    def titled(self) -> str:
        return f"{self.checkpoint} [{self.checksum}]" if self.checksum else self.checkpoint

    def _lies_near(self, other: MadeFor) -> bool:
        pairs = zip(self.sigmas, other.sigmas, strict=False)
        return all(abs(math.log(a) - math.log(b)) <= NEAR for a, b in pairs)


@dataclass(frozen=True)
class CalibratedPlan:
    """`evaluations`: as typed for the strategy `custom`; `branch` and `estimator`: what it runs with. `psnr`: mean over
    `pictures` that the search did not see, to the uncached ones, in dB; `weighted_psnr`: of the same pictures with the
    weighted plan. `tries`: how many plans were tried.
    """

    speed_up: float
    evaluations: str
    psnr: float
    weighted_psnr: float
    pictures: int
    tries: int
    branch: int = 0
    estimator: str = "auto"

    @property
    def in_words(self) -> str:
        """What was gained."""
        judged = f"on {self.pictures} other seeds"
        if self.psnr <= self.weighted_psnr:
            return f"none of {self.tries} plans came closer than the weighted one, {self.psnr:.1f} dB {judged}"
        return f"{self.psnr:.1f} dB instead of {self.weighted_psnr:.1f} {judged} at {self.speed_up:g}x"


@dataclass(frozen=True)
class Profile:
    made_for: MadeFor
    plans: tuple[CalibratedPlan, ...]

    def plan_at(self, speed_up: float) -> CalibratedPlan | None:
        return next((one for one in self.plans if abs(one.speed_up - speed_up) <= SAME_SPEED), None)

    @property
    def file_name(self) -> str:
        """Tells profiles apart, also those whose words are alike."""
        made_for = self.made_for
        words = f"{made_for.checkpoint}-{made_for.sampler}-{len(made_for.sigmas)}"
        return f"{re.sub(r'[^A-Za-z0-9.+]+', '-', words)[:100]}-{_digest(asdict(made_for))[:8]}.json"


def as_text(profile: Profile) -> str:
    """The file's text: JSON with a version, and a checksum over all the rest."""
    body = {"deepcache_profile": VERSION, **asdict(profile)}
    return json.dumps({**body, "checksum": _digest(body)}, indent=1) + "\n"


def from_text(text: str) -> Profile:
    """Raises `ProfileError`."""
    try:
        body = json.loads(text)
        version, checksum = body["deepcache_profile"], body.pop("checksum")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProfileError("it is not a profile of DeepCache") from error
    if version != VERSION:
        raise ProfileError(f"it is of version {version!r:.20}, this DeepCache reads version {VERSION}")
    try:
        if checksum != _digest(body):
            raise ProfileError("its checksum is wrong: it was changed or damaged")
        made_for = _made_for(**body["made_for"])
        return Profile(made_for, tuple(_plan(made_for, **one) for one in body["plans"]))
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"it cannot be read: {str(error)[:80]!r}") from error


def _made_for(
    *, checkpoint: Any, checksum: Any, sampler: Any, sigmas: Any, branch: Any, blocks: Any, start: Any, end: Any
) -> MadeFor:
    levels = tuple(_number(sigma, 1e-9, 1e9) for sigma in sigmas[: MOST_EVALUATIONS + 1])
    if not 0 < len(levels) <= MOST_EVALUATIONS:
        raise ValueError("noise levels")
    return MadeFor(
        _name(checkpoint),
        _name(checksum),
        _name(sampler),
        levels,
        int(_number(branch, 0, 100)),
        int(_number(blocks, 1, 100)),
        _number(start, 0, 1),
        _number(end, 0, 1),
    )


def _plan(
    made_for: MadeFor,
    *,
    speed_up: Any,
    evaluations: Any,
    psnr: Any,
    weighted_psnr: Any,
    pictures: Any,
    tries: Any,
    branch: Any,
    estimator: Any,
) -> CalibratedPlan:
    if not isinstance(evaluations, str) or len(evaluations) > MAX_TEXT:
        raise ValueError("evaluations")
    if estimator not in FIELD["estimator"].choices:
        raise ValueError("an estimator")
    own = int(_number(branch, made_for.branch, made_for.blocks - 1))
    if any(b is not None and not own < b < made_for.blocks for _, b in ranges(evaluations)):
        raise ValueError("a branch that the UNet has not")
    count, faster = len(made_for.sigmas), _number(speed_up, 1, 5)
    full, renewed, deeper = custom(evaluations, count, own)
    kinds = {**dict.fromkeys(renewed, deeper), **dict.fromkeys(full, None)}
    reached = cost.speed_up([kinds.get(k, own) for k in range(count)], made_for.blocks)
    if reached > TOO_FAST * faster:
        raise ValueError(f"a plan of {reached:.2f}x that says {faster:g}x")
    return CalibratedPlan(
        faster,
        evaluations,
        _number(psnr, 0, 1000),
        _number(weighted_psnr, 0, 1000),
        int(_number(pictures, 1, 1000)),
        int(_number(tries, 1, 100_000)),
        own,
        estimator,
    )


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"a number from {low:g} to {high:g}")
    return float(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError("a name")
    return value


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
