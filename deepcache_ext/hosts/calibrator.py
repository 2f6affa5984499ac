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

import torch
from modules import processing, shared

from ..calibrate.profile import CalibratedPlan, MadeFor, ProfileError
from ..calibrate.search import Found, Proposal, Wanted, Wish, bounded, search
from ..calibrate.store import Profiles
from ..plan.plan import UniformPlan
from ..plan.strategies import FEW
from ..report.psnr import psnr
from ..report.run_report import PassOutcome, RunOutcome
from ..settings.fields import NO_DEEPER
from ..settings.settings import Settings

WHOLE = {"strategy": "uniform", "cache_interval": 1}
"""Uncached, bit for bit, and yet with passes that tell how they went."""

EXTRA_PICTURES = ("return_mask", "return_mask_composite")
"""Options of hosts that put more among the pictures."""


class NotCalibrated(Exception):
    """`str()` says why."""


def calibrate(
    p: Any, settings: Settings, wish: Wish, latest: Callable[[], RunOutcome | None], profiles: Profiles
) -> tuple[Path, CalibratedPlan]:
    """Find the plan of `settings.speed_up` for the first pass that `p` asks for, and save it; `p` keeps a drawn seed
    and is else left as it is. `latest`: what the last generation did. Raises `NotCalibrated`.
    """
    # Not `fix_seed`: SD.Next's makes a list of one seed, too short for a batch, and the picture itself fails.
    p.seed, p.subseed = processing.get_fixed_seed(p.seed), processing.get_fixed_seed(p.subseed)
    studio = _Studio(p, wish, latest)
    try:
        weighted = {"strategy": "weighted", "speed_up": settings.speed_up, "deeper_branch_id": NO_DEEPER}
        pictures = studio.make(weighted)
        wanted, made_for = _wanted(settings, studio.first_pass)
        first = Proposal(tuple(studio.first_pass.planned.branches), settings.estimator)
        found = _search(wanted, first, wish.tries, studio, pictures)
        # Judged by pictures that the search has not seen: what was found by chance does not stand this.
        studio.seed += wish.pictures
        reference = studio.make(WHOLE)
        before = after = fmean(_scores(studio.make(_listed(found.first)), reference))
        if found.best != found.first:
            after = fmean(_scores(studio.make(_listed(found.best)), reference))
    finally:
        studio.close()
    plan = found.best if after > before else found.first
    calibrated = CalibratedPlan(
        settings.speed_up,
        plan.text,
        round(max(before, after), 2),
        round(before, 2),
        wish.pictures,
        found.tries,
        plan.branch,
        plan.estimator,
    )
    try:
        return profiles.add(made_for, calibrated), calibrated
    except (OSError, ProfileError) as error:
        raise NotCalibrated(f"the profile could not be saved: {error}") from error


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


def _search(wanted: Wanted, first: Proposal, tries: int, studio: _Studio, weighted: Sequence[Any]) -> Found:
    """`weighted`: the pictures of the plan `first`."""
    uncached = studio.make(WHOLE)
    found = [_scores(weighted, uncached)]

    def judge(plan: Proposal) -> list[float]:
        studio.told = f"plan {len(found) + 1} of {tries}, best {max(map(fmean, found)):.1f} dB"
        found.append(_scores(studio.make(_listed(plan)), uncached))
        return found[-1]

    return search(wanted, first, found[0], tries, judge)


def _listed(plan: Proposal) -> dict[str, Any]:
    return {
        "strategy": "custom",
        "full_evaluations": plan.text,
        "cache_branch_id": plan.branch,
        "estimator": plan.estimator,
        "deeper_branch_id": NO_DEEPER,
    }


def _scores(images: Sequence[Any], reference: Sequence[Any]) -> list[float]:
    if any(one.size != other.size for one, other in zip(images, reference, strict=True)):
        raise NotCalibrated("the host made pictures of different sizes")
    pairs = zip(images, reference, strict=True)
    return bounded([psnr(one.convert("RGB"), other.convert("RGB")) for one, other in pairs])


class _Studio:
    """Pictures of `p` from one seed on. `first_pass`: of the last ones."""

    first_pass: PassOutcome

    def __init__(self, p: Any, wish: Wish, latest: Callable[[], RunOutcome | None]) -> None:
        if isinstance(p.seed, (list, tuple)):
            raise NotCalibrated("a script chooses the seed of each picture; choose none")
        self._p, self._pictures, self._latest = p, wish.pictures, latest
        self.seed, self.told = int(p.seed), ""
        self._batch = max(int(p.batch_size), 1)
        if len(getattr(p, "init_images", None) or ()) <= 1:  # several need a batch that holds them
            self._batch = min(self._batch, wish.pictures)
        self._iterations = -(-wish.pictures // self._batch)
        self._evaluations = 0
        state = shared.state
        # A script that makes many pictures, as a grid, has said how many there are.
        self._waiting = state.job_count - state.job_no if state.job_count > 0 else int(p.n_iter)
        state.job_count = state.job_no + wish.runs * self._iterations + self._waiting

    def make(self, settings: Mapping[str, Any]) -> list[Any]:
        """The pictures; no hires pass, nothing saved. Raises `NotCalibrated` where they are not what was asked for."""
        shared.state.textinfo = told = ": ".join(filter(None, ("DeepCache calibrates", self.told)))
        before = self._latest()
        # In img2img the VAE may draw from the common generator: each plan, and then the picture, gets the same.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            made = processing.process_images(self._again(settings, told))
        state = shared.state
        if state.interrupted or state.skipped or getattr(state, "stopping_generation", False):
            raise NotCalibrated("interrupted, nothing was saved")
        run = self._latest()
        self._check(run if run is not before else None)
        first = getattr(made, "index_of_first_image", 0)
        images = list(made.images[first : first + self._pictures]) if made is not None else []
        if len(images) < self._pictures:
            raise NotCalibrated(f"the host made {len(images)} pictures instead of {self._pictures}")
        return images

    def close(self) -> None:
        """What is left to do is the generation that waits."""
        shared.state.job_count = shared.state.job_no + self._waiting
        shared.state.textinfo = None

    def _again(self, settings: Mapping[str, Any], told: str) -> Any:
        again = copy.copy(self._p)
        again.deepcache_told = told
        again.extra_generation_params = dict(self._p.extra_generation_params)
        again.override_settings = dict(self._p.override_settings or {})
        known = getattr(shared.opts, "data", {})
        again.override_settings.update({name: False for name in EXTRA_PICTURES if name in known})
        if isinstance(getattr(self._p, "comments", None), (dict, list)):
            again.comments = type(self._p.comments)()
        again.deepcache_overrides = {"enabled": True, "passes": "both", **settings}
        again.seed, again.batch_size, again.n_iter = self.seed, self._batch, self._iterations
        again.override_settings_restore_afterwards = True
        again.enable_hr = False
        again.do_not_save_samples = again.do_not_save_grid = True
        return again

    def _check(self, run: RunOutcome | None) -> None:
        """That it ran as planned: what was not cached would count as a perfect plan, what broke off as a picture."""
        passes = [] if run is None else [one for one in run.passes if not one.report.hires]
        wrong = next((one.report.off for one in passes if one.report.off), run.error if run is not None else "")
        if wrong or len(passes) < self._iterations:
            raise NotCalibrated(f"a run did not go as planned: {wrong or 'not all passes of the UNet were seen'}")
        self.first_pass = passes[0]
        self._evaluations = self._evaluations or passes[0].report.evaluations
        if any(one.report.evaluations != self._evaluations for one in passes[: self._iterations]):
            raise NotCalibrated("a run broke off, or had another number of steps")
