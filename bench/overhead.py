"""What our own Python costs a call: the clock's tick, the hooks before and after, and all of it together.

A UNet whose blocks do nothing is called, so that nearly all the rest of a call's time is gone. What remains
of tensor work is a copy of a very small feature and the comparison of a small context: these belong to us,
but grow with the tensors, and are part of the comparison with the forward by hand. One thread: there is
nothing to share out, and threads that wait for each other would only blur the figures.

"At work": tick and hooks timed around a UNet that computes. Its tensors have displaced our code and objects
from the processor's caches meanwhile, so the same Python takes longer; in real use it is always so.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

import deepcache_ext
from deepcache_ext.plan.estimators import Forecast
from deepcache_ext.session.session import Session

from . import unets
from .calls import BY_HAND, HOOKED, OWN, PLAIN, FullUntil, Pass
from .timing import Clock, Rival, collector_off, rounds

SIDE = 8
PROFILES = 10
OURS = os.path.dirname(os.path.abspath(deepcache_ext.__file__))


class IdleBlock(nn.Module):
    """Keeps a real block, which a session counts and watches, but returns the same tensor at once."""

    def __init__(self, real: nn.Module, output: torch.Tensor) -> None:
        super().__init__()
        self.real = real
        self.__dict__["output"] = output

    def forward(self, h: torch.Tensor, *rest: Any) -> torch.Tensor:
        return self.__dict__["output"]


class TimedSession(Session):
    """Notes how long each tick and hook takes."""

    def __init__(self, plan: FullUntil) -> None:
        super().__init__(plan, Forecast(), trusted=OWN)
        self.spent: dict[str, list[float]] = {"tick": [], "hook before": [], "hook after": []}

    def tick(self, *args: Any, **kwargs: Any) -> None:
        self._timed("tick", super().tick, args, kwargs)

    def before(self, *args: Any) -> None:
        self._timed("hook before", super().before, args, {})

    def after(self, *args: Any) -> Any:
        return self._timed("hook after", super().after, args, {})

    def _timed(self, part: str, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        start = time.perf_counter()
        result = run(*args, **kwargs)
        self.spent[part].append(time.perf_counter() - start)
        return result


@dataclass
class Overhead:
    """Seconds a call. `total`: the call and its tick, less the same call without us. `parts`: tick and hooks,
    each by itself; the rest of the total is torch's calling of hooks, and what the shadows do in the call.
    `hot`: (where, share of the profile's time) of the functions that take most.
    """

    total: float
    parts: dict[str, float]
    hot: list[tuple[str, float]] = field(default_factory=list)


def idle_unet(device: torch.device | str = "cpu") -> Any:
    """The small UNet of the ldm class with its real number of blocks, none of which does anything."""
    unet = unets.make("tiny", device)
    output = torch.zeros(2, unet.model_channels, SIDE, SIDE, device=device)
    for blocks in (unet.input_blocks, unet.output_blocks):
        for i, block in enumerate(blocks):
            blocks[i] = IdleBlock(block, output)
    unet.middle_block = IdleBlock(unet.middle_block, output)
    return unet


def measure(clock: Clock, device: torch.device, samples: int = 300) -> dict[str, Overhead]:
    """The cost of a full call, and of a cached one (branch 0; both estimators take the same way here)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(clock, device, samples)
    finally:
        torch.set_num_threads(threads)


def _measure(clock: Clock, device: torch.device, samples: int) -> dict[str, Overhead]:
    unet, given = idle_unet(device), unets.inputs("tiny", 2, SIDE, device)
    feature = torch.zeros(2, unet.model_channels, SIDE, SIDE, device=device)
    result = {}
    for kind in ("full", "cached"):

        def make_pass(session: Session | None = None, kind: str = kind) -> Pass:
            one = Pass(unet, given, 0, session)
            for _ in range(20):
                one.evaluate()
            if kind == "cached":
                one.only_cached()
            return one

        def by_hand() -> torch.Tensor:
            return unets.live(unet, given, 0, feature)

        one = make_pass()
        rival = Rival(PLAIN, one.plain, one.unhook) if kind == "full" else Rival(BY_HAND, by_hand)
        seconds = rounds(clock, [Rival(HOOKED, one.evaluate, one.hook), rival], samples, calls=5)
        total = median(a - b for a, b in zip(seconds[HOOKED], seconds[rival.name], strict=True))
        one.session.close()
        result[kind] = Overhead(total, _parts(make_pass, samples, device), _hot(make_pass, samples))
    return result | _at_work(device, max(10, samples // 5))


def _at_work(device: torch.device, samples: int) -> dict[str, Overhead]:
    unet, given = unets.make("tiny", device), unets.inputs("tiny", 2, 2 * SIDE, device)
    result = {}
    for kind in ("full", "cached"):

        def make_pass(session: Session | None = None, kind: str = kind) -> Pass:
            one = Pass(unet, given, 0, session)
            one.evaluate()
            one.evaluate()
            if kind == "cached":
                one.only_cached()
            return one

        parts = _parts(make_pass, samples, device)
        result[f"{kind}, at work"] = Overhead(sum(parts.values()), parts)
    return result


def _parts(make_pass: Callable[..., Pass], samples: int, device: torch.device) -> dict[str, float]:
    """A GPU is idle when a call begins: else its hook would wait for the call before, which is not our Python."""
    session = TimedSession(FullUntil(0))
    one = make_pass(session)
    for times in session.spent.values():
        times.clear()
    with collector_off():
        for _ in range(samples):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            one.evaluate()
    session.close()
    return {part: median(times) if times else 0.0 for part, times in session.spent.items()}


def _hot(make_pass: Callable[..., Pass], samples: int, most: int = 10) -> list[tuple[str, float]]:
    """Where the profiler sees our time: own time of our functions, and of the built-ins that they call.

    A profiler burdens short functions more than long ones, so only the shares are of use. The median of
    several short profiles: in a long one, an interruption would be charged to whatever function it hit.
    """
    one = make_pass()
    profiles = []
    with collector_off():
        for _ in range(PROFILES):
            profiler = cProfile.Profile()
            profiler.enable()
            for _ in range(max(1, samples // PROFILES)):
                one.evaluate()
            profiler.disable()
            profiles.append(_own_times(profiler))
    one.session.close()
    own = {where: median(p.get(where, 0.0) for p in profiles) for p in profiles for where in p}
    whole = sum(own.values()) or 1.0
    return [(where, spent / whole) for where, spent in sorted(own.items(), key=lambda item: -item[1])[:most]]


def _own_times(profiler: cProfile.Profile) -> dict[str, float]:
    own: dict[str, float] = {}
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (file, _, name), (_, _, spent, _, callers) in stats.items():
        if file.startswith(OURS):
            where = f"{os.path.basename(file)} {name}"
            own[where] = own.get(where, 0.0) + spent
            continue
        for (caller_file, _, caller), of_caller in callers.items():
            if caller_file.startswith(OURS):
                where = f"{os.path.basename(caller_file)} {caller}: {name}"
                own[where] = own.get(where, 0.0) + of_caller[2]
    return own
