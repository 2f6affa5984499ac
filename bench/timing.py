"""Fair comparisons on a busy machine: rivals take turns, and a ratio comes with its uncertainty."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch

Seconds = dict[str, list[float]]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Rival:
    """One side of a comparison. `before` sets the scene and is not timed."""

    name: str
    run: Callable[[], object]
    before: Callable[[], object] = field(default=_nothing)


class Clock:
    """Seconds that one call takes on a device.

    On CUDA the events enclose the calls on the device's own time line, after it has become idle: what the
    host's Python adds is in the figure exactly as far as the device has to wait for it.

    `processor`: on a CPU, count this process's processor time instead of wall time. It does not see what
    other processes take away, but it counts threads that only wait for each other: with one thread it is the
    better measure on a busy machine.
    """

    def __init__(self, device: torch.device, processor: bool = False) -> None:
        self._device = device
        self._now = time.process_time if processor else time.perf_counter

    def time(self, run: Callable[[], object], calls: int = 1) -> float:
        """The mean of `calls` calls in a row, without waiting for the device between them."""
        if self._device.type != "cuda":
            start = self._now()
            for _ in range(calls):
                run()
            return (self._now() - start) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        stream = torch.cuda.current_stream(self._device)
        begin.record(stream)
        for _ in range(calls):
            run()
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls


def rounds(
    clock: Clock, rivals: Sequence[Rival], count: int, calls: int = 1, least: int = 2, budget: float = math.inf
) -> Seconds:
    """Let each rival run once a round, in another order each time: AB, BA, AB ... (three have six orders).

    So a slow spell of the machine, its warming up and what one rival leaves in the caches hit all alike. The
    rounds are kept apart: samples with the same index belong together. After `budget` seconds the rounds end
    early, though not before there are `least`.
    """
    seconds: Seconds = {rival.name: [] for rival in rivals}
    started = time.perf_counter()
    with collector_off():
        for done, order in zip(range(count), itertools.cycle(_orders(rivals)), strict=False):
            if done >= least and time.perf_counter() - started > budget:
                break
            for rival in order:
                rival.before()
                seconds[rival.name].append(clock.time(rival.run, calls))
    return seconds


def _orders(rivals: Sequence[Rival]) -> list[tuple[Rival, ...]]:
    """All orders, the given one first, each followed by its reverse: already two rounds are balanced."""
    half = [order for order in itertools.permutations(range(len(rivals))) if order[0] <= order[-1]]
    return [tuple(rivals[i] for i in turn) for order in half for turn in (order, order[::-1])]


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection in the midst of a sample; as `timeit` does it."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def calls_for(seconds: float, least: float = 0.05, most: int = 50) -> int:
    """How many calls make one sample long enough to be measured well."""
    return min(max(1, int(least / max(seconds, 1e-9))), most)


@dataclass(frozen=True)
class Ratio:
    """Ratio of two medians with its 95 % interval, the bounds that a target is held against."""

    value: float
    low: float
    high: float
    samples: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str, resamples: int = 4000) -> Ratio:
    """How many times as long `ours` takes as `theirs`.

    The interval is a bootstrap over the rounds: whole rounds are drawn, so that what slowed both rivals of a
    round does not count as uncertainty of their ratio.
    """
    a, b = np.asarray(seconds[ours]), np.asarray(seconds[theirs])
    drawn = np.random.default_rng(0).integers(0, len(a), size=(resamples, len(a)))
    spread = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    low, high = np.quantile(spread, [0.025, 0.975])
    return Ratio(median(a.tolist()) / median(b.tolist()), float(low), float(high), len(a))
