"""SD.Next: diffusers' pipelines under the WebUI's script hooks.

Facts of the host: no callback announces an evaluation, so the UNet's own calls drive the clock; one `process_batch`
covers the base pass, the hires pass (`p.is_hr_pass`) and the refiner's (`p.is_refiner_pass`, another pipeline with its
own UNet); the pipeline object changes from pass to pass, its UNet does not. An interrupt or an exception skips
`postprocess`, but neither `postprocess_batch` nor the callback `on_after_process`. Pictures carry no comments.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modules import sd_models_compile, shared
from torch import nn

from ..calibrate.store import Profiles
from ..plan.preview import PassAhead, planned
from ..python.unet_clock import Beat, Clock, nature_of
from ..report.pass_report import Reason
from ..session.session import Session
from ..unet.diffusers import DiffusersLadder
from ..unet.hooks import register_after
from ..unet.ladder import AnyLadder, Arguments
from ..unet.support import UnknownLayout
from .a1111.adapter import A1111, guarded, sampler_of
from .checkpoint import checkpoint_of
from .generations import Generation

log = logging.getLogger("deepcache")

OWN_CACHE = "SD.Next's own DeepCache is active (model compile backend deep-cache); both at once would cache twice"


class SDNext(A1111):
    """The adapter; `on_after_process` goes to `after_process`. `generation.ready` holds from `process_batch` to
    `postprocess_batch`: UNet calls outside of that are not ours.
    """

    def __init__(self, disabled: bool = False, profiles: Profiles | None = None) -> None:
        super().__init__(disabled, profiles)
        self._clock = Clock()
        self._pass: tuple[int, bool, bool] | None = None
        self._watched: dict[int, tuple[nn.Module, list[Any]]] = {}
        self._calls = self._calls_before = 0
        self._thread = 0

    # Script hooks -------------------------------------------------------------------------------------------

    @guarded
    def before_sampling(self, p: Any, args: Sequence[Any]) -> None:
        """A batch begins: its passes show in the UNet's calls."""
        generation = self._generations.of(p) or self._begin(p, args)
        self._end_pass(p, generation)
        self._clock.forget()
        self._pass, self._thread = None, threading.get_ident()
        if not generation.settings.enabled:
            return
        if getattr(sd_models_compile, "deepcache_worker", None) is not None:
            self._say(p, f"not active: {OWN_CACHE}")
            return
        unets = [getattr(pipe, "unet", None) for pipe in pipelines(p)]
        for unet in unets:
            why = _why_not(unet)
            if why:
                self._say(p, f"not active: {why}")
            else:
                self._watch(unet)
        generation.ready = True

    @guarded
    def after_batch(self, p: Any) -> None:
        super().after_batch(p)
        self._release()

    @guarded
    def after_process(self, p: Any) -> None:
        super().after_process(p)
        self._release()

    def stop(self) -> None:
        super().stop()
        self._release()

    # The model ----------------------------------------------------------------------------------------------

    def ladder_of(self, unet: Any) -> AnyLadder:
        return DiffusersLadder(unet)

    def _watch(self, unet: Any) -> None:
        if id(unet) not in self._watched:
            self._watched[id(unet)] = (
                unet,
                [
                    unet.register_forward_pre_hook(self._before, with_kwargs=True),
                    register_after(unet, self._after),
                ],
            )

    def _release(self) -> None:
        """Take our hooks off, unless an outer generation still samples."""
        if any(generation.ready for generation in self._generations.all()):
            return
        for _, handles in self._watched.values():
            for handle in handles:
                handle.remove()
        self._watched.clear()
        self._clock.forget()

    def __deepcopy__(self, _memo: Any) -> SDNext:
        # A copy of a hooked UNet carries our hooks: they must stay this object's, which leaves other UNets alone.
        return self

    # The UNet's calls ---------------------------------------------------------------------------------------

    def _before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        generation = self._ours(unet)
        if generation is None:
            return None
        try:
            self._look(generation, unet, args, kwargs)
        except Exception:
            if not self._failed:
                log.exception("error inside DeepCache; the picture is made without it")
            self._give_up()
        return generation.session.before(unet, args, kwargs) if generation.session is not None else None

    def _after(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        generation = self._ours(unet)
        if generation is None or generation.session is None:
            return None
        session = generation.session
        instead = session.after(unet, args, kwargs, output)
        if self._clock.remaining == 1 and self._calls == self._calls_before and not session.is_in_call:
            self._file(generation)  # nothing is to come: what was kept need not lie about while the VAE works
        return instead

    def _ours(self, unet: nn.Module) -> Generation | None:
        """The generation that this call belongs to; None for copies, other threads and what runs between batches, and
        once the kill switch is thrown, but for the end of a call that has begun.
        """
        generation = self._generations.active
        session = generation.session if generation is not None else None
        if self.disabled and (session is None or not session.is_in_call):
            return None
        if id(unet) not in self._watched or self._thread != threading.get_ident():
            return None
        return generation if generation is not None and generation.ready else None

    def _look(self, generation: Generation, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where the call stands: in a new pass, in a new evaluation, or in the same one."""
        p, session = generation.p(), generation.session
        if p is None or (session is not None and session.is_in_call):
            return
        pipe = pipelines(p)[-1 if _is_refiner(p) else 0]
        scheduler = getattr(pipe, "scheduler", None)
        x = args[0] if args else kwargs["sample"]
        beat = self._clock.look(x, args[1] if len(args) > 1 else kwargs["timestep"], scheduler)
        here = id(unet), _is_hires(p), _is_refiner(p)
        if here != self._pass:
            self._pass, beat = here, Beat.PASS
        if beat is Beat.CALL:
            self._calls += 1
            return
        self._calls_before, self._calls = (0 if beat is Beat.PASS else self._calls), 1
        if beat is Beat.PASS:
            self._file(generation)
            if generation.settings.covers(_is_hires(p)):
                generation.session = self._new_session(p, generation, unet, scheduler)
        session = generation.session
        if session is None:
            return
        if session.plan.caches:
            try:
                session.attach(unet, hooked=False)
            except UnknownLayout as reason:
                session.turn_off(str(reason))
                self._say(p, f"not active: {reason}")
        sigma = None
        if session.estimator.name == "forecast":
            sigma = self._clock.noise_level(scheduler)
        session.tick(lambda: x, sigma)

    def _new_session(self, p: Any, generation: Generation, unet: nn.Module, scheduler: Any) -> Session:
        if getattr(p, "deepcache_told", ""):  # each job of the host's has wiped it away
            shared.state.textinfo = p.deepcache_told
        hires, total = _is_hires(p), self._clock.remaining
        settings = generation.settings
        sigmas = self._clock.noise_levels(scheduler)
        ahead = PassAhead(
            hires,
            total or 0,
            None if sigmas is None else tuple(sigmas),
            _depth(unet),
            nature_of(scheduler),
            *checkpoint_of(shared.sd_model),
            sampler_of(p),
        )
        if _is_refiner(p) and settings.is_of_one_pass:
            generation.planned = found = planned(settings.for_pass(hires=True), ahead)
            generation.estimators.add(found.estimator.name)
        elif total is None:  # no list of timesteps: only a plan that needs no end can be followed
            generation.planned = found = planned(replace(settings, strategy="uniform"), ahead)
            generation.estimators.add(found.estimator.name)
        else:
            found = self._planned(p, generation, ahead)
        if found.remark and total is not None:
            self._say(p, found.remark)
        session = Session(found.plan, found.estimator, hires=hires, ladder=self.ladder_of)
        if total is None and (settings.start > 0 or settings.end < 1):
            session.turn_off("start and end need the number of evaluations, which cannot be known here")
        return session

    def _file(self, generation: Generation) -> None:
        """End the pass; another one of the same batch may follow."""
        p = generation.p()
        if p is not None:
            self._end_pass(p, generation)
            generation.ready = True

    def _give_up(self) -> None:
        super()._give_up()
        active = self._generations.active
        p = active.p() if active is not None else None
        if p is not None:
            p.extra_generation_params["DeepCache"] = f"not active: {Reason.ERROR.value}"

    def _say(self, p: Any, message: str) -> None:
        super()._say(p, message)
        if message.startswith("not active"):  # there are no comments under a picture here
            p.extra_generation_params["DeepCache"] = message


def pipelines(p: Any) -> list[Any]:
    """The pipelines whose UNets may run in this batch: the model's, and the refiner's where one is asked for."""
    wanted = [shared.sd_model]
    if (getattr(p, "refiner_steps", 0) or 0) > 0:
        wanted.append(getattr(shared, "sd_refiner", None))
    return [pipe for pipe in wanted if pipe is not None]


def _why_not(unet: Any) -> str:
    try:
        DiffusersLadder(unet)
    except UnknownLayout as reason:
        return str(reason)
    return ""


def _depth(unet: nn.Module) -> int:
    return DiffusersLadder(unet).depth


def _is_hires(p: Any) -> bool:
    return bool(getattr(p, "is_hr_pass", False))


def _is_refiner(p: Any) -> bool:
    return bool(getattr(p, "is_refiner_pass", False))
