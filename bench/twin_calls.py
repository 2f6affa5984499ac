"""Times of full and cached calls on a UNet of diffusers: uncached, ours, the published helper, and live layers by hand.

The three have module trees of their own that share one set of weights; they take turns.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from DeepCache import DeepCacheSDHelper as PublishedHelper

from deepcache_ext import DeepCacheSDHelper

from . import memory, twins
from .calls import BY_HAND, PLAIN
from .peers import LONGEST, Runner
from .timing import Clock, Rival, Seconds, calls_for, rounds

OURS, PUBLISHED = "ours", "published"
MOST = 120
"""Rounds of cached calls."""


@dataclass
class Measured:
    """Seconds a call by rival; `cached` by branch. `memory`: peak bytes of an uncached run and of one of ours."""

    full: Seconds = field(default_factory=lambda: {PLAIN: [], OURS: [], PUBLISHED: []})
    cached: dict[int, Seconds] = field(default_factory=dict)
    kept_bytes: dict[int, int] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def measure(
    unet: Any,
    given: dict[str, Any],
    branches: Sequence[int],
    clock: Clock,
    device: torch.device,
    pairs: int,
    budget: float,
    least: int = 4,
    hand: bool = False,
) -> Measured:
    """At least `pairs` rounds of full calls, shared among the branches; for each branch cached calls for about
    `budget` seconds. `hand`: with the live layers by hand, for the nets whose forward is written out in `twins`; those
    without are twins of a UNet that has been measured, and show the helper alone.
    """
    weights = {id(parameter): parameter for parameter in unet.parameters()}
    runners = {
        PLAIN: Runner(unet, given),
        OURS: Runner(copy.deepcopy(unet, dict(weights)), given, DeepCacheSDHelper),
        PUBLISHED: Runner(copy.deepcopy(unet, dict(weights)), given, PublishedHelper),
    }
    result = Measured()
    runners[PLAIN].enable(LONGEST, branches[0])
    pairs = enough(pairs, budget, first_call(runners[PLAIN].evaluate, clock, device))
    if hand:
        _memory(runners, branches[0], device, result)
    else:
        del runners[OURS]
        del result.full[OURS]
    for i, branch in enumerate(branches):
        share = max(1, pairs // len(branches) + (i < pairs % len(branches)))
        for runner in runners.values():
            runner.enable(LONGEST, branch)
        _full_rounds(runners, branch, clock, share, result)
        _cached_rounds(runners, branch, clock, budget, least, hand, result)
        for runner in runners.values():
            runner.disable()
    return result


def first_call(run: Callable[[], object], clock: Clock, device: torch.device) -> float:
    """Seconds that a call takes, which also warms up. On a GPU the second: the first finds its kernels, which can take
    a hundred times as long. On a CPU one call may take minutes.
    """
    if device.type == "cuda":
        run()
    return clock.time(run)


def enough(least: int, budget: float, seconds: float) -> int:
    """How many pairs of full calls that take `seconds` each fit into about `budget` seconds; a few at least."""
    return max(least, min(40, int(budget / seconds / 2)))


def _memory(runners: dict[str, Runner], branch: int, device: torch.device, result: Measured) -> None:
    """A full call, and a full and a cached one of ours."""
    for name in (PLAIN, OURS):
        runner = runners[name]
        runner.enable(LONGEST, branch)
        memory.start(device)
        for _ in range(1 if name == PLAIN else 2):
            runner.evaluate()
        result.memory[name] = memory.read(device)
        runner.disable()


def _full_rounds(runners: dict[str, Runner], branch: int, clock: Clock, count: int, result: Measured) -> None:
    def fresh(runner: Runner) -> None:
        runner.disable()
        runner.enable(LONGEST, branch)

    rivals = [Rival(name, runner.evaluate, lambda runner=runner: fresh(runner)) for name, runner in runners.items()]
    for name, samples in rounds(clock, rivals, count).items():
        result.full[name] += samples


def _cached_rounds(
    runners: dict[str, Runner], branch: int, clock: Clock, budget: float, least: int, hand: bool, result: Measured
) -> None:
    """After a full call of each. Where many calls fit into the time, further full calls come in between, untimed."""
    plain = runners[PLAIN]
    cachers = [name for name in (OURS, PUBLISHED) if name in runners]
    timesteps = plain.scheduler.timesteps
    outputs = {name: runners[name].evaluate() for name in cachers}
    if hand:
        _, features = twins.walk(plain.unet, plain.given, timesteps[0], [branch])

        def by_hand() -> torch.Tensor:
            return twins.walk(plain.unet, plain.given, timesteps[1], live=branch, feature=features[branch])[0]

        outputs[BY_HAND] = by_hand()
    for name, output in outputs.items():
        if not torch.equal(output, outputs[PUBLISHED]):
            off = float((output - outputs[PUBLISHED]).abs().max() / outputs[PUBLISHED].abs().max())
            result.doubts.append(f"branch {branch}: {name} differs from the helper by {off:.1e} of the largest value")
    rivals = [Rival(name, runners[name].evaluate) for name in cachers]
    if hand:
        rivals.insert(0, Rival(BY_HAND, by_hand))
    calls = calls_for(max(clock.time(runners[name].evaluate) for name in cachers), most=10)
    found: Seconds = {rival.name: [] for rival in rivals}
    started, used = time.perf_counter(), 2
    while True:
        left = budget - (time.perf_counter() - started)
        count = min((LONGEST - 1 - used) // calls, MOST - len(found[PUBLISHED]))
        for name, samples in rounds(clock, rivals, count, calls, least, left).items():
            found[name] += samples
        if OURS in runners:
            _check_counts(runners[OURS], branch, result)
        if len(found[PUBLISHED]) >= MOST or budget <= time.perf_counter() - started:
            break
        for name in cachers:
            runners[name].disable()
            runners[name].enable(LONGEST, branch)
            runners[name].evaluate()
        used = 0
    result.cached[branch] = found


def _check_counts(ours: Runner, branch: int, result: Measured) -> None:
    report = ours.helper.cache.report().passes[-1]
    result.kept_bytes[branch] = report.kept_bytes
    # The last evaluation is under way: it counts when it is over.
    if report.full_calls != 1 or report.cached_calls != report.evaluations or report.off:
        result.doubts.append(f"branch {branch}: {'; '.join(report.lines())}")
