"""`python -m bench.laboratory.calibrated`: what Calibrate gains over the presets, with its own search and defaults.

The search sees `Wish.pictures` pictures; what it found and the preset's plan are then judged by others, of other texts
and seeds. The real Calibrate also keeps the preset's plan where that is the better one on pictures of its own choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from statistics import fmean

import torch

from bench.tables import row
from deepcache_ext.calibrate.search import Proposal, Wanted, Wish, search
from deepcache_ext.plan.plan import ListedPlan
from deepcache_ext.plan.strategies import estimator_for
from deepcache_ext.settings.settings import parse
from train.laboratory.networks import JUDGING, called, of_half

from . import ways
from .samplers import SAMPLERS
from .studio import Studio

TUNING_SEED = 9016
"""Of the first picture that the search sees: none that is judged, in text or seed."""

HEAD = ("network", "sampler", "asked", "above plain DeepCache: preset", "calibrated", "estimator, branch", "plan")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.laboratory.calibrated", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; default: the judging half")
    parser.add_argument("--samplers", default="Euler,DPM++ 2M Karras,Euler a")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--pictures", type=int, default=6, help="that judge; default: %(default)s")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    gains = []
    print("\n".join((row(HEAD), "|---" * len(HEAD) + "|")))
    for network in [called(name) for name in options.names] or of_half(JUDGING):
        for gain, line in one_network(Studio(network, options.pictures), options):
            gains.append(gain)
            print(row(line), flush=True)
    print(
        f"Above the preset: {fmean(gains):+.1f} dB in the mean, {min(gains):+.1f} at worst, {max(gains):+.1f} at best."
    )


def one_network(judging: Studio, options: argparse.Namespace) -> Iterator[tuple[float, tuple[str, ...]]]:
    tuning = Studio(judging.network, Wish().pictures, TUNING_SEED)
    for sampler, wanted in product(options.samplers.split(","), ways.SPEED_UPS):
        asked, depth, nature = (sampler, options.steps, options.guidance), judging.depth, judging.nature(sampler)
        ahead = ways.of(SAMPLERS[sampler].sigmas(options.steps), depth, nature)
        preset = ways.shipped("preset", wanted, 0, ahead).plan
        assert preset is not None
        first = Proposal(tuple(preset.branch_at(k) for k in range(ahead.steps)))

        def score(studio: Studio, one: Proposal, ahead: ways.Pass = ahead, asked: tuple = asked) -> list[float]:  # type: ignore[type-arg]
            plan = as_plan(one)
            settings = parse([{"enabled": True, "estimator": one.estimator}])
            return studio.likeness(*asked, plan, estimator_for(settings, plan, ahead.steps, ahead.sigmas, ahead.nature))

        search_for = Wanted(ahead.sigmas, wanted, 0, depth, nature)
        found = search(search_for, first, score(tuning, first), Wish().tries, lambda one: score(tuning, one))
        even = ways.even(ahead.steps, ways.full_for(ahead, wanted, 0))
        plain = Proposal(tuple(None if k in even else 0 for k in range(ahead.steps)), "copy")
        uniform, before, after = (fmean(score(judging, one)) for one in (plain, first, found.best))
        told = (f"{before - uniform:+.1f}", f"{after - uniform:+.1f}", f"{found.best.estimator}, {found.best.branch}")
        yield after - before, (judging.network.name, sampler, f"{wanted:g}x", *told, found.best.text)
        judging.forget()
        tuning.forget()


def as_plan(one: Proposal) -> ListedPlan:
    full = tuple(k for k, branch in enumerate(one.plan) if branch is None)
    renewed = {k: branch for k, branch in enumerate(one.plan) if branch not in (None, one.branch)}
    deeper = max((branch for branch in renewed.values() if branch is not None), default=0)
    return ListedPlan(full, one.branch, len(one.plan), 0.0, 1.0, tuple(renewed), deeper)


if __name__ == "__main__":
    main()
