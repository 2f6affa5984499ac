"""SD.Next: diffusers' pipelines under the WebUI's script hooks.

Facts of the host: no callback announces an evaluation, so the UNet's own calls drive the clock; one `process_batch`
covers the base pass, the hires pass (`p.is_hr_pass`) and the refiner's (`p.is_refiner_pass`, another pipeline with its
own UNet); the pipeline object changes from pass to pass, its UNet does not. An interrupt or an exception skips
`postprocess`, but neither `postprocess_batch` nor the callback `on_after_process`. Pictures carry no comments.
Reprocess (`p.state`) goes on with the p of the run before, which no hook shows. Its own cache (compile backend
deep-cache) stays set for good, with the pipeline that it works on.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Sequence
from typing import Any

from modules import sd_models_compile, shared
from torch import nn

from ..measure.store import Profiles
from ..plan.preview import PassAhead, planned
from ..python.driver import Driver, Here
from ..python.unet_clock import Clock, nature_of
from ..session.session import Session
from ..unet.compiled import COMPILED, is_compiled
from ..unet.diffusers import DiffusersLadder
from ..unet.support import UnknownLayout
from .adapter import Adapter, guarded, is_hires, sampler_of
from .checkpoint import checkpoint_of

OWN_CACHE = "SD.Next's own DeepCache is active (model compile backend deep-cache); both at once would cache twice"

TORCHS_COMPILERS = ("", "inductor", "cudagraphs")
"""Backends of the host's *Model Compile* that are torch's own; "" for none."""


class SDNext(Adapter):
    """The adapter; `on_after_process` goes to `after_process`. `generation.ready` holds from `process_batch` to
    `postprocess_batch`: UNet calls outside of that are not ours, nor are other threads'.
    """

    pastes_updates_only = True
    """It looks for a plain value's name among those that the user wants left alone, and fails over a function, the
    whole paste with it.
    """

    hides_ticks = True
    """The styles of both its themes have `display: none` for the tick of an `InputAccordion`, which it has for
    extensions alone.
    """

    def __init__(self, disabled: bool = False, profiles: Profiles | None = None) -> None:
        super().__init__(disabled, profiles)
        self._drivers: dict[int, Driver] = {}
        self._thread = 0

    def refused(self) -> str:
        # To ask for the model would load it.
        unet = getattr(shared.sd_model, "unet", None) if getattr(shared, "sd_loaded", False) else None
        # The page may ask in mid-run, and would take our own shadows for another extension's.
        return "" if unet is None or id(unet) in self._drivers else why_not(unet)

    # Script hooks -------------------------------------------------------------------------------------------

    @guarded
    def before_sampling(self, p: Any, args: Sequence[Any]) -> None:
        """A batch begins: its passes show in the UNet's calls."""
        generation = self._generations.of(p) or self._begin(p, args)
        for driver in self._drivers.values():
            driver.end_passes()
        self._end_pass(p, generation)
        self._begin_batch(p, generation)
        self._thread = threading.get_ident()
        generation.announce(False, True)
        if not generation.settings.enabled:
            return
        for unet in [getattr(pipe, "unet", None) for pipe in pipelines(running(p))]:
            why = why_not(unet)
            if why:
                self._set_aside(p, generation, why)
            elif id(unet) not in self._drivers:
                self._drivers[id(unet)] = self._driver_of(unet)
        generation.ready = bool(self._drivers)

    @guarded
    def after_batch(self, p: Any) -> None:
        super().after_batch(p)
        self._release()

    @guarded
    def after_process(self, p: Any) -> None:
        super().after_process(p)
        self._release()

    def stop(self) -> None:
        for generation in self._generations.all():
            generation.ready = False
        self._release()
        super().stop()

    # The UNet's calls ---------------------------------------------------------------------------------------

    def _driver_of(self, unet: Any) -> Driver:
        return Driver(
            unet,
            here=self._here,
            begin=functools.partial(self._begin_pass, unet),
            end=self._file,
            say=self._refuse,
            failed=self._give_up,
        )

    def _release(self) -> None:
        """Take our hooks off, unless an outer generation still samples."""
        if any(generation.ready for generation in self._generations.all()):
            return
        for driver in self._drivers.values():
            driver.release()
        self._drivers.clear()

    def _here(self) -> Here | None:
        """None for what runs between batches, for other threads, and once the kill switch is thrown."""
        generation = self._generations.active
        p = generation.p() if generation is not None and generation.ready else None
        if p is None or self.disabled or self._thread != threading.get_ident():
            return None
        now = running(p)
        pipe = pipelines(now)[-1 if is_refiner(now) else 0]
        return Here(getattr(pipe, "scheduler", None), (generation, is_hires(now), is_refiner(now)))

    def _begin_pass(self, unet: nn.Module, here: Here, clock: Clock) -> Session | None:
        generation = self._generations.active
        p = generation.p() if generation is not None else None
        if generation is None or p is None:
            return None
        generation.seen = True
        if getattr(p, "deepcache_told", ""):  # each job of the host's has wiped it away
            shared.state.textinfo = p.deepcache_told
        now, settings = running(p), generation.settings
        if not settings.covers(is_hires(now)):
            return None
        sigmas = clock.noise_levels(here.scheduler)
        checkpoint, checksum = checkpoint_of(shared.sd_model)
        ahead = PassAhead(
            hires=is_hires(now),
            total=clock.remaining or 0,
            sigmas=None if sigmas is None else tuple(sigmas),
            depth=DiffusersLadder(unet).depth,
            nature=nature_of(here.scheduler),
            checkpoint=checkpoint,
            checksum=checksum,
            sampler=sampler_of(p),
        )
        if is_refiner(now) and settings.is_of_one_pass:
            generation.plans(found := planned(settings.for_pass(hires=True), ahead))
        else:
            found = self._planned(p, generation, ahead)
        if found.remark:
            self._say(p, found.remark)
        session = generation.session = self._session(found, DiffusersLadder)
        if found.refusal:
            session.turn_off(found.refusal)
        return session

    def _file(self, session: Session) -> None:
        """A pass has ended; another one of the same batch may follow."""
        for generation in self._generations.all():
            p = generation.p()
            if generation.session is session and p is not None:
                ready = generation.ready
                self._end_pass(p, generation)
                generation.ready = ready

    def _refuse(self, message: str) -> None:
        active = self._generations.active
        self._say(active.p() if active is not None else None, message)


def pipelines(p: Any) -> list[Any]:
    """The pipelines whose UNets may run in this batch: the model's, and the refiner's where one is asked for."""
    wanted = [shared.sd_model]
    if (getattr(p, "refiner_steps", 0) or 0) > 0:
        wanted.append(getattr(shared, "sd_refiner", None))
    return [pipe for pipe in wanted if pipe is not None]


def running(p: Any) -> Any:
    """The p whose passes run: at Reprocess's refining the last run's, which the host then goes on with."""
    if getattr(p, "state", "") != "reprocess_refine":
        return p
    last = getattr(sys.modules.get("modules.processing_diffusers"), "last_p", None)
    return last if getattr(last, "state", "") == p.state else p  # the host gives it that state when it takes it up


def why_not(unet: Any) -> str:
    """Why a UNet cannot be cached, in words, or ""."""
    worker = getattr(sd_models_compile, "deepcache_worker", None)
    if worker is not None and getattr(getattr(worker, "pipe", None), "unet", unet) is unet:
        return OWN_CACHE
    try:
        DiffusersLadder(unet)
    except UnknownLayout as reason:
        return str(reason)
    backend = shared.opts.cuda_compile_backend if is_compiled(unet) else ""
    return "" if backend in TORCHS_COMPILERS else f"{COMPILED} by {backend}, which was not tried"


def is_refiner(p: Any) -> bool:
    """Whether the pass at hand is the refiner's."""
    return bool(getattr(p, "is_refiner_pass", False))
