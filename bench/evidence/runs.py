"""The run over the grid: what is missing is made and recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from .grid import Arm, Pair, Task, batches
from .metrics import compare
from .results import Key, Results
from .studio import Made, Studio

Piece = tuple[Task, Sequence[Pair], list[Arm]]
"""One batch of a task, and the arms that are missing there."""


def missing(tasks: Sequence[Task], pairs: Sequence[Pair], batch: int, results: Results) -> list[Piece]:
    """Batch by batch through the whole grid, so that a run that ends early has as many pairs for all settings."""
    pieces = []
    for part in batches(pairs, batch):
        for task in tasks:
            arms = [arm for arm in task.arms if any(_key(task, arm, pair) not in results for pair in part)]
            if arms:
                pieces.append((task, part, arms))
    return pieces


def run(
    studio: Studio,
    tasks: Sequence[Task],
    pairs: Sequence[Pair],
    batch: int,
    results: Results,
    minutes: float | None = None,
    quiet: bool = False,
) -> bool:
    """Make what is missing; whether all of it is there now. After `minutes` no further batch of a task begins."""
    pieces = missing(tasks, pairs, batch, results)
    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    total = sum(len(part) * _work(task, arms) for task, part, arms in pieces)
    with tqdm(total=total, unit="step", disable=quiet, smoothing=0.05, dynamic_ncols=True) as bar:
        made: dict[tuple[str, int, float], Made] = {}
        of: Sequence[Pair] = ()
        for task, part, arms in pieces:
            if time.monotonic() > ends:
                return False
            if part != of:
                made, of = {}, part
            bar.set_description(f"pairs {part[0].index + 1}-{part[-1].index + 1}, {task.sampler.name}")
            _piece(studio, task, part, arms, results, made, bar)
    return True


def _piece(
    studio: Studio,
    task: Task,
    part: Sequence[Pair],
    arms: list[Arm],
    results: Results,
    made: dict[tuple[str, int, float], Made],
    bar: Any,
) -> None:
    """`made`: uncached pictures of this batch; references and rivals share them."""

    def uncached(steps: int) -> Made:
        where = (task.sampler.name, steps, task.guidance)
        if where not in made:
            made[where] = studio.make(*where, part)
        return made[where]

    reference = uncached(task.steps)
    bar.update(len(part) * task.steps)
    for arm in arms:
        if arm.fewer:
            other = uncached(arm.fewer)
        else:
            other = studio.make(task.sampler.name, task.steps, task.guidance, part, arm.args)
        likeness = compare(other.pictures, reference.pictures)
        results.add(
            [
                _record(task, arm, pair, len(part), other, reference) | like
                for pair, like in zip(part, likeness, strict=True)
                if _key(task, arm, pair) not in results
            ]
        )
        bar.update(len(part) * (arm.fewer or task.steps))


def _record(task: Task, arm: Arm, pair: Pair, batch: int, other: Made, reference: Made) -> dict[str, Any]:
    """Seconds are those of one picture."""
    record: dict[str, Any] = {
        "sampler": task.sampler.name,
        "steps": task.steps,
        "guidance": task.guidance,
        "arm": arm.name,
        "seed": pair.seed,
        "prompt": pair.prompt,
        "calls": other.calls,
        "reference_calls": reference.calls,
        "seconds": other.seconds / batch,
        "reference_seconds": reference.seconds / batch,
    }
    if not arm.fewer:
        record |= {"full": other.full, "branch": other.branch, "estimator": other.estimator}
        if other.deeper:
            record |= {"deeper": other.deeper, "deeper_branch": other.deeper_branch}
    return record


def _key(task: Task, arm: Arm, pair: Pair) -> Key:
    return task.sampler.name, task.steps, task.guidance, arm.name, pair.seed, pair.prompt


def _work(task: Task, arms: Sequence[Arm]) -> int:
    return task.steps + sum(arm.fewer or task.steps for arm in arms)
