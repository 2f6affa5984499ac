"""The folder of profiles: which of them is of a pass's model, and the plan that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..plan.ageing import Ageing
from ..plan.noise import are_known
from ..plan.preview import PassAhead, PlannedPass, planned
from ..settings.evaluation_list import written
from ..settings.fields import AS_FIRST_PASS_BRANCH, CUSTOM, MAX_TEXT, NO_DEEPER
from ..settings.settings import Settings
from .profile import MadeFor, Profile, ProfileError, as_text, from_text

LARGEST = 2**16
"""Bytes; a file of ours has some hundreds. Chosen by hand."""

MEASURED = "as measured on this model"


class Profiles:
    """A folder of profiles; None: there is none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def planned(self, settings: Settings, ahead: PassAhead) -> tuple[Settings, PlannedPass]:
        """As `preview.planned`, with the model's own ageing where it was measured; and the settings that it comes
        from, which need no profile to be followed again.
        """
        ageing = self._ageing(settings, ahead)
        if ageing is None:
            return settings, planned(settings, ahead)
        first = planned(settings, ahead, ageing)
        own = _repeating(settings, first)
        if own is None:
            return settings, planned(settings, ahead)
        hint = f"{MEASURED}; {first.hint}" if first.hint else MEASURED
        return own, replace(planned(own, ahead), hint=hint)

    def _ageing(self, settings: Settings, ahead: PassAhead) -> Ageing | None:
        """Of the pass's model, where the settings leave the branches to the plan and the plan goes by noise levels."""
        if settings.strategy != "weighted" or settings.cache_branch_id or settings.deeper_branch_id != NO_DEEPER:
            return None
        if ahead.hires or not settings.covers(ahead.hires):
            return None
        if not are_known(ahead.sigmas):
            return None
        wanted = MadeFor.of(ahead)
        return next((one.whole for one in self.known() if one.made_for.fits(wanted)), None)

    def of_model(self, wanted: MadeFor) -> dict[bool, Profile]:
        """The newest of the same model for samplers that add fresh noise (True), and for others."""
        same = [one for one in self.known() if one.made_for.is_same_model(wanted)]
        return {one.made_for.fresh_noise: one for one in reversed(same)}

    def add(self, profile: Profile) -> Path:
        """Write one, in the place of an earlier one of the same model and kind of sampler. A file of that name that
        cannot be read is kept under another. Raises `OSError`, and `ProfileError` without a folder.
        """
        if self._folder is None:
            raise ProfileError("there is no folder for profiles")
        path = self._folder / profile.file_name
        if path.exists() and isinstance(_read(path), ProfileError):
            path.replace(path.with_suffix(".unread"))
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")  # written beside and then moved: never half a file
        fresh.write_text(as_text(profile), encoding="utf-8")
        fresh.replace(path)
        return path

    def known(self) -> Iterator[Profile]:
        """Those that can be read, the newest first."""
        return (one for _, one in self._all() if isinstance(one, Profile))

    def unread(self) -> list[str]:
        """Which files cannot be used, and why."""
        return [f"profile {path.name}: {one}" for path, one in self._all() if isinstance(one, ProfileError)]

    def _all(self) -> Iterator[tuple[Path, Profile | ProfileError]]:
        if self._folder is not None and self._folder.is_dir():
            for path in sorted(self._folder.glob("*.json"), key=_age):
                yield path, _read(path)


class Held(Profiles):
    """Profiles that a program holds itself, the newest first."""

    def __init__(self, *profiles: Profile) -> None:
        super().__init__()
        self._profiles = profiles

    def _all(self) -> Iterator[tuple[Path, Profile | ProfileError]]:
        for profile in self._profiles:
            yield Path(profile.file_name), profile


def _repeating(settings: Settings, found: PlannedPass) -> Settings | None:
    """The settings that give this first pass's plan without a profile, and to a hires pass what it had; None where
    nothing is cached, or where the list would be too long.
    """
    if not found.live_branches:
        return None
    kinds = {kind: [k for k, one in enumerate(found.kinds) if one == kind] for kind in ("full", "medium")}
    branch, deeper = min(found.plan.branches), max(found.plan.branches)
    text = written(kinds["full"], kinds["medium"], deeper)
    if len(text) > MAX_TEXT:
        return None
    hires_branch = settings.hires_cache_branch_id
    if hires_branch == AS_FIRST_PASS_BRANCH and branch != settings.cache_branch_id:
        hires_branch = settings.cache_branch_id
    return replace(
        settings,
        strategy="custom",
        preset=CUSTOM,
        full_evaluations=text,
        cache_branch_id=branch,
        hires_speed_up=settings.hires_speed_up or settings.speed_up,
        hires_cache_branch_id=hires_branch,
    )


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
