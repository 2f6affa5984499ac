"""`python -m bench.rivals`: every rival on the laboratory's networks, into JSON; what is there is kept.

`--half choosing` or `judging`, or names of networks; `--write` puts what is there into docs/rivals.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product

import torch

from bench.laboratory.results import Results
from bench.laboratory.studio import Studio
from bench.laboratory.ways import SPEED_UPS
from train.laboratory.networks import CHOOSING, JUDGING, called, of_half

from . import page, ways
from .page import FOLDER, MEASURED, STEPS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; default: the judging half")
    parser.add_argument("--half", choices=(CHOOSING, JUDGING), default=JUDGING)
    parser.add_argument("--samplers", default=",".join(MEASURED))
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--guidance", default="7")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="the page alone")
    options = parser.parse_args(argv)
    if options.write:
        page.write()
        return 0
    torch.set_num_threads(1)
    networks = [called(name) for name in options.names] or of_half(options.half)
    guidances, steps = map(float, options.guidance.split(",")), map(int, options.steps.split(","))
    # A cell on every network before the next one: what is there when time runs out is whole.
    cells = list(product(guidances, options.samplers.split(","), steps))
    studios = [Studio(network, options.pictures) for network in networks]
    guesses: ways.Guesses = {}
    for (guidance, sampler, count), studio in product(cells, studios):
        measure(ways.Cell(studio, guidance, count, sampler), Results(studio.network.name, FOLDER), guesses)
    return 0


def measure(cell: ways.Cell, results: Results, guesses: ways.Guesses) -> None:
    """What is missing of this cell; rivals are made as fast as the presets were there."""
    begun, studio, at = time.perf_counter(), cell.studio, (cell.sampler, cell.steps, cell.guidance)
    ours = Results(studio.network.name)
    wishes = {wanted: found[0] for wanted in SPEED_UPS if (found := ours.mean(*at, f"preset @{wanted:g}"))}
    told = 0
    for key, made in ways.all_of(cell, wishes, lambda key: not results.has(*at, key, studio.count), guesses):
        results.add(*at, key, round(made.speed_up, 3), [round(value, 2) for value in made.likeness])
        results.save()
        told += 1
    studio.forget()
    if told:
        took = time.perf_counter() - begun
        print(f"{studio.network.name}: {cell.sampler}, {cell.steps} steps: {told} ways, {took:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
