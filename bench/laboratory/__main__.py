"""`python -m bench.laboratory`: every way on every network of the laboratory, into JSON; what is there is kept.

`--half choosing`, `judging` or `later`, or names of networks; `--table` only prints the tables of what is there,
`--write` puts them into docs/evidence.md, docs/which_settings.md and the README.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product

import torch

from train.laboratory.networks import CHOOSING, JUDGING, LATER, NETWORKS, called, of_half

from . import page, table, ways
from .page import GUIDANCES, STEPS
from .results import Results
from .samplers import SAMPLERS
from .studio import Studio


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.laboratory", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; default: all")
    parser.add_argument("--half", choices=(CHOOSING, JUDGING, LATER))
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--guidance", default=",".join(f"{g:g}" for g in GUIDANCES))
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--ways", default="", help="only those whose names begin with one of these, comma-separated")
    parser.add_argument("--table", action="store_true", help="the tables alone")
    parser.add_argument("--write", action="store_true", help="the pages alone")
    options = parser.parse_args(argv)
    if options.write:
        page.write()
        return 0
    torch.set_num_threads(1)
    chosen = [called(name) for name in options.names] or (of_half(options.half) if options.half else NETWORKS)
    guidances, steps = map(float, options.guidance.split(",")), map(int, options.steps.split(","))
    cells = list(product(guidances, steps, options.samplers.split(",")))
    for network in () if options.table else chosen:
        measure(Studio(network, options.pictures), cells, tuple(options.ways.split(",")))
    print(table.whole([Results(network.name) for network in chosen], cells))
    return 0


def measure(studio: Studio, cells: list[tuple[float, int, str]], beginnings: tuple[str, ...] = ("",)) -> None:
    """What is missing of these (guidance, steps, sampler) and of the ways whose names begin so; each cell is recorded
    when it is whole.
    """
    results = Results(studio.network.name)
    for guidance, steps, sampler in cells:
        begun = time.perf_counter()
        ahead = ways.of(SAMPLERS[sampler].sigmas(steps), studio.depth, studio.nature(sampler))
        every = [one for one in ways.every(ahead) if one.name.startswith(beginnings)]
        missing = [one for one in every if not results.has(sampler, steps, guidance, one.key, studio.count)]
        for one in missing:
            estimator = one.estimator() if one.estimator else None
            found = studio.likeness(sampler, steps, guidance, one.plan, estimator, one.fewer)
            results.add(sampler, steps, guidance, one.key, one.speed_up, found)
        if missing:
            results.save()
            took = time.perf_counter() - begun
            print(f"{studio.network.name}: {sampler}, {steps} steps, guidance {guidance:g}: {took:.0f} s", flush=True)
        studio.forget()


if __name__ == "__main__":
    sys.exit(main())
