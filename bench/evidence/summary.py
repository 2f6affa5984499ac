"""From single pictures to rows of a table: means with intervals, and the rival at equal speed-up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .grid import PLAIN, Arm, Task
from .metrics import METRICS, Mean, bootstrap
from .speed import CallTimes

Record = Mapping[str, Any]
By = dict[str, dict[int, Record]]
"""Records by arm, then by seed."""


@dataclass(frozen=True)
class Row:
    """One arm. `speed_up`: of SD1.5; `own`: of the small net, measured. `rival`: fewer steps at equal speed-up.

    `ahead`: how much higher the arm's PSNR is than the rival's, picture by picture; `over_copy`: than that of plain
    DeepCache (uniform, copying) at equal speed-up.
    """

    arm: Arm
    calls: int
    full: int
    deeper: int
    speed_up: float
    own: float
    likeness: dict[str, Mean]
    rival: dict[str, Mean] | None = None
    ahead: Mean | None = None
    over_copy: Mean | None = None

    def as_json(self) -> dict[str, Any]:
        def plain(means: Mapping[str, Mean] | None) -> dict[str, Any] | None:
            return {name: mean.as_json() for name, mean in means.items()} if means else None

        return {
            "arm": self.arm.name,
            "fewer_steps": self.arm.fewer or None,
            "calls": self.calls,
            "full": self.full,
            "deeper": self.deeper,
            "speed_up": self.speed_up,
            "own_speed_up": self.own,
            "likeness": plain(self.likeness),
            "rival": plain(self.rival),
            "ahead_psnr": self.ahead.as_json() if self.ahead else None,
            "over_copy_psnr": self.over_copy.as_json() if self.over_copy else None,
        }


@dataclass(frozen=True)
class Section:
    """All rows of one task: cached ones, and the rival's curve from slow to fast."""

    task: Task
    rows: list[Row]
    rivals: list[Row]

    @property
    def pairs(self) -> int:
        return max((row.likeness["psnr"].samples for row in [*self.rows, *self.rivals]), default=0)

    def as_json(self) -> dict[str, Any]:
        return {
            "sampler": self.task.sampler.name,
            "steps": self.task.steps,
            "guidance": self.task.guidance,
            "pairs": self.pairs,
            "settings": [row.as_json() for row in self.rows],
            "fewer_steps": [row.as_json() for row in self.rivals],
        }


def summarise(tasks: Sequence[Task], records: Sequence[Record], times: CallTimes) -> list[Section]:
    """One section a task. Tasks and arms of which there is nothing are left out, and arms that are in no task."""
    arms = {(task.sampler.name, task.steps, task.guidance): {arm.name for arm in task.arms} for task in tasks}
    found: dict[tuple[str, int, float], By] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        where = (record["sampler"], record["steps"], record["guidance"])
        if record["arm"] in arms.get(where, ()):
            found[where][record["arm"]][record["seed"]] = record
    found_tasks = [(task, found.get((task.sampler.name, task.steps, task.guidance))) for task in tasks]
    return [_section(task, by, times) for task, by in found_tasks if by]


def _section(task: Task, everything: By, times: CallTimes) -> Section:
    """Of pairs that all arms have, so that the rows compare; of all pairs where there is none such."""
    common = set.intersection(*(set(records) for records in everything.values()))
    by = {arm: {seed: records[seed] for seed in common or records} for arm, records in everything.items()}
    curve = [_row(arm, by[arm.name], times) for arm in task.arms if arm.fewer and by.get(arm.name)]
    curve.sort(key=lambda row: row.speed_up)
    rows = [_row(arm, by[arm.name], times) for arm in task.arms if not arm.fewer and by.get(arm.name)]
    plain = sorted((row for row in rows if row.arm in PLAIN), key=lambda row: row.speed_up)
    compared = []
    for row in rows:
        fewer, copied = _at_equal_speed(row, by, curve), _at_equal_speed(row, by, plain)
        if fewer:
            row = replace(row, rival=fewer[0], ahead=fewer[1])
        compared.append(replace(row, over_copy=copied[1]) if copied and not row.arm.is_plain else row)
    return Section(task, sorted(compared, key=lambda row: row.speed_up), curve)


def _row(arm: Arm, records: Mapping[int, Record], times: CallTimes) -> Row:
    first = next(iter(records.values()))
    calls, full = first["calls"], first["calls"] if arm.fewer else first["full"]
    deeper = first.get("deeper", 0)
    if arm.fewer:
        speed_up = first["reference_calls"] / calls
    else:
        speed_up = times.speed_up(
            first["reference_calls"],
            calls,
            full,
            first["branch"],
            first["estimator"],
            deeper,
            first.get("deeper_branch", 0),
        )
    spent, reference = (sum(r[key] for r in records.values()) for key in ("seconds", "reference_seconds"))
    prompts = [r["prompt"] for r in records.values()]
    likeness = {name: bootstrap([r[name] for r in records.values()], prompts) for name in METRICS}
    return Row(arm, calls, full, deeper, speed_up, reference / spent, likeness)


def _at_equal_speed(row: Row, by: By, curve: Sequence[Row]) -> tuple[dict[str, Mean], Mean] | None:
    """What the curve, from slow to fast, has at the row's speed-up, and how far ahead of it the row is in PSNR.

    Between the two neighbours on the curve it is even in the logarithm of time; outside it nothing is extrapolated.
    """
    faster = next((i for i, one in enumerate(curve) if one.speed_up >= row.speed_up), 0)
    if not faster:
        return None
    slow, fast = curve[faster - 1], curve[faster]
    share = math.log(row.speed_up / slow.speed_up) / math.log(fast.speed_up / slow.speed_up)
    ours, slower, quicker = (by[one.arm.name] for one in (row, slow, fast))
    seeds = sorted(ours.keys() & slower.keys() & quicker.keys())
    if not seeds:
        return None
    rival = {
        name: np.array([(1 - share) * slower[s][name] + share * quicker[s][name] for s in seeds]) for name in METRICS
    }
    prompts = [ours[s]["prompt"] for s in seeds]
    ahead = bootstrap((np.array([ours[s]["psnr"] for s in seeds]) - rival["psnr"]).tolist(), prompts)
    return {name: bootstrap(values.tolist(), prompts) for name, values in rival.items()}, ahead
