"""The folder of calibrated plans: which of them fits a pass, and what else the pass does where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..plan.preview import PassAhead, PlannedPass, planned
from ..settings.fields import CALIBRATED, CUSTOM, NO_DEEPER
from ..settings.settings import Settings
from .profile import SAME_SPEED, CalibratedPlan, MadeFor, Profile, ProfileError, as_text, from_text

LARGEST = 2**20
"""Bytes; a file of ours has a few thousand. Chosen by hand."""


class Profiles:
    """A folder of profiles; None: there is none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def planned(self, settings: Settings, ahead: PassAhead) -> tuple[Settings, PlannedPass]:
        """As `preview.planned`, and the settings that it comes from, which need no profile to be followed again."""
        settings, why = self._applied(settings, ahead)
        found = planned(settings, ahead)
        return settings, replace(found, remark=why or found.remark)

    def _applied(self, settings: Settings, ahead: PassAhead) -> tuple[Settings, str]:
        """A calibrated strategy as a list of evaluations; or, where no profile fits, weighted, and why. A hires pass
        is weighted in any case (`Settings.for_pass`).
        """
        if settings.strategy != CALIBRATED or ahead.hires or not settings.covers(ahead.hires):
            return settings, ""
        try:
            plan = self.plan_for(MadeFor.of(ahead, settings), settings.speed_up)
        except ProfileError as error:
            instead = replace(settings, strategy="weighted", deeper_branch_id=NO_DEEPER)
            return instead, f"{error}: weighted instead of calibrated"
        if plan.branch != settings.cache_branch_id and settings.hires_cache_branch_id < 0:
            settings = replace(settings, hires_cache_branch_id=settings.cache_branch_id)
        return replace(
            settings,
            strategy="custom",
            preset=CUSTOM,
            full_evaluations=plan.evaluations,
            cache_branch_id=plan.branch,
            estimator=plan.estimator,
            deeper_branch_id=NO_DEEPER,
            hires_speed_up=settings.hires_speed_up or settings.speed_up,
        ), ""

    def plan_for(self, wanted: MadeFor, speed_up: float) -> CalibratedPlan:
        """The newest that fits. Raises `ProfileError`, with what is wrong about the profile that comes closest."""
        closest = -1, "nothing has been calibrated"
        for path, profile in self._all():
            if isinstance(profile, ProfileError):
                closest = max(closest, (0, f"profile {path.name}: {profile}"))
                continue
            fits, why = profile.made_for.misfit(wanted)
            plan = None if why else profile.plan_at(speed_up)
            if plan is not None:
                return plan
            speeds = " and ".join(f"{one.speed_up:g}x" for one in profile.plans) or "no speed-up"
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
        """Write a plan beside those of other speed-ups, in the place of one of the same. A file of that name that
        cannot be read is kept under another. Raises `OSError`, and `ProfileError` without a folder.
        """
        if self._folder is None:
            raise ProfileError("there is no folder for profiles")
        profile = Profile(made_for, (plan,))
        path = self._folder / profile.file_name
        before = _read(path) if path.exists() else None
        if isinstance(before, ProfileError):
            path.replace(path.with_suffix(".unread"))
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
            for path in sorted(self._folder.glob("*.json"), key=_age):
                yield path, _read(path)


class Held(Profiles):
    """Profiles that a program holds itself."""

    def __init__(self, *profiles: Profile) -> None:
        super().__init__()
        self._profiles = profiles

    def _all(self) -> Iterator[tuple[Path, Profile | ProfileError]]:
        for profile in self._profiles:
            yield Path(profile.file_name), profile


def _age(path: Path) -> tuple[float, str]:
    """The newest first."""
    try:
        return -path.stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def _read(path: Path) -> Profile | ProfileError:
    try:
        if path.stat().st_size > LARGEST:
            raise ProfileError("it is too large")
        return from_text(path.read_text(encoding="utf-8"))
    except ProfileError as error:
        return error
    except (OSError, UnicodeDecodeError) as error:
        return ProfileError(f"it cannot be read: {error}")
