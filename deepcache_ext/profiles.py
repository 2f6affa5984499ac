"""Calibrated plans as small files to keep and to share: what each was made for, and whether it fits a pass.

A file holds the plans, by speed-up, for one checkpoint, sampler and list of noise levels (and with it the number of
steps, the schedule and, in img2img, the denoising strength). It is text, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .foresight import PassAhead, PlannedPass, planned
from .settings import AS_IT_PAYS, CALIBRATED, CUSTOM, Settings, ranges

VERSION = 1
LARGEST = 2**20
"""Bytes; a file of ours has a few thousand."""

NEAR = 0.02
"""How far apart, in log sigma, noise levels may lie and still be the same."""

SAME_SPEED = 0.02
"""So much may a wanted speed-up differ from a calibrated one."""


class ProfileError(ValueError):
    """A file that cannot be used; `str()` says why."""


@dataclass(frozen=True)
class MadeFor:
    """`checksum`: of the checkpoint, as the host tells it, "" where it does not. `sigmas`: of each evaluation.
    `branch`: what cached evaluations run (`cache_branch_id`). `blocks`: how many output blocks the UNet has.
    """

    checkpoint: str
    checksum: str
    sampler: str
    sigmas: tuple[float, ...]
    branch: int
    blocks: int

    @classmethod
    def of(cls, ahead: PassAhead, branch: int) -> MadeFor:
        """Raises `ProfileError` where the noise levels of the pass are not known."""
        if not ahead.sigmas or not all(0 < sigma < math.inf for sigma in ahead.sigmas):
            raise ProfileError("the noise levels of this run are not known beforehand")
        sigmas = tuple(round(sigma, 5) for sigma in ahead.sigmas)
        return cls(ahead.checkpoint, ahead.checksum, ahead.sampler, sigmas, branch, ahead.depth)

    def misfit(self, other: MadeFor) -> tuple[int, str]:
        """Why what was made for this does not fit `other`, in words, or ""; and how many of the things that are
        compared do fit.
        """
        known = self.checksum and other.checksum
        same = self.checksum == other.checksum if known else self.checkpoint == other.checkpoint
        count, wanted = len(self.sigmas), len(other.sigmas)
        checks = (
            (same, f"made for checkpoint {self.titled}, this is {other.titled}"),
            (self.sampler == other.sampler, f"made for sampler {self.sampler}, this is {other.sampler}"),
            (count == wanted, f"made for {count} evaluations, this run has {wanted}"),
            (self._lies_near(other), "made for other noise levels (schedule, denoising strength)"),
            (self.branch == other.branch, f"made for branch {self.branch}, not {other.branch}"),
            (self.blocks == other.blocks, f"made for a UNet of {self.blocks} output blocks"),
        )
        return next(((k, why) for k, (fits, why) in enumerate(checks) if not fits), (len(checks), ""))

    @property
    def titled(self) -> str:
        return f"{self.checkpoint} [{self.checksum[:10]}]" if self.checksum else self.checkpoint

    def _lies_near(self, other: MadeFor) -> bool:
        pairs = zip(self.sigmas, other.sigmas, strict=False)
        return all(abs(math.log(a / b)) <= NEAR for a, b in pairs)


@dataclass(frozen=True)
class CalibratedPlan:
    """`evaluations`: as typed for the strategy `custom`. `psnr`: mean over `pictures` that the search did not see, to
    the uncached ones, in dB; `weighted_psnr`: of the same pictures with the weighted plan. `tries`: how many plans were
    tried.
    """

    speed_up: float
    evaluations: str
    psnr: float
    weighted_psnr: float
    pictures: int
    tries: int

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
        raise ProfileError(f"it is of version {str(version)[:20]}, this DeepCache reads version {VERSION}")
    if checksum != _digest(body):
        raise ProfileError("its checksum is wrong: it was changed or damaged")
    try:
        given = body["made_for"]
        made_for = MadeFor(**{**given, "sigmas": tuple(float(sigma) for sigma in given["sigmas"])})
        plans = tuple(_plan(**one) for one in body["plans"])
        _check(made_for, plans)
    except (ValueError, TypeError, KeyError) as error:
        raise ProfileError(f"it cannot be read: {error}") from error
    return Profile(made_for, plans)


def _plan(
    *, speed_up: Any, evaluations: Any, psnr: Any, weighted_psnr: Any, pictures: Any, tries: Any
) -> CalibratedPlan:
    if not isinstance(evaluations, str):
        raise ValueError("evaluations")
    return CalibratedPlan(
        float(speed_up), evaluations, float(psnr), float(weighted_psnr), int(pictures), int(tries)
    )


def _check(made_for: MadeFor, plans: tuple[CalibratedPlan, ...]) -> None:
    if not made_for.sigmas or not all(0 < sigma < math.inf for sigma in made_for.sigmas):
        raise ValueError("noise levels")
    if not all(isinstance(one, str) for one in (made_for.checkpoint, made_for.checksum, made_for.sampler)):
        raise ValueError("names")
    for one in plans:
        if not 1 <= float(one.speed_up) <= 5 or any(b is not None and b <= made_for.branch for _, b in ranges(
            one.evaluations
        )):
            raise ValueError("plans")


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Profiles:
    """A folder of profiles; None: there is none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def planned(self, settings: Settings, ahead: PassAhead) -> tuple[Settings, PlannedPass]:
        """As `foresight.planned`, and the settings that it comes from, which need no profile to be followed again."""
        settings, why = self._applied(settings, ahead)
        found = planned(settings, ahead)
        return settings, replace(found, remark=found.remark or why)

    def _applied(self, settings: Settings, ahead: PassAhead) -> tuple[Settings, str]:
        """A calibrated strategy as a list of evaluations; or, where no profile fits, weighted, and why. A hires pass
        is weighted in any case (`Settings.for_pass`).
        """
        if settings.strategy != CALIBRATED or ahead.hires or not settings.covers(ahead.hires):
            return settings, ""
        try:
            plan = self.plan_for(MadeFor.of(ahead, settings.cache_branch_id), settings.speed_up)
        except ProfileError as error:
            return replace(settings, strategy="weighted"), f"{error}: weighted instead of calibrated"
        return replace(
            settings, strategy="custom", preset=CUSTOM, full_evaluations=plan.evaluations,
            deeper_branch_id=AS_IT_PAYS, hires_speed_up=settings.hires_speed_up or settings.speed_up,
        ), ""

    def plan_for(self, wanted: MadeFor, speed_up: float) -> CalibratedPlan:
        """Raises `ProfileError`, with what is wrong about the profile that comes closest."""
        closest = -1, "nothing has been calibrated"
        for path, profile in self._all():
            if isinstance(profile, ProfileError):
                closest = max(closest, (0, f"profile {path.name}: {profile}"))
                continue
            fits, why = profile.made_for.misfit(wanted)
            plan = None if why else profile.plan_at(speed_up)
            if plan is not None:
                return plan
            speeds = " and ".join(f"{one.speed_up:g}x" for one in profile.plans)
            why = why or f"made for {speeds}, not {speed_up:g}x"
            closest = max(closest, (fits, f"profile {path.name}: {why}"))
        raise ProfileError(closest[1])

    def fitting(self, wanted: MadeFor) -> list[CalibratedPlan]:
        """All plans that fit, whatever their speed-up."""
        known = (profile for _, profile in self._all() if isinstance(profile, Profile))
        return sorted(
            (plan for profile in known if not profile.made_for.misfit(wanted)[1] for plan in profile.plans),
            key=lambda plan: plan.speed_up,
        )

    def add(self, made_for: MadeFor, plan: CalibratedPlan) -> Path:
        """Write a plan beside those of other speed-ups, in the place of one of the same. Raises `OSError`, and
        `ProfileError` without a folder.
        """
        if self._folder is None:
            raise ProfileError("there is no folder for profiles")
        profile = Profile(made_for, (plan,))
        path = self._folder / profile.file_name
        before = _read(path) if path.exists() else None
        if isinstance(before, Profile):
            others = (one for one in before.plans if abs(one.speed_up - plan.speed_up) > SAME_SPEED)
            profile = replace(profile, plans=(*others, plan))
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")  # written beside and then moved: never half a file
        fresh.write_text(as_text(profile), encoding="utf-8")
        fresh.replace(path)
        return path

    def _all(self) -> Iterator[tuple[Path, Profile | ProfileError]]:
        if self._folder is not None and self._folder.is_dir():
            for path in sorted(self._folder.glob("*.json")):
                yield path, _read(path)


def _read(path: Path) -> Profile | ProfileError:
    try:
        if path.stat().st_size > LARGEST:
            raise ProfileError("it is too large")
        return from_text(path.read_text(encoding="utf-8"))
    except ProfileError as error:
        return error
    except (OSError, UnicodeDecodeError) as error:
        return ProfileError(f"it cannot be read: {error}")
