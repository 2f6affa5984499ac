"""DeepCache for Python programs that run diffusers' pipelines: `DeepCache`, and what it reports.

with DeepCache(pipe, cache_interval=3, cache_branch_id=0) as cache:
    image = pipe("a photo of a cat").images[0]
print(cache.report())
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn

from ..measure.profile import Profile
from ..measure.store import Held
from ..measure.trial import PICTURES, NotMeasured, Wish, measured
from ..plan.ageing import Ageing
from ..plan.preview import PassAhead, PlannedPass
from ..report.pass_report import PassReport, summary
from ..report.run_report import PassOutcome
from ..session.onlooker import Onlooker
from ..session.session import Session
from ..settings.fields import FIELD, SettingsError
from ..settings.settings import Settings, parse
from ..unet.compiled import inner
from ..unet.diffusers import DiffusersLadder
from ..unet.hooks import is_hooked, remove_inert
from ..unet.support import UnknownLayout
from .driver import Driver, Here
from .trials import Trials
from .unet_clock import Clock, nature_of

log = logging.getLogger("deepcache")

PASSES_REPORTED = 100
"""So many passes are kept for `report()`, so that a program that runs for days does not grow. Chosen by hand."""

COMPILED_LATE = "the UNet was compiled while DeepCache was enabled; enable it anew"


@dataclass(frozen=True)
class Report:
    """What happened: one `PassReport` for each run of a pipeline, the latest ones last. `str()` says it in words."""

    passes: tuple[PassReport, ...]
    inactive: str = ""
    """Why nothing can be cached at all, in words; empty when it can."""

    def __str__(self) -> str:
        if self.inactive:
            return f"not active: {self.inactive}"
        return "\n".join([summary(self.passes) or "nothing has run yet", *(x for p in self.passes for x in p.lines())])


class DeepCache:
    """Caches a diffusers UNet while it is enabled: a context manager, or `enable` and `disable`.

    Each run of a pipeline is a pass of its own; a loop by hand may say so itself (`new_run`). A UNet that cannot be
    cached runs as ever, and `report()` says why. Where several threads run one UNet, each has passes of its own, and
    their calls of the UNet wait for one another.
    """

    def __init__(
        self,
        target: Any,
        *,
        preset: str | None = None,
        speed_up: float | None = None,
        cache_interval: int | None = None,
        cache_branch_id: int | None = None,
        deeper_branch_id: int | None = None,
        estimator: str | None = None,
        strategy: str | None = None,
        full_evaluations: str | None = None,
        center: float | None = None,
        power: float | None = None,
        start: float | None = None,
        end: float | None = None,
        trusted: Collection[str] = (),
    ) -> None:
        """The settings mean what they mean in the WebUI. None: not given, and then the preset decides, or the default.

        target: a pipeline with a `unet`, whose scheduler then tells the noise levels and how many evaluations there
            are, or the UNet alone.
        preset: "Quality" (the default), "Balanced" or "Fast"; "Custom" where all is given.
        speed_up: how many times faster the UNet's calls shall be together, 1 to 5.
        cache_interval: every Nth evaluation is full, 1 to 50; with that alone the strategy is "uniform".
        cache_branch_id: the part of the UNet that runs at the others, 0 (the least) to the number of up layers less 1.
        deeper_branch_id: a larger part, which runs at every second evaluation that would run the whole UNet; 0: none of
                your own (weighted plans choose both where cache_branch_id is 0 too).
        estimator: what stands for the skipped part, "auto", "copy" or "forecast".
        strategy: "weighted" (by noise level), "uniform", "non-uniform" (the paper's) or "custom".
        full_evaluations: with "custom", which ones are full, for instance "0-3, 6, 9, 12-29:3".
        center: with "non-uniform", where in the run full evaluations lie densest, 0 to 1.
        power: with "non-uniform", how much denser they are there, 1 (evenly) to 3.
        start: the fraction of a run before which nothing is cached.
        end: the fraction of a run after which nothing is cached.
        trusted: other people's code in the UNet that may be skipped, by the names that `report()` gives where it keeps
            DeepCache off.

        Raises `SettingsError` for a value that cannot be used, `TypeError` for a target without a UNet.

            DeepCache(pipe, preset="Balanced")
            DeepCache(pipe.unet, cache_interval=3, cache_branch_id=0, estimator="copy")
        """
        given = {
            "preset": preset,
            "speed_up": speed_up,
            "cache_interval": cache_interval,
            "cache_branch_id": cache_branch_id,
            "deeper_branch_id": deeper_branch_id,
            "estimator": estimator,
            "strategy": strategy,
            "full_evaluations": full_evaluations,
            "center": center,
            "power": power,
            "start": start,
            "end": end,
        }
        known = {name: value for name, value in given.items() if value is not None}
        self.settings = parse([{"enabled": True, **known}])
        self._target, self._trusted = target, tuple(trusted)
        self._unet = unet_of(target)
        self._outcomes: deque[PassOutcome] = deque(maxlen=PASSES_REPORTED)
        self._plans: dict[Session, PlannedPass] = {}
        """Of the passes under way."""
        self._profiles = Held()
        self._driver: Driver | None = None
        self._failed = False
        self._told: set[str] = set()
        self._inactive = ""
        try:
            self._depth = DiffusersLadder(self._unet).depth
        except UnknownLayout as reason:
            self._inactive = str(reason)
        else:
            self._check_branches()

    def enable(self) -> DeepCache:
        """Hook the UNet; nothing on it is replaced. Returns this object.

        Raises `ValueError` when a DeepCache is enabled on it already, as diffusers' `enable_cache` does.

            cache = DeepCache(pipe, cache_interval=3).enable()
        """
        self._unet = self._as_it_is_now()
        remove_inert(inner(self._unet))
        if is_hooked(inner(self._unet)):
            raise ValueError("a DeepCache is enabled on this UNet already; disable it first")
        if self._inactive:
            log.warning("not active: %s", self._inactive)
            return self
        self._failed = False
        # Made here and given up in `disable`: object and driver know each other, which would hold the pipeline longer.
        self._driver = Driver(
            self._unet, here=self._here, begin=self._begin_pass, end=self._file, say=_warn, failed=self._give_up
        )
        return self

    def disable(self) -> None:
        """Leave the UNet as it was and free what was kept. May be called twice, and in the middle of a run.

        cache.disable()
        """
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.release()

    def __enter__(self) -> DeepCache:
        return self.enable()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    def new_run(self) -> None:
        """Say that the next call of the UNet in this thread belongs to another picture. A pipeline's run, and a loop
        over a list of timesteps, shows by itself; for loops that call the UNet with timesteps of their own making.

            for seed in range(4):
                cache.new_run()
                for t in (981.0, 741.0, 501.0, 261.0, 21.0):
                    noise = unet(latent, t, prompt).sample
        """
        if self._driver is not None:
            self._driver.end_pass()

    def report(self) -> Report:
        """What happened since this object was made, in the last `PASSES_REPORTED` passes.

        print(cache.report())                                # in words
        print(cache.report().passes[-1].cached_calls)
        """
        under_way = [session.report for session in self._driver.sessions] if self._driver is not None else []
        is_late = self._driver is not None and self._driver.is_left_out(self._as_it_is_now())
        passes = (*(one.report for one in self._outcomes), *under_way)
        return Report(passes, self._inactive or (COMPILED_LATE if is_late else ""))

    def measure(self, make: Callable[[int], Any], *, pictures: int = PICTURES.default, seed: int = 0) -> Ageing:
        """Measure how fast this model's features age, in the time of about 6 uncached pictures. From now on weighted
        plans that name no branch follow it, at every speed-up and number of steps, with schedulers of the same kind:
        those that add fresh noise, or the others. No other thread may run the UNet meanwhile.

        make: the picture of a seed, by one run of the pipeline: a PIL image, an array or a tensor; or a list of them.
        pictures: seeds by which each branch is judged, 1 to 16.
        seed: the first one.

        Returns, by branch, the error of the picture where every second evaluation is cached there, in units of branch
        0's. Raises `NotMeasured`, and `SettingsError` for a number that cannot be used; all is then as before.

            cache = DeepCache(pipe, speed_up=2.0)
            ageing = cache.measure(lambda seed: pipe(prompt, generator=torch.Generator().manual_seed(seed)).images)
        """
        wish = Wish.parse({"pictures": pictures})
        if self._inactive:
            raise NotMeasured(self._inactive)
        asked, was_enabled = self.settings, self._driver is not None
        if not was_enabled:
            self.enable()
        try:
            found = Profile(*measured(Trials(self._tried, asked, make, wish.pictures, seed)), wish.pictures)
        finally:
            self.settings = asked
            if not was_enabled:
                self.disable()
        self._profiles = Held(found, *self._profiles.known())
        return found.ageing

    def _tried(self, settings: Settings, run: Callable[[], Any]) -> tuple[Any, list[PassOutcome]]:
        """What a run gives with these settings instead, and its passes, which no report will tell of."""
        self.new_run()
        told, self._outcomes = self._outcomes, deque()
        self.settings = settings
        try:
            made = run()
            self.new_run()
            return made, list(self._outcomes)
        finally:
            self.new_run()
            self._outcomes = told

    def _as_it_is_now(self) -> nn.Module:
        """The UNet that this was made for; the pipeline's own where that is the same, compiled meanwhile."""
        now = unet_of(self._target)
        return now if inner(now) is inner(self._unet) else self._unet

    # What the driver asks -----------------------------------------------------------------------------------

    def _here(self) -> Here | None:
        return None if self._failed else Here(getattr(self._target, "scheduler", None))

    def _begin_pass(self, here: Here, clock: Clock) -> Session:
        sigmas, nature = clock.noise_levels(here.scheduler), nature_of(here.scheduler)
        ahead = PassAhead(
            hires=False,
            total=clock.remaining or 0,
            sigmas=None if sigmas is None else tuple(sigmas),
            depth=self._depth,
            nature=nature,
            sampler=type(here.scheduler).__name__,
        )
        _, planned = self._profiles.planned(self.settings, ahead)
        if planned.remark:
            _warn(planned.remark)
        kind = Session if planned.plan.caches else Onlooker
        session = kind(planned.plan, planned.estimator, ladder=DiffusersLadder, nature=nature, trusted=self._trusted)
        self._plans[session] = planned
        if planned.refusal:
            session.turn_off(planned.refusal)
        return session

    def _file(self, session: Session) -> None:
        report = session.close()
        self._outcomes.append(PassOutcome(self._plans.pop(session), report))
        if report.off and report.off not in self._told:
            self._told.add(report.off)
            _warn(f"cached no further: {report.off}")

    def _give_up(self) -> None:
        log.exception("error inside DeepCache; the UNet goes on uncached until it is enabled anew")
        self._failed = True

    def _check_branches(self) -> None:
        for name in ("cache_branch_id", "deeper_branch_id"):
            value, lowest = getattr(self.settings, name), FIELD[name].minimum
            if value >= self._depth:
                raise SettingsError(name, value, f"a whole number from {lowest:g} to {self._depth - 1} for this UNet")


def _warn(message: str) -> None:
    log.warning("%s", message)


def unet_of(target: Any) -> nn.Module:
    """The UNet of a pipeline, or `target` where it is one. Raises TypeError."""
    unet = getattr(target, "unet", target)
    if not isinstance(unet, nn.Module):
        raise TypeError(f"{type(target).__name__} is no pipeline with a UNet, nor a UNet")
    return unet
