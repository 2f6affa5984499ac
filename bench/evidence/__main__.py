"""`python -m bench.evidence`: likeness against speed over many pictures, written to docs/evidence.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from demo.webui.boot import REPOSITORY

from . import grid, report, speed
from .grid import Task
from .results import Results, key_of
from .runs import run
from .studio import Studio, checkpoint_called, fingerprint, pairs_for
from .summary import Record, summarise

WORK = Path(__file__).resolve().parent / ".work"
DOCS = REPOSITORY / "docs"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="few pairs and settings, some minutes; into bench/evidence/.work/quick")
    add("--pairs", type=int, metavar="N", help="pairs of a prompt and a seed; default: 64 (quick: 4)")
    add("--minutes", type=float, metavar="M", help="stop after M minutes and report what is there")
    add("--report", action="store_true", help="make no pictures, only the report of what is there")
    add("--model", default="sd1", help="checkpoint of the embedded host; default: %(default)s")
    add("--size", type=int, metavar="PIXELS", help="default: what the checkpoint was trained on, else 128")
    add("--samplers", metavar="NAMES", help="only these, separated by commas; runs with others may go on beside it")
    add("--batch", type=int, default=8, metavar="B", help="pictures made together; default: %(default)s")
    add("--measure", action="store_true", help="measure SD1.5's call times on this CPU first (some minutes)")
    add("--call-times", type=Path, metavar="FILE", help="take them from the JSON of `python -m bench`")
    add("--out", type=Path, metavar="FOLDER", help="where to write the report; default: docs")
    add("--results", type=Path, metavar="FILE", help="finished pictures, where code was changed since that matters not")
    add("--work", type=Path, default=WORK, metavar="FOLDER", help="where finished pictures are noted")
    options = parser.parse_args(argv)
    options.pairs = options.pairs or (4 if options.quick else 64)
    options.out = options.out or (options.work / "quick" if options.quick else DOCS)
    return options


def chosen_tasks(options: argparse.Namespace) -> list[Task]:
    tasks = grid.quick_grid() if options.quick else grid.full_grid()
    if options.samplers:
        names = {name.strip().lower() for name in options.samplers.split(",")}
        tasks = [task for task in tasks if task.sampler.name.lower() in names]
    if not tasks:
        raise SystemExit("no such sampler; there are: " + ", ".join(sampler.name for sampler in grid.SAMPLERS))
    return tasks


def call_times(options: argparse.Namespace, records: Sequence[Record]) -> speed.CallTimes:
    """Measured now, given, recorded in an earlier report, or else counted."""
    wanted = {
        (record[branch], record["estimator"])
        for record in records
        for branch in ("branch", "deeper_branch")
        if branch in record
    }
    branches = sorted({branch for branch, _ in wanted} | set(grid.BRANCHES))
    if options.call_times:
        times: speed.CallTimes | None = speed.from_bench(options.call_times)
    elif options.measure:
        times = speed.measure(branches)
    else:
        times = speed.recorded(options.out / "evidence.json") or speed.recorded(DOCS / "evidence.json")
    if times is None or not speed.covers(times, wanted):
        times = speed.counted(branches, grid.ESTIMATORS)
    return times


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # these UNets are too small to share; processor time is then their own
    checkpoint = checkpoint_called(options.model)
    size = options.size or int(checkpoint.trained.get("size", 128))
    pairs, tasks = pairs_for(checkpoint, options.pairs), chosen_tasks(options)
    path = options.work / f"results-{checkpoint.name}-{fingerprint(checkpoint, size)}.jsonl"
    with Results(options.results or path) as results:
        if not options.report:
            before = len(results.records)
            try:
                with Studio(checkpoint, size) as studio:
                    complete = run(studio, tasks, pairs, options.batch, results, options.minutes)
            except KeyboardInterrupt:
                made = len(results.records) - before
                print(f"\nstopped; {made} new comparisons are kept, the same command continues", file=sys.stderr)
                return 130
            if not complete:
                print("the time is up; the same command continues", file=sys.stderr)
        results.read()
        known = {(pair.seed, pair.prompt) for pair in pairs}
        records = [record for record in results.records if key_of(record)[4:] in known]
    if not records:
        print("nothing to report: no picture has been made yet", file=sys.stderr)
        return 1
    times = call_times(options, records)
    made = {record["seed"] for record in records}
    facts = report.Facts(
        checkpoint.name,
        checkpoint.weights is not None,
        size,
        len(pairs),
        [pair.prompt for pair in pairs if pair.seed in made],
        options.quick,
        "make evidence" + (" QUICK=1" if options.quick else ""),
    )
    report.write(options.out, summarise(tasks, records, times), times, facts)
    print(f"wrote {os.path.relpath(options.out / 'evidence.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
