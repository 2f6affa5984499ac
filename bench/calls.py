"""Times of full and cached calls through a session, each beside the same work without one."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from deepcache_ext.plan.estimators import ESTIMATORS, Copy, Forecast
from deepcache_ext.session.session import Session

from . import unets
from .timing import Clock, Rival, Seconds, calls_for, rounds

HOOKED, PLAIN, BY_HAND = "hooked", "plain", "by hand"


@dataclass
class FullUntil:
    """A plan with full evaluations, whose features are all kept, up to `stop`; from there on cached ones.

    So a UNet whose full call takes seconds is run in full just as often as is measured.
    """

    branch: int
    stop: float = math.inf
    caches: bool = True

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,)

    def branch_at(self, evaluation: int) -> int | None:
        return None if self.is_full(evaluation) else self.branch

    def is_full(self, evaluation: int) -> bool:
        return evaluation < self.stop

    def last_full(self, evaluation: int) -> int:
        return int(min(evaluation, self.stop - 1))

    def source(self, evaluation: int) -> int:
        return self.last_full(evaluation)

    def worth_keeping(self, evaluation: int, keeps: int) -> bool:
        return True


class _Own:
    """What the benchmarks themselves put on a UNet is harmless."""

    def __contains__(self, name: object) -> bool:
        return str(name).startswith("bench.")


OWN: Any = _Own()


class Pass:
    """One session on one UNet, driven as a host drives it: an evaluation with one call at a time."""

    def __init__(self, unet: Any, given: unets.Inputs, branch: int, session: Session | None = None) -> None:
        self.unet, self.given = unet, given
        self.session = session or Session(FullUntil(branch), Forecast(), trusted=OWN)
        self.plan = self.session.plan
        self.session.attach(unet)
        self._latent = given["x"]
        self._arguments = tuple(given[name] for name in ("x", "timesteps", "context", "y") if name in given)
        self._sigma = 14.6

    def evaluate(self) -> torch.Tensor:
        """A tick and a call. The sigmas go down evenly in their logarithm, so that a forecast has to work."""
        self._sigma *= 0.99
        self.session.tick(self._get_latent, self._sigma)
        return self.unet(*self._arguments)

    def plain(self) -> torch.Tensor:
        return self.unet(*self._arguments)

    def hook(self) -> None:
        self.session.attach(self.unet)

    def unhook(self) -> None:
        self.session.unhook()

    def only_cached(self) -> None:
        """From the next evaluation on, run the live blocks only."""
        self.session.pause()
        self.plan.stop = self.session.report.evaluations

    def estimate_by(self, name: str) -> None:
        """Both estimators use what one session keeps, a copy just the newer feature: fewer full calls."""
        self.session.decisions.estimator = ESTIMATORS[name]()

    def _get_latent(self) -> torch.Tensor:
        return self._latent


@dataclass
class Measured:
    """What was measured, in seconds a call. `cached`: by branch, for each estimator and "by hand"."""

    full: Seconds = field(default_factory=lambda: {HOOKED: [], PLAIN: []})
    cached: dict[int, Seconds] = field(default_factory=dict)
    kept_bytes: dict[int, dict[str, int]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    """Why a figure must not be trusted: a call that was not cached, an output that was wrong."""


@contextlib.contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """No gradients; in half precision also autocast, under which A1111 runs its UNets."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


def measure(
    unet: Any,
    given: unets.Inputs,
    branches: Sequence[int],
    estimators: Sequence[str],
    clock: Clock,
    pairs: int,
    budget: float,
    least: int = 4,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Full calls hooked and plain (`pairs` pairs, shared among the branches), and for each branch cached
    calls against the live blocks by hand, for about `budget` seconds (at least `least` rounds).

    A hooked full call leaves the feature that the cached calls of its branch then use. All full calls come
    first and in one go: one that follows calls of another kind finds cold caches, and was seen to be slower.
    """
    result = Measured()
    started = time.perf_counter()
    wanted, features = unets.full(unet, given, branches)  # serves as warm-up too
    first = time.perf_counter() - started
    full_calls = 1 if first > 1 else calls_for(clock.time(lambda: unets.full(unet, given)))
    say(f"the first full call took {first:.1f} s")
    passes = []
    try:
        for i, branch in enumerate(branches):
            share = max(1, pairs // len(branches) + (i < pairs % len(branches)))
            say(f"branch {branch}: {share} pairs of full calls")
            passes.append(Pass(unet, given, branch))
            keeps = Forecast.keeps if Forecast.name in estimators else 1
            _full_pairs(passes[-1], result, clock, share, full_calls, wanted, keeps, reverse=i % 2 == 1)
        for one in passes:
            say(f"branch {one.plan.branch}: cached calls")
            one.hook()
            _cached_rounds(one, result, clock, features.pop(one.plan.branch), estimators, budget, least)
            one.unhook()
            _check_counts(one.session, one.plan.branch, result)
    finally:
        for one in passes:
            one.session.close()
    return result


def _full_pairs(
    one: Pass, result: Measured, clock: Clock, share: int, calls: int, wanted: torch.Tensor, keeps: int, reverse: bool
) -> None:
    """Both ways in turns. Memory: what one kept feature takes, and as many as the forecast keeps."""
    last: list[torch.Tensor] = []
    kept: list[int] = []

    def hooked() -> None:
        last[:] = [one.evaluate()]
        if len(kept) < keeps:
            kept.append(one.session.report.kept_bytes)

    rivals = [Rival(HOOKED, hooked, one.hook), Rival(PLAIN, one.plain, one.unhook)]
    for name, samples in rounds(clock, rivals[::-1] if reverse else rivals, share, calls).items():
        result.full[name] += samples
    one.hook()
    while len(kept) < keeps:  # for the forecast
        hooked()
    one.unhook()
    result.kept_bytes[one.plan.branch] = {"copy": kept[0], **({"forecast": kept[-1]} if keeps > 1 else {})}
    _check_equal(last[0], wanted, "the hooked full call", result)


def _cached_rounds(
    one: Pass,
    result: Measured,
    clock: Clock,
    feature: torch.Tensor,
    estimators: Sequence[str],
    budget: float,
    least: int,
) -> None:
    branch = one.plan.branch
    one.only_cached()

    def by_hand() -> torch.Tensor:
        return unets.live(one.unet, one.given, branch, feature)

    one.estimate_by(Copy.name)
    _check_equal(one.evaluate(), by_hand(), f"the cached call of branch {branch}", result)
    calls = calls_for(clock.time(by_hand))
    rivals = [Rival(BY_HAND, by_hand)]
    rivals += [Rival(name, one.evaluate, functools.partial(one.estimate_by, name)) for name in estimators]
    if calls > 1:  # else each has run once, but for the forecast, and another time would take long
        rounds(clock, rivals, 1, calls)
    result.cached[branch] = rounds(clock, rivals, 120, calls, least, budget)


def _check_equal(got: torch.Tensor, wanted: torch.Tensor, what: str, result: Measured) -> None:
    if not torch.equal(got, wanted):
        off = float((got - wanted).abs().max() / wanted.abs().max())
        result.doubts.append(f"{what} differs from the one by hand by up to {off:.1e} of the largest value")


def _check_counts(session: Session, branch: int, result: Measured) -> None:
    """Nothing may have run otherwise than it was meant to, or the times say something else."""
    session.pause()  # the last evaluation is over
    report = session.report
    meant = int(session.plan.last_full(report.evaluations)) + 1
    if report.full_calls != meant or report.cached_calls != report.evaluations - meant or report.off:
        result.doubts.append(f"branch {branch}: {'; '.join(report.lines())}")
