"""What is tried: samplers, steps, settings, and the rival that saves the same time by taking fewer steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepcache_ext.settings.fields import PRESETS

INTERVALS, BRANCHES, ESTIMATORS = (2, 3, 5), (0, 1, 2), ("copy", "forecast")
SPEED_UPS = (1.5, 2.0, 2.6, 3.8)
STEPS = 30
OTHER_STEPS = (20, 50)
GUIDANCE, OTHER_GUIDANCE = 5.0, (7.0,)
"""Of classifier-free guidance: the stronger, the more an error of the network counts at each step."""
FEWER = {20: (5, 6, 8, 10, 12, 15, 17), 30: (7, 8, 10, 12, 15, 20, 25), 50: (12, 15, 20, 25, 30, 40)}
"""The rival's steps for each number of full steps; counts that several of them share are made once."""


@dataclass(frozen=True)
class Sampler:
    """`name` as the host takes it. `deterministic`: fewer steps lead to nearly the same picture."""

    name: str
    deterministic: bool = True
    thorough: bool = False


SAMPLERS = (
    Sampler("Euler", thorough=True),
    Sampler("DPM++ 2M Karras", thorough=True),
    Sampler("Euler a", deterministic=False),
    Sampler("DPM++ SDE Karras", deterministic=False),
    Sampler("DDIM"),
    Sampler("UniPC"),
)


@dataclass(frozen=True)
class Arm:
    """One way to make a picture sooner: the extension's `args`, or `fewer` steps without it."""

    name: str
    args: dict[str, Any] = field(default_factory=dict, hash=False)
    fewer: int = 0

    @property
    def is_plain(self) -> bool:
        """DeepCache as published: every Nth evaluation full, copies in between."""
        return self.args.get("strategy") == "uniform" and self.args.get("estimator") == "copy"


@dataclass(frozen=True)
class Task:
    """All that is held against the uncached pictures of one sampler at `steps` and `guidance`."""

    sampler: Sampler
    steps: int
    arms: tuple[Arm, ...]
    guidance: float = GUIDANCE

    @property
    def title(self) -> str:
        other = "" if self.guidance == GUIDANCE else f", guidance {self.guidance:g}"
        return f"{self.sampler.name}, {self.steps} steps{other}"


def setting(interval: int, branch: int, estimator: str) -> Arm:
    args = {
        "preset": "Custom",
        "strategy": "uniform",
        "cache_interval": interval,
        "cache_branch_id": branch,
        "estimator": estimator,
    }
    return Arm(f"interval {interval}, branch {branch}, {estimator}", args)


def weighted(speed_up: float, branch: int = 0, estimator: str = "auto") -> Arm:
    args = {
        "preset": "Custom",
        "strategy": "weighted",
        "speed_up": speed_up,
        "cache_branch_id": branch,
        "estimator": estimator,
    }
    more = (f", branch {branch}" if branch else "") + ("" if estimator == "auto" else f", {estimator}")
    return Arm(f"weighted {speed_up:g}x{more}", args)


def non_uniform(interval: int) -> Arm:
    args = {"preset": "Custom", "strategy": "non-uniform", "cache_interval": interval, "estimator": "copy"}
    return Arm(f"non-uniform {interval}, branch 0, copy", args)


def preset(name: str) -> Arm:
    return Arm(f"preset {name}", {"preset": name})


def rivals(sampler: Sampler, counts: Sequence[int]) -> tuple[Arm, ...]:
    return tuple(Arm(f"{count} steps", fewer=count) for count in counts) if sampler.deterministic else ()


PLAIN = (setting(2, 2, "copy"), *(setting(interval, 0, "copy") for interval in INTERVALS))
"""Published DeepCache from slow to fast: what the strategies are held against at equal speed."""


def full_grid() -> list[Task]:
    presets = tuple(preset(name) for name in PRESETS)
    every = (
        *(setting(*one) for one in itertools.product(INTERVALS, BRANCHES, ("copy",))),
        *(setting(interval, 0, "forecast") for interval in INTERVALS),
        *(weighted(speed_up) for speed_up in SPEED_UPS),
        weighted(2.0, estimator="copy"),
        weighted(2.0, branch=1),
        non_uniform(3),
    )
    some = (*PLAIN, *(weighted(speed_up) for speed_up in SPEED_UPS))
    tasks = []
    for sampler in SAMPLERS:
        for steps in (STEPS, *OTHER_STEPS) if sampler.thorough else (STEPS,):
            at_30 = every if sampler.thorough else some
            settings = at_30 if steps == STEPS else (*PLAIN[1:], weighted(SPEED_UPS[-1]))
            tasks.append(Task(sampler, steps, (*presets, *settings, *rivals(sampler, FEWER[steps]))))
    few = (*presets, *PLAIN[1:3])
    for sampler in SAMPLERS:
        for guidance in OTHER_GUIDANCE if sampler.thorough else ():
            tasks.append(Task(sampler, STEPS, (*few, *rivals(sampler, (7, 10, 15, 20))), guidance))
    return tasks


def quick_grid() -> list[Task]:
    """A few settings of every kind, for a first look."""
    presets = tuple(preset(name) for name in PRESETS)
    tasks = []
    for sampler in SAMPLERS[:3]:
        copies = PLAIN if sampler.thorough else PLAIN[1:3]
        tasks.append(Task(sampler, STEPS, (*presets, *copies, *rivals(sampler, (7, 10, 15, 20, 25)))))
    return tasks


@dataclass(frozen=True)
class Pair:
    """A prompt and the seed that goes with it, `index`-th of the run."""

    index: int
    prompt: str
    seed: int


def batches(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    """Neighbours together; the host gives the pictures of a batch consecutive seeds."""
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]
