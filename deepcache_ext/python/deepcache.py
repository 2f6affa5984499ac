"""DeepCache for Python programs that run diffusers' pipelines: `DeepCache`, and the interface of DeepCacheSDHelper.

with DeepCache(pipe, cache_interval=3, cache_branch_id=0) as cache:
    image = pipe("a photo of a cat").images[0]
print(cache.report())
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..plan.strategies import estimator_for, plan_for
from ..report.pass_report import PassReport, Reason, summary
from ..session.session import Session
from ..settings.fields import FIELD, FIELDS, SettingsError
from ..settings.settings import parse
from ..unet.diffusers import DiffusersLadder
from ..unet.hooks import register_after
from ..unet.ladder import Arguments
from ..unet.support import UnknownLayout, is_compiling
from .unet_clock import Beat, Clock, nature_of

log = logging.getLogger("deepcache")

SETTINGS = (
    "preset",
    "cache_interval",
    "cache_branch_id",
    "estimator",
    "start",
    "end",
    "strategy",
    "speed_up",
    "full_evaluations",
    "center",
    "power",
    "deeper_branch_id",
)
"""The settings that mean something outside the WebUI."""

PASSES_REPORTED = 100


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
    """Caches a diffusers UNet while it is enabled; a context manager, or `enable` and `disable`.

    `target`: a pipeline with a `unet` (its scheduler is then known, which a forecast and `start`/`end` profit from),
    or the UNet. Settings: those of `SETTINGS`, as in the WebUI; a value that cannot be used raises `SettingsError`.
    A UNet that cannot be cached runs as ever, and `report()` says why.

    Each run of a pipeline is a pass of its own; a loop by hand may say so itself (`new_run`). Runs of one UNet in
    several threads at a time are not supported.
    """

    def __init__(self, target: Any, **settings: Any) -> None:
        for name, value in settings.items():
            if name not in SETTINGS:
                known = name in {field.name for field in FIELDS}
                raise SettingsError(name, value, f"{'here ' if known else ''}the settings are {', '.join(SETTINGS)}")
        self.settings = parse([{"enabled": True, **settings}])
        self._target = target
        self._unet = unet_of(target)
        self._reports: deque[PassReport] = deque(maxlen=PASSES_REPORTED)
        self._clock = Clock()
        self._session: Session | None = None
        self._handles: list[Any] = []
        self._calls = self._calls_before = 0
        self._failed = False
        self._inactive = ""
        try:
            ladder = DiffusersLadder(self._unet)
        except UnknownLayout as reason:
            self._inactive = str(reason)
        else:
            for name in ("cache_branch_id", "deeper_branch_id"):
                if getattr(self.settings, name) >= ladder.depth:
                    lowest = FIELD[name].minimum
                    raise SettingsError(
                        name,
                        getattr(self.settings, name),
                        f"a whole number from {lowest:g} to {ladder.depth - 1} for this UNet",
                    )

    def enable(self) -> DeepCache:
        """Hook the UNet; nothing on it is replaced. Raises ValueError when it is hooked by a DeepCache already, as
        diffusers' `enable_cache` does.
        """
        hooks = self._unet._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), DeepCache) for hook in hooks):
            raise ValueError("a DeepCache is enabled on this UNet already; disable it first")
        if self._inactive:
            log.warning("not active: %s", self._inactive)
            return self
        self._failed = False
        self._handles = [
            self._unet.register_forward_pre_hook(self._before, with_kwargs=True),
            register_after(self._unet, self._after),
        ]
        return self

    def disable(self) -> None:
        """Leave the UNet as it was and free what was kept. May be called twice."""
        self._end_pass()
        self._clock.forget()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __deepcopy__(self, _memo: Any) -> DeepCache:
        # A copy of a hooked UNet carries our hooks: they must stay this object's, which leaves other UNets alone.
        return self

    def __enter__(self) -> DeepCache:
        return self.enable()

    def __exit__(self, *_: Any) -> None:
        self.disable()

    def new_run(self) -> None:
        """Say that the next call of the UNet belongs to another picture. A pipeline's run, and a loop over a list of
        timesteps, shows by itself; for loops that call the UNet with timesteps of their own making.
        """
        self._end_pass()
        self._clock.forget()

    def report(self) -> Report:
        """What happened since this object was made, in the last `PASSES_REPORTED` passes."""
        under_way = [self._session.report] if self._session is not None else []
        return Report((*self._reports, *under_way), self._inactive)

    # The hooks ----------------------------------------------------------------------------------------------

    def _before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if unet is not self._unet or self._failed or is_compiling():
            return None
        try:
            self._tick(args, kwargs)
        except Exception:
            log.exception("error inside DeepCache; the UNet goes on uncached until it is enabled anew")
            self._failed = True
            if self._session is not None:
                self._session.turn_off(Reason.ERROR.value)
                self._end_pass()
        return self._session.before(unet, args, kwargs) if self._session is not None else None

    def _after(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._session is None or unet is not self._unet or is_compiling():
            return None
        instead = self._session.after(unet, args, kwargs, output)
        if self._clock.remaining == 1 and self._calls == self._calls_before and not self._session.is_in_call:
            self._end_pass()  # nothing is to come: what was kept need not lie about while the VAE works
        return instead

    def _tick(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._session is not None and self._session.is_in_call:
            if _is_nested(self._unet):
                return
            # The call before was broken off by Ctrl-C, of which torch tells no hook.
            self._end_pass()
            self._clock.forget()
        x = args[0] if args else kwargs["sample"]
        scheduler = getattr(self._target, "scheduler", None)
        beat = self._clock.look(x, args[1] if len(args) > 1 else kwargs["timestep"], scheduler)
        if beat is Beat.PASS:
            self._end_pass()
            self._session = self._begin_pass(scheduler)
        if beat is Beat.CALL or self._session is None:
            self._calls += 1
            return
        self._calls_before, self._calls = self._calls, 1
        try:
            self._session.attach(self._unet, hooked=False)
        except UnknownLayout as reason:
            self._session.turn_off(str(reason))
            log.warning("not active: %s", reason)
        sigma = None
        if self._session.estimator.name == "forecast":
            sigma = self._clock.noise_level(scheduler)
        self._session.tick(lambda: x, sigma)

    def _begin_pass(self, scheduler: Any) -> Session:
        settings, total = self.settings, self._clock.remaining
        if total is None:  # no list of timesteps: only a plan that needs no end can be followed
            settings = replace(settings, strategy="uniform")
        sigmas = self._clock.noise_levels(scheduler)
        plan, remark = plan_for(
            settings,
            total or 0,
            sigmas,
            depth=DiffusersLadder(self._unet).depth,
            nature=nature_of(scheduler),
        )
        if remark and total is not None:
            log.warning("%s", remark)
        session = Session(plan, estimator_for(settings, plan, total or 0, sigmas), ladder=DiffusersLadder)
        if total is None and (settings.start > 0 or settings.end < 1):
            session.turn_off("start and end need the number of evaluations, which cannot be known here")
        return session

    def _end_pass(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._reports.append(session.close())


def unet_of(target: Any) -> nn.Module:
    """The UNet of a pipeline, or `target` where it is one. Raises TypeError."""
    unet = getattr(target, "unet", target)
    if not isinstance(unet, nn.Module):
        raise TypeError(f"{type(target).__name__} is no pipeline with a UNet, nor a UNet")
    return unet


def _is_nested(unet: nn.Module) -> bool:
    """Whether a call of the UNet runs inside another one: both are then on the stack."""
    frame, depth = sys._getframe(), 0
    while frame is not None and depth < 2:
        depth += frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self") is unet
        frame = frame.f_back  # type: ignore[assignment]
    return depth == 2
