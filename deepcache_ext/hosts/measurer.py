"""Measuring with the host's own generations: pictures as they are asked for, uncached and cached branch by branch.

Facts of the hosts: inside `before_process`, which runs before anything else of a generation, another one can be made of
a copy of `p`, with all scripts, in the queue's turn and with the progress bar of the one that waits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from modules import processing, shared

from ..measure.profile import Profile, ProfileError
from ..measure.store import Profiles
from ..measure.trial import RUNS, NotMeasured, Wish, measured
from ..report.psnr import psnr
from ..report.run_report import PassOutcome, RunOutcome

EXTRA_PICTURES = ("return_mask", "return_mask_composite")
"""Options of hosts that put more among the pictures."""


def measure(p: Any, wish: Wish, latest: Callable[[], RunOutcome | None], profiles: Profiles) -> tuple[Path, Profile]:
    """Measure the model by the first pass that `p` asks for, and save what was found; `p` keeps a drawn seed and is
    else left as it is. `latest`: what the last generation did. Raises `NotMeasured`.
    """
    # Not `fix_seed`: SD.Next's makes a list of one seed, too short for a batch, and the picture itself fails.
    p.seed, p.subseed = processing.get_fixed_seed(p.seed), processing.get_fixed_seed(p.subseed)
    studio = _Studio(p, wish, latest)
    try:
        profile = Profile(*measured(studio), wish.pictures)
    finally:
        studio.close()
    try:
        return profiles.add(profile), profile
    except (OSError, ProfileError) as error:
        raise NotMeasured(f"the profile could not be saved: {error}") from error


class _Studio:
    """Pictures of `p` from one seed on. `first_pass`: of the last ones."""

    first_pass: PassOutcome

    def __init__(self, p: Any, wish: Wish, latest: Callable[[], RunOutcome | None]) -> None:
        if isinstance(p.seed, (list, tuple)):
            raise NotMeasured("a script chooses the seed of each picture; choose none")
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
        state.job_count = state.job_no + RUNS * self._iterations + self._waiting

    def make(self, settings: Mapping[str, Any]) -> list[Any]:
        """The pictures; no hires pass, nothing saved. Raises `NotMeasured` where they are not what was asked for."""
        shared.state.textinfo = told = ": ".join(filter(None, ("DeepCache measures this model", self.told)))
        before = self._latest()
        # In img2img the VAE may draw from the common generator: each run, and then the picture, gets the same.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            made = processing.process_images(self._again(settings, told))
        state = shared.state
        if state.interrupted or state.skipped or getattr(state, "stopping_generation", False):
            raise NotMeasured("interrupted, nothing was saved")
        run = self._latest()
        self._check(run if run is not before else None)
        first = getattr(made, "index_of_first_image", 0)
        images = list(made.images[first : first + self._pictures]) if made is not None else []
        if len(images) < self._pictures:
            raise NotMeasured(f"the host made {len(images)} pictures instead of {self._pictures}")
        return images

    def scores(self, pictures: Sequence[Any], reference: Sequence[Any]) -> list[float]:
        """See `trial.Studio`."""
        pairs = list(zip(pictures, reference, strict=True))
        if any(one.size != other.size for one, other in pairs):
            raise NotMeasured("the host made pictures of different sizes")
        return [psnr(one.convert("RGB"), other.convert("RGB")) for one, other in pairs]

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
        """That it ran as planned: what was not cached would count as ageless, what broke off as a picture."""
        passes = [] if run is None else [one for one in run.passes if not one.report.hires]
        wrong = next((one.report.off for one in passes if one.report.off), run.error if run is not None else "")
        if wrong or len(passes) < self._iterations:
            raise NotMeasured(f"a run did not go as planned: {wrong or 'not all passes of the UNet were seen'}")
        self.first_pass = passes[0]
        self._evaluations = self._evaluations or passes[0].report.evaluations
        if any(one.report.evaluations != self._evaluations for one in passes[: self._iterations]):
            raise NotMeasured("a run broke off, or had another number of steps")
