"""Calibrating with the host's own generations: pictures as they are asked for, uncached and with plan after plan.

Facts of the hosts: inside `before_process`, which runs before anything else of a generation, another one can be made of
a copy of `p`, with all scripts, in the queue's turn and with the progress bar of the one that waits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from modules import processing, shared

from ..calibration import Branches, Found, Wanted, Wish, bounded, search
from ..likeness import psnr
from ..outcome import RunOutcome
from ..plan import UniformPlan
from ..profiles import CalibratedPlan, MadeFor, ProfileError, Profiles
from ..settings import AS_IT_PAYS, Settings
from ..strategies import FEW


class NotCalibrated(Exception):
    """`str()` says why."""


def calibrate(
    p: Any, settings: Settings, wish: Wish, latest: Callable[[], RunOutcome | None], profiles: Profiles
) -> tuple[Path, CalibratedPlan]:
    """Find the plan of `settings.speed_up` for the first pass that `p` asks for, and save it; `p` keeps a drawn seed
    and is else left as it is. `latest`: what the last generation did. Raises `NotCalibrated`.
    """
    processing.fix_seed(p)
    studio = _Studio(p, settings, wish)
    weighted = studio.make({"strategy": "weighted", "speed_up": settings.speed_up})
    wanted, made_for, first = _wanted(settings, latest())
    found = _search(wanted, first, wish.tries, studio, weighted)
    # Judged by pictures that the search has not seen: what was found by chance does not stand this.
    studio.seed += wish.pictures
    reference = studio.make({"enabled": False})
    before = after = _judged(studio, found.first, reference)
    if found.plan != found.first:
        after = _judged(studio, found.plan, reference)
    plan = found.plan if after > before else found.first
    calibrated = CalibratedPlan(
        settings.speed_up, plan, round(max(before, after), 2), round(before, 2), wish.pictures, found.tries
    )
    try:
        return profiles.add(made_for, calibrated), calibrated
    except (OSError, ProfileError) as error:
        raise NotCalibrated(f"the profile could not be saved: {error}") from error


def _wanted(settings: Settings, run: RunOutcome | None) -> tuple[Wanted, MadeFor, Branches]:
    """From the first pass of the run that is just over; with the plan that it followed. Raises `NotCalibrated`."""
    if run is None or not run.passes:
        raise NotCalibrated("no pass of the UNet was seen")
    ahead = run.passes[0].planned.ahead
    try:
        made_for = MadeFor.of(ahead, settings.cache_branch_id)
    except ProfileError as error:
        raise NotCalibrated(str(error)) from error
    if run.passes[0].report.off:
        raise NotCalibrated(f"not active: {run.passes[0].report.off}")
    count = len(made_for.sigmas)
    if count < FEW:
        raise NotCalibrated(f"only {count} evaluations: it needs {FEW} or more")
    window = UniformPlan(2, settings.cache_branch_id, count, settings.start, settings.end)
    must = frozenset(k for k in range(count) if window.is_outside(k))
    wanted = Wanted(
        made_for.sigmas, settings.speed_up, made_for.branch, made_for.blocks, ahead.nature, must
    )
    first = tuple(run.passes[0].planned.branches)
    if all(branch is None for branch in first):
        raise NotCalibrated(f"at a speed-up of {settings.speed_up:g} nothing is left out")
    return wanted, made_for, first


def _search(wanted: Wanted, first: Branches, tries: int, studio: _Studio, weighted: Sequence[Any]) -> Found:
    """`weighted`: the pictures of the plan `first`."""
    uncached = studio.make({"enabled": False})
    found = [_scores(weighted, uncached)]

    def judge(plan: str) -> list[float]:
        studio.told = f"plan {len(found) + 1} of {tries}, best {max(map(fmean, found)):.1f} dB"
        found.append(_scores(studio.make(_listed(plan)), uncached))
        return found[-1]

    return search(wanted, first, found[0], tries, judge)


def _judged(studio: _Studio, plan: str, reference: Sequence[Any]) -> float:
    return fmean(_scores(studio.make(_listed(plan)), reference))


def _listed(plan: str) -> dict[str, Any]:
    return {"strategy": "custom", "full_evaluations": plan, "deeper_branch_id": AS_IT_PAYS}


def _scores(images: Sequence[Any], reference: Sequence[Any]) -> list[float]:
    pairs = zip(images, reference, strict=True)
    return bounded([psnr(one.convert("RGB"), other.convert("RGB")) for one, other in pairs])


class _Studio:
    """Pictures of `p` from one seed on."""

    def __init__(self, p: Any, settings: Settings, wish: Wish) -> None:
        self._p, self._pictures = p, wish.pictures
        self._common = {"enabled": True, "passes": "both"}
        self.seed, self.told = int(p.seed), ""
        self._batch = min(max(int(p.batch_size), 1), wish.pictures)
        shared.state.job_count = wish.runs * self._iterations + int(p.n_iter)

    @property
    def _iterations(self) -> int:
        return -(-self._pictures // self._batch)

    def make(self, settings: Mapping[str, Any]) -> list[Any]:
        """The pictures; no hires pass, nothing saved. Raises `NotCalibrated` where the user has had enough."""
        shared.state.textinfo = ": ".join(filter(None, ("DeepCache calibrates", self.told)))
        again = copy.copy(self._p)
        again.extra_generation_params = dict(self._p.extra_generation_params)
        again.override_settings = dict(self._p.override_settings or {})
        again.deepcache_overrides, again.deepcache_calibrates = {**self._common, **settings}, True
        again.seed, again.batch_size, again.n_iter = self.seed, self._batch, self._iterations
        again.enable_hr = False
        again.do_not_save_samples = again.do_not_save_grid = True
        made = processing.process_images(again)
        if shared.state.interrupted or getattr(shared.state, "stopping_generation", False):
            raise NotCalibrated("interrupted, nothing was saved")
        first = getattr(made, "index_of_first_image", 0)
        images = list(made.images[first : first + self._pictures]) if made is not None else []
        if len(images) < self._pictures:
            raise NotCalibrated(f"the host made {len(images)} pictures instead of {self._pictures}")
        return images
