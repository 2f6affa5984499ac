"""Which rivals are measured, and how each is made as fast as a preset. How near pictures come decides nothing here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from bench.laboratory import ways as plans
from bench.laboratory.samplers import SAMPLERS
from bench.laboratory.studio import Studio
from bench.likeness import psnr

from . import forecasts, spent, thresholds
from .forecasts import Forecasting
from .net import Net, Rival
from .sada import Rule, Sada, with_interpolation
from .tgate import TGate
from .thresholds import KINDS, Changes, Reusing

Maker = Callable[[Net], Rival]
"""A rival serves one run."""

OTHER_SEED, OTHERS = 9016, 8
"""Of the first picture, and how many, that TeaCache's polynomial is fitted to: none that is judged."""

NEAR, WIDE, TRIES = 0.02, 1.2, 6
"""A threshold is looked for until the speed-up is so near to the wanted one, or two lie around it, the faster one at
most so many times the slower one; or so often for each of them.
"""

Guesses = dict[tuple[str, float], float]
"""For a way and a preset's speed-up, the number that was found in the cell before: where to look first."""

WARM_UP = 0.1
"""Of a run, that the forecasts begin with in full: Spectrum's 5 of 50. TaylorSeer's are 3, of any number of steps.
On the choosing half 2 of 20 and 3 of 30 came nearer than 5 (Spectrum) or 3 of 20 (TaylorSeer).
"""

FAR = 0.05
"""A speed-up that is further away than this, relative, is not reached."""


@dataclass(frozen=True)
class Cell:
    """A studio with one guidance, sampler and number of steps."""

    studio: Studio
    guidance: float
    steps: int
    sampler: str

    def run(self, maker: Maker) -> Made:
        rival = maker(Net.of(self.studio, self.guidance))
        pictures = self.studio.drawn(self.sampler, self.steps, rival)
        whole = self.studio.reference(self.sampler, self.steps, self.guidance)
        return Made(rival.speed_up, tuple(float(value) for value in psnr(pictures, whole)))


@dataclass(frozen=True)
class Made:
    """How fast it was, and the PSNR in dB of each picture to the uncached one."""

    speed_up: float
    likeness: tuple[float, ...]

    def near(self, wanted: float) -> float:
        """How far it is from that speed-up, relative."""
        return abs(self.speed_up / wanted - 1)


@dataclass
class Tuned:
    """A way whose speed-up follows from a number, the greater the faster: `make` of it. `scale` and `back`: to where
    such numbers lie evenly, and from there. `low`, `high`, `stride`: there, the ends and a first step.
    """

    cell: Cell
    make: Callable[[float, Net], Rival]
    low: float
    high: float
    stride: float
    back: Callable[[float], float] = float
    known: dict[float, Made] = field(default_factory=dict)

    def near(self, wanted: float, guess: float) -> tuple[float, Made]:
        """The number for that speed-up, on its even scale, and the run; read off on the line between two runs where
        these lie around it and near to each other; else the nearest one.
        """
        place: float | None = guess
        for tries in range(TRIES):
            if place is None:
                break
            if place not in self.known:
                self.known[place] = self.cell.run(partial(self.make, self.back(place)))
            if self.known[place].near(wanted) <= NEAR:
                return place, self.known[place]
            slower, faster = self.around(wanted)
            place = self.next(wanted, self.stride * 2**tries)
            if slower is not None and faster is not None:
                ends = self.known[slower], self.known[faster]
                if place is not None and ends[1].speed_up <= WIDE * ends[0].speed_up:
                    return place, on_line(*ends, wanted)
        best = min(self.known, key=lambda place: self.known[place].near(wanted))
        return best, self.known[best]

    def around(self, wanted: float) -> tuple[float | None, float | None]:
        """The nearest numbers that are slower, and faster."""
        slower = max((n for n, made in self.known.items() if made.speed_up < wanted), default=None)
        above = [n for n, made in self.known.items() if made.speed_up >= wanted and (slower is None or n > slower)]
        return slower, min(above, default=None)

    def next(self, wanted: float, stride: float) -> float | None:
        """Between the nearest slower and faster numbers, by what they cost; a stride away where there is but one; None
        at the ends.
        """
        slower, faster = self.around(wanted)
        if slower is not None and faster is not None:
            costs = [1 / self.known[n].speed_up for n in (slower, faster)]
            share = (costs[0] - 1 / wanted) / (costs[0] - costs[1])
            return slower + (faster - slower) * min(max(share, 0.15), 0.85)
        place = faster - stride if faster is not None else (slower or 0.0) + stride
        place = min(max(place, self.low), self.high)
        return None if place in self.known else place


def on_line(slower: Made, faster: Made, wanted: float) -> Made:
    """At that speed-up between two: on the line over what they cost, each picture for itself."""
    costs = [1 / made.speed_up for made in (slower, faster)]
    share = (costs[0] - 1 / wanted) / (costs[0] - costs[1]) if costs[0] > costs[1] else 0.0
    both = zip(slower.likeness, faster.likeness, strict=True)
    return Made(wanted, tuple(a + share * (b - a) for a, b in both))


def spectrum_for(steps: int, count: int, warm_up: int) -> tuple[int, ...]:
    """Spectrum's full evaluations, so many of them: its windows grow faster, or its warm-up is longer."""
    while len(forecasts.spectrum_steps(steps, warm_up, 2, 0)) < count:
        warm_up += 1
    for hundredths in range(2000):
        full = forecasts.spectrum_steps(steps, warm_up, 2, hundredths / 100)
        if len(full) <= count:
            return full
    return full


def gate_for(steps: int, wanted: float, depth: int) -> int:
    """T-GATE's gate nearest to that speed-up; 0 where it does not come near."""
    after = (1 - spent.of(depth).cross_attention) / 2
    off = {gate: abs(steps / (gate + (steps - gate) * after) / wanted - 1) for gate in range(1, steps + 1)}
    best = min(off, key=lambda gate: off[gate])
    return best if off[best] <= FAR else 0


def polynomial(cell: Cell, order: int) -> list[float]:
    """TeaCache's, from an uncached run of other pictures."""
    changes, others = Changes(), Studio(cell.studio.network, OTHERS, OTHER_SEED)
    rival = Reusing(Net.of(others, cell.guidance), cell.steps, KINDS["TeaCache"], 0.0, changes=changes)
    others.drawn(cell.sampler, cell.steps, rival)
    return list(changes.polynomial(order))


def forecasting(cell: Cell, full: tuple[int, ...], order: int | None) -> Maker:
    """TaylorSeer's of that order, or Spectrum's."""
    if order is None:
        told = partial(forecasts.spectrum, steps=cell.steps)
        return lambda net: Forecasting(net, cell.steps, full, told, inside=True)
    return lambda net: Forecasting(net, cell.steps, full, partial(forecasts.taylor, order=order))


INTERVALS = ("interval 2", "interval 3")
DEFAULTS = (
    "Spectrum, defaults",
    "TaylorSeer, defaults",
    "First Block Cache, 0.1",
    "First Block Cache (Forge), 0.1",
    "TeaCache (Forge), 0.1",
    "SADA, defaults",
    "SADA, its rule alone",
    "T-GATE, defaults",
)


def as_published(cell: Cell, name: str) -> Maker:
    steps = cell.steps
    if name == "Spectrum, defaults":
        return forecasting(cell, forecasts.spectrum_steps(steps, 5, 2, 0.75), None)
    if name == "TaylorSeer, defaults":
        return forecasting(cell, tuple(sorted({0, 1, 2, *range(2, steps, 5)})), 2)
    if name.endswith(", 0.1"):
        return lambda net: Reusing(net, steps, KINDS[name.removesuffix(", 0.1")], 0.1)
    if name == "T-GATE, defaults":
        return lambda net: TGate(net, steps, round(0.4 * steps), keeps_self=True)
    rule = with_interpolation(steps) if name == "SADA, defaults" else Rule()
    return lambda net: Sada(net, steps, rule)


FORECASTS = ("Spectrum", "TaylorSeer 1", "TaylorSeer 2")
TUNED = ("First Block Cache", "TeaCache", "TeaCache (Forge)", "SADA")
RIVALS = (*FORECASTS, *TUNED, "T-GATE")
"""Made as fast as the presets; TaylorSeer with its order. First Block Cache in Forge's form is as near as its TeaCache
(both look at hardly more than the input), and is only among the defaults.
"""


def tuned(cell: Cell, name: str) -> Tuned:
    steps = cell.steps
    if name == "SADA":
        return Tuned(cell, lambda number, net: Sada(net, steps, Rule(least=number)), -1.001, 1.001, 0.2)
    kind = thresholds.KINDS[name]
    terms = polynomial(cell, kind.order) if kind.order else (1.0, 0.0)
    return Tuned(cell, lambda number, net: Reusing(net, steps, kind, number, terms), -9.0, 3.0, 0.3, math.exp)


def forecast(cell: Cell, name: str, wanted: float) -> Made:
    """Between the two numbers of full evaluations that are next to that speed-up."""
    found, first = [], round(WARM_UP * cell.steps)
    for count in (math.ceil(cell.steps / wanted), math.floor(cell.steps / wanted)):
        if name == "Spectrum":
            maker = forecasting(cell, spectrum_for(cell.steps, count, first), None)
        else:
            maker = forecasting(cell, forecasts.taylor_steps(cell.steps, first, count), int(name[-1]))
        found.append(cell.run(maker))
    slower, faster = found
    return on_line(slower, faster, wanted)


def all_of(
    cell: Cell, wishes: dict[float, float], missing: Callable[[str], bool], guesses: Guesses
) -> Iterator[tuple[str, Made]]:
    """Every way that is missing, by its key. `wishes`: for each of the presets' speed-ups that which its plan has here;
    rivals are made as fast as that.
    """
    for name in (*FORECASTS, *TUNED, "T-GATE"):
        found: Tuned | None = None
        for wanted, speed_up in wishes.items():
            if not missing(f"{name} @{wanted:g}"):
                continue
            if name in FORECASTS:
                made = forecast(cell, name, speed_up)
            elif name == "T-GATE":
                gate = gate_for(cell.steps, speed_up, cell.studio.depth)
                if not gate:
                    continue
                made = cell.run(lambda net, gate=gate: TGate(net, cell.steps, gate))
            else:
                found = found or tuned(cell, name)
                place = guesses.get((name, wanted), 0.0 if name == "SADA" else math.log(0.15 * wanted))
                guesses[name, wanted], made = found.near(speed_up, place)
            yield f"{name} @{wanted:g}", made
    for name in DEFAULTS:
        if missing(name):
            yield name, cell.run(as_published(cell, name))
    yield from intervals(cell, missing)


def intervals(cell: Cell, missing: Callable[[str], bool]) -> Iterator[tuple[str, Made]]:
    """Plain DeepCache as published, by the extension's own session."""
    studio, sigmas = cell.studio, SAMPLERS[cell.sampler].sigmas(cell.steps)
    for way in plans.every(plans.of(sigmas, studio.depth, studio.nature(cell.sampler))):
        if way.name in INTERVALS and way.estimator is not None and missing(way.key):
            likeness = studio.likeness(cell.sampler, cell.steps, cell.guidance, way.plan, way.estimator())
            yield way.key, Made(way.speed_up, tuple(likeness))
