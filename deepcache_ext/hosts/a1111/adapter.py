"""AUTOMATIC1111 1.10: how its hooks and callbacks begin, drive and end a pass.

Facts of the host: one evaluation is one `CFGDenoiser.forward`, announced by `on_cfg_denoiser`; a crash runs no
post hook; the refiner swaps the checkpoint in mid-run before `on_cfg_denoiser`; `params.x` is the batch for all
UNet calls of the evaluation, unscaled, conds first.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from modules import shared

from ...calibrate.search import Wish
from ...calibrate.store import Profiles
from ...plan.importance import Nature
from ...plan.preview import PassAhead, PlannedPass
from ...report.pass_report import Reason
from ...report.run_report import RunOutcome
from ...session.session import Session
from ...settings.fields import INFOTEXT_KEYS, SettingsError
from ...settings.settings import Settings, overridden, overruled, parse
from ...unet.controlnet import ControlledLadder
from ...unet.ladder import AnyLadder
from ...unet.support import UnknownLayout
from ..calibrator import NotCalibrated, calibrate
from ..checkpoint import checkpoint_of, prediction_of
from ..generations import Generation, Generations
from .controlnet import control_units
from .networks import loaded_networks
from .schedule import adds_noise, noise_level, noise_levels

log = logging.getLogger("deepcache")


def guarded(method: Callable[..., None]) -> Callable[..., None]:
    """An error of ours never stops a generation: it is logged once, and the pass goes on uncached."""

    @functools.wraps(method)
    def safe(self: A1111, *args: Any) -> None:
        if self.disabled:
            try:
                self.stop()  # switched off on the settings page while a generation was under way
            except Exception:
                log.exception("error inside DeepCache, which is switched off")
            return
        try:
            method(self, *args)
        except Exception:
            if not self._failed:
                log.exception("error inside DeepCache; the picture is made without it")
            self._give_up()

    return safe


class A1111:
    """Takes the script's hooks and the host's callbacks. One instance serves both tabs.

    `disabled`: the kill switch; every hook then does nothing. It may be thrown at any time. `last_run`: what the
    latest generation that came to its end did, in whichever tab or through the API; None before the first.
    `profiles`: where calibrated plans are kept.
    """

    def __init__(self, disabled: bool = False, profiles: Profiles | None = None) -> None:
        self.disabled = disabled
        self.profiles = profiles or Profiles()
        self.last_run: RunOutcome | None = None
        self._generations = Generations()
        self._last_params: Callable[[], Any] = lambda: None
        self._said: set[str] = set()
        self._failed = self._calibrates = False
        self._calibrated = ""

    # Script hooks -------------------------------------------------------------------------------------------

    @guarded
    def calibrate(self, p: Any, args: Sequence[Any], asked: Any) -> None:
        """A generation begins and shall calibrate first. `asked`: what `Wish.parse` takes, or None for not at all."""
        if asked is None or asked is False or self._calibrates:
            return
        self._calibrates, self._failed = True, False
        try:
            wish, settings = Wish.parse(asked), settings_of(p, args)
            if getattr(p, "deepcache_overrides", None):
                raise NotCalibrated("a script sets DeepCache's settings for each picture; calibrate without it")
            path, plan = calibrate(p, settings, wish, lambda: self.last_run, self.profiles)
        except (SettingsError, NotCalibrated) as why:
            self._calibrated = f"not calibrated: {why}"
        except Exception as error:  # the host's own, as when memory runs out
            log.exception("calibrating failed")
            self._calibrated = f"not calibrated: {type(error).__name__}: {error}"
        else:
            self._calibrated = f"calibrated: {plan.in_words}; saved as {path.name}"
        finally:
            self._calibrates = False
        self._say(p, self._calibrated)

    @guarded
    def before_process(self, p: Any, args: Sequence[Any]) -> None:
        """A generation begins; `args` are the script's own values."""
        self._failed = False
        self._begin(p, args)

    @guarded
    def before_sampling(self, p: Any, args: Sequence[Any]) -> None:
        """A pass begins: the first one, a hires pass, or the next batch."""
        generation = self._generations.of(p) or self._begin(p, args)
        self._end_pass(p, generation)
        generation.ready = generation.settings.covers(_is_hires(p))

    @guarded
    def after_sampling(self, p: Any) -> None:
        """A pass has ended."""
        generation = self._generations.of(p)
        if generation is not None:
            self._end_pass(p, generation)

    @guarded
    def after_batch(self, p: Any) -> None:
        """All passes of a batch have ended."""
        generation = self._generations.of(p)
        if generation is not None:
            self._end_pass(p, generation)
            generation.reports.clear()

    @guarded
    def after_process(self, p: Any) -> None:
        """The generation has ended."""
        generation = self._generations.of(p)
        if generation is not None:
            try:
                self._end_pass(p, generation)
            finally:
                self._generations.end(generation)
                self.last_run = generation.outcome  # of nested generations the outer one is the last to end

    # Host callbacks -----------------------------------------------------------------------------------------

    @guarded
    def on_cfg_denoiser(self, params: Any) -> None:
        """An evaluation begins."""
        if params is self._last_params():  # registered twice, as after a reload of the page
            return
        # Weakly: through its denoiser it holds p, whose end tells that a crashed generation is over.
        self._last_params = weakref.ref(params)
        p = getattr(params.denoiser, "p", None)
        generation = self._generations.of(p)
        if generation is None:
            # No hook of ours ran for this generation (ADetailer filters scripts by name): not our evaluation.
            for other in self._generations.sessions():
                other.pause()
            return
        if generation.ready:
            self._begin_pass(p, generation, params)
        session = generation.session
        if session is not None:
            self._attach(p, session, params)
            sigma = noise_level(params, p) if session.estimator.name == "forecast" else None
            held = weakref.ref(params)
            session.tick(lambda: getattr(held(), "x", None), sigma)

    @guarded
    def on_model_loaded(self, _model: Any) -> None:
        """Other weights, in the same UNet object or in a new one."""
        for session in self._generations.sessions():
            session.drop(Reason.WEIGHTS)

    @guarded
    def on_script_unloaded(self) -> None:
        self.stop()

    def stop(self) -> None:
        """End whatever is under way, and leave every UNet as it was."""
        self._generations.end_all()

    # The model ----------------------------------------------------------------------------------------------

    def unet_of(self, p: Any, params: Any) -> Any:
        """The UNet that the host is about to call, at `on_cfg_denoiser`'s `params`; None where there is none. It
        changes when a refiner or another checkpoint takes over.
        """
        model = getattr(p, "sd_model", None) or shared.sd_model
        return getattr(getattr(model, "model", None), "diffusion_model", None)

    def ladder_of(self, unet: Any) -> AnyLadder:
        """The ladder of one of this host's UNets. Raises `UnknownLayout`."""
        return ControlledLadder(unet, control_units, lambda: loaded_networks(shared))

    # Inner workings -----------------------------------------------------------------------------------------

    def _begin(self, p: Any, args: Sequence[Any]) -> Generation:
        wrong = ""
        for key in INFOTEXT_KEYS:  # scripts make one p, or copies that share this, again and again
            p.extra_generation_params.pop(key, None)
        try:
            settings = settings_of(p, args)
            if not getattr(p, "deepcache_overrides", None):
                for note in overruled(args, settings):
                    self._say(p, note)
        except SettingsError as error:
            settings, wrong = Settings(enabled=False), str(error)
            self._say(p, f"{error}; this picture was made without caching")
            p.extra_generation_params["DeepCache error"] = wrong
        generation = self._generations.begin(p, getattr(shared.state, "time_start", None), settings)
        generation.outcome = RunOutcome("img2img" if hasattr(p, "init_images") else "txt2img", settings, wrong)
        if not self._calibrates:
            generation.outcome.calibrated, self._calibrated = self._calibrated, ""
        if settings.enabled:
            p.extra_generation_params.update(generation.infotext())
        return generation

    def _begin_pass(self, p: Any, generation: Generation, params: Any) -> None:
        """Now the host knows how many evaluations it expects."""
        generation.ready = False
        hires, model = _is_hires(p), getattr(p, "sd_model", None) or shared.sd_model
        total = getattr(params.denoiser, "total_steps", None) or params.total_sampling_steps
        blocks = getattr(self.unet_of(p, params), "output_blocks", None)
        sigmas = noise_levels(params, p, total)
        ahead = PassAhead(
            hires,
            total,
            None if sigmas is None else tuple(sigmas),
            len(blocks or ()),
            Nature(adds_noise(p), prediction_of(model)),
            *checkpoint_of(model),
            sampler_of(p),
        )
        found = self._planned(p, generation, ahead)
        generation.session = Session(found.plan, found.estimator, hires=hires, ladder=self.ladder_of)
        if found.remark:
            self._say(p, found.remark)

    def _planned(self, p: Any, generation: Generation, ahead: PassAhead) -> PlannedPass:
        """The pass's plan; a calibrated one goes into the settings, and so into the infotext."""
        settings, found = self.profiles.planned(generation.settings, ahead)
        if settings is not generation.settings:
            generation.settings = settings
            if generation.outcome is not None:
                generation.outcome.settings = settings
            for key in INFOTEXT_KEYS:
                p.extra_generation_params.pop(key, None)
            p.extra_generation_params.update(generation.infotext())
        generation.planned = found
        generation.estimators.add(found.estimator.name)
        return found

    def _attach(self, p: Any, session: Session, params: Any) -> None:
        if not session.plan.caches or session.is_off:
            return
        try:
            session.attach(self.unet_of(p, params))
        except UnknownLayout as reason:
            session.turn_off(str(reason))
            self._say(p, f"not active: {reason}")

    def _end_pass(self, p: Any, generation: Generation) -> None:
        report = generation.end_pass()
        if report is None:
            return
        p.extra_generation_params.update(generation.infotext())
        if report.off in (Reason.NO_EFFECT.value, Reason.ERROR.value):
            self._say(p, f"not active: {report.off}")

    def _give_up(self) -> None:
        """After an error of our own: leave the UNet clean and cache nothing more in what is under way."""
        self._failed = True
        active = self._generations.active
        if active is not None:
            active.ready = False
            if active.session is not None:
                active.session.turn_off(Reason.ERROR.value)

    def _say(self, p: Any, message: str) -> None:
        """Tell the user: under the picture every time, in the console once."""
        log.log(logging.DEBUG if message in self._said else logging.WARNING, "%s", message)
        self._said.add(message)
        comment = getattr(p, "comment", None)
        if comment is not None:
            comment(f"DeepCache: {message}")


def settings_of(p: Any, args: Sequence[Any]) -> Settings:
    """The script's own values, and on top of them what `p.deepcache_overrides` names (the axes of an XYZ grid)."""
    return overridden(parse(args), getattr(p, "deepcache_overrides", None) or {})


def sampler_of(p: Any) -> str:
    """As the host calls it."""
    return str(getattr(p, "sampler_name", "") or "")


def _is_hires(p: Any) -> bool:
    return bool(getattr(p, "is_hr_pass", False))
