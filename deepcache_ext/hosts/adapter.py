"""What all hosts' adapters share: a generation's hooks from its beginning to its end, its settings, what is told of it.

Facts of the hosts: `before_process` begins a run of `process_images`; `postprocess_batch` comes before the text under a
batch's pictures is written, `postprocess` (SD.Next: the callback `on_after_process`) when the run is over.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from modules import shared

from ..measure.store import Profiles
from ..measure.trial import NotMeasured, Wish
from ..plan.preview import PassAhead, PlannedPass
from ..report.pass_report import Reason
from ..report.run_report import RunOutcome
from ..session.onlooker import Onlooker
from ..session.session import Session
from ..settings.fields import INFOTEXT_KEYS, SettingsError
from ..settings.settings import Settings, overridden, overruled, parse
from ..unet.ladder import AnyLadder
from .generations import Generation, Generations, kind_of
from .measurer import measure

log = logging.getLogger("deepcache")

NO_PASS = "no pass of the UNet was seen"
STOPPED = "switched off in mid-run"


def guarded(method: Callable[..., None]) -> Callable[..., None]:
    """An error of ours never stops a generation: it is logged once, and the pass goes on uncached."""

    @functools.wraps(method)
    def safe(self: Adapter, *args: Any) -> None:
        if self.disabled:
            try:
                self.stop()  # switched off on the settings page while a generation was under way
            except Exception:
                log.exception("error inside DeepCache, which is switched off")
            return
        try:
            method(self, *args)
        except Exception:
            self._give_up()

    return safe


class Adapter:
    """Takes the script's hooks and the host's callbacks. One instance serves both tabs.

    `disabled`: the kill switch; every hook then does nothing. It may be thrown at any time. `last_run`: what the
    latest generation that came to its end did, in whichever tab or through the API; None before the first.
    `profiles`: where what was measured is kept. `trusted`: names of other people's code in the UNet that the user calls
    harmless; it may be exchanged at any time.
    """

    inactive = ""
    """Why nothing is cached on this host, in words."""

    pastes_updates_only = False
    """Whether what a function reads out of a pasted infotext must be Gradio's update."""

    hides_ticks = False
    """Whether the page shows no tick in an accordion's head."""

    def __init__(self, disabled: bool = False, profiles: Profiles | None = None) -> None:
        self.disabled = disabled
        self.profiles = profiles or Profiles()
        self.trusted: Collection[str] = ()
        self.last_run: RunOutcome | None = None
        self._generations = Generations()
        self._said: set[str] = set()
        self._failed = self._measures = False
        self._measured = ""

    # Before a run -------------------------------------------------------------------------------------------

    def foresee(self, values: Mapping[str, Any]) -> list[PassAhead]:
        """The passes that a page's controls or a request ask for; none where the host does not tell before a run."""
        return []

    def branches(self) -> int:
        """How many the loaded checkpoint's UNet has; 0 where that is not known."""
        return 0

    def refused(self) -> str:
        """Why the loaded checkpoint's UNet cannot be cached, in words; "" where it can, or where none is loaded."""
        return ""

    # Script hooks -------------------------------------------------------------------------------------------

    @guarded
    def measure(self, p: Any, args: Sequence[Any], asked: Any) -> None:
        """A generation begins and shall measure the model first. `asked`: what `Wish.parse` takes, or None for not at
        all.
        """
        if asked is None or asked is False or self._measures:
            return
        self._measures, self._failed = True, False
        try:
            wish, _ = Wish.parse(asked), settings_of(p, args)
            if getattr(p, "deepcache_overrides", None):
                raise NotMeasured("a script sets DeepCache's settings for each picture; measure without it")
            path, profile = measure(p, wish, lambda: self.last_run, self.profiles)
        except (SettingsError, NotMeasured) as why:
            self._measured = f"not measured: {why}"
        except Exception as error:  # the host's own, as when memory runs out
            log.exception("measuring failed")
            self._measured = f"not measured: {type(error).__name__}: {error}"
        else:
            self._measured = f"measured: {profile.in_words}; saved as {path.name}"
        finally:
            self._measures = False
        self._say(p, self._measured)

    @guarded
    def before_process(self, p: Any, args: Sequence[Any]) -> None:
        """A generation begins; `args` are the script's own values."""
        self._failed = False
        self._begin(p, args)

    def before_sampling(self, p: Any, args: Sequence[Any]) -> None:
        """A pass begins, or a batch with all of its passes."""
        raise NotImplementedError

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
            self._tell_unseen(p, generation)

    @guarded
    def after_process(self, p: Any) -> None:
        """The generation has ended."""
        generation = self._generations.of(p)
        if generation is not None:
            try:
                self._end_pass(p, generation)
                self._tell_unseen(p, generation)
            finally:
                self._generations.end(generation)
                self.last_run = generation.outcome  # of nested generations the outer one is the last to end

    # Host callbacks -----------------------------------------------------------------------------------------

    def on_cfg_denoiser(self, params: Any) -> None:
        """An evaluation begins, on hosts that announce it."""

    def on_cfg_after_cfg(self, params: Any) -> None:
        """An evaluation's calls are over, on hosts that say so."""

    @guarded
    def on_model_loaded(self, _model: Any) -> None:
        """Other weights, in the same UNet object or in a new one."""
        for session in self._generations.sessions():
            session.drop(Reason.WEIGHTS)

    @guarded
    def on_script_unloaded(self) -> None:
        self.stop()

    def stop(self) -> None:
        """End whatever is under way, and leave every UNet as it was. No hook of ours tells of the pictures to come."""
        for generation in self._generations.all():
            p = generation.p()
            if p is not None and generation.settings.enabled:
                p.extra_generation_params["DeepCache"] = STOPPED
        self._generations.end_all()

    # Inner workings -----------------------------------------------------------------------------------------

    def _begin(self, p: Any, args: Sequence[Any]) -> Generation:
        wrong = ""
        # Scripts make one p, or copies that share this, again and again.
        for key in () if self._generations.share_text(p) else INFOTEXT_KEYS:
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
        outcome = RunOutcome(kind_of(p), settings, wrong)
        generation = self._generations.begin(p, getattr(shared.state, "time_start", None), settings, outcome)
        if not self._measures:
            outcome.measured, self._measured = self._measured, ""
        if settings.enabled:
            p.extra_generation_params.update(generation.infotext())
        return generation

    def _begin_batch(self, p: Any, generation: Generation) -> None:
        """A pass is announced: where it is a batch's first, what was told of the batch before is not of this one. What
        keeps a generation from being cached is: a hires pass may follow a first one of which there is no report.
        """
        if generation.session is None and not generation.reports and not self._generations.share_text(p):
            generation.seen = False
            if generation.outcome.inactive == NO_PASS:
                generation.outcome.inactive = ""
            p.extra_generation_params.pop("DeepCache", None)
            if generation.outcome.inactive:
                p.extra_generation_params["DeepCache"] = f"not active: {generation.outcome.inactive}"

    def _planned(self, p: Any, generation: Generation, ahead: PassAhead) -> PlannedPass:
        """The pass's plan; one of a measured model goes into the settings, and so into the infotext."""
        settings, found = self.profiles.planned(generation.settings, ahead)
        if settings is not generation.settings:
            generation.settings = generation.outcome.settings = settings
            for key in INFOTEXT_KEYS:
                p.extra_generation_params.pop(key, None)
        generation.plans(found)
        p.extra_generation_params.update(generation.infotext())
        return found

    def _session(self, found: PlannedPass, ladder: Callable[[Any], AnyLadder]) -> Session:
        kind = Session if found.plan.caches else Onlooker
        return kind(
            found.plan,
            found.estimator,
            hires=found.hires,
            ladder=ladder,
            nature=found.ahead.nature,
            trusted=self.trusted,
        )

    def _end_pass(self, p: Any, generation: Generation) -> None:
        report = generation.end_pass()
        if report is None:
            return
        p.extra_generation_params.update(generation.infotext())
        if report.off:
            self._say(p, f"not active: {report.off}")
        elif report.misses and not report.cached_calls:
            self._say(p, f"no speed-up: {report.reasons()[0][1]}")

    def _tell_unseen(self, p: Any, generation: Generation) -> None:
        """The settings are under the picture: where nothing came of them, that must be there too."""
        if generation.is_unseen:
            self._set_aside(p, generation, NO_PASS)

    def _set_aside(self, p: Any, generation: Generation, why: str) -> None:
        """This generation is not cached."""
        generation.outcome.inactive = why
        p.extra_generation_params["DeepCache"] = f"not active: {why}"
        self._say(p, f"not active: {why}")

    def _give_up(self) -> None:
        """While an error of our own is handled: leave the UNet clean and cache nothing more in what is under way."""
        if not self._failed:
            log.exception("error inside DeepCache; the picture is made without it")
        self._failed = True
        active = self._generations.active
        if active is None:
            return
        active.ready = False
        active.outcome.inactive = Reason.ERROR.value
        if active.session is not None:
            active.session.turn_off(Reason.ERROR.value)
        p = active.p()
        if p is not None:
            p.extra_generation_params["DeepCache"] = f"not active: {Reason.ERROR.value}"

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


def is_hires(p: Any) -> bool:
    """Whether the pass at hand is a hires pass."""
    return bool(getattr(p, "is_hr_pass", False))
