"""`python -m bench.laboratory.measured`: what plans gain by a network's own ageing, measured as the extension does.

Each network is measured once for each kind of sampler, by pictures of texts and seeds that are not judged; then plans
of all samplers, steps and speeds go by it. Printed as a table, and kept as `results/measured.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from bench.tables import row
from deepcache_ext.measure.profile import MadeFor
from deepcache_ext.measure.trial import Wish, ageing_of, every_second
from deepcache_ext.plan.ageing import SOUNDED, UNMEASURED, Ageing, learned
from deepcache_ext.plan.estimators import ESTIMATORS
from deepcache_ext.plan.plan import ListedPlan
from deepcache_ext.plan.strategies import estimator_for, plan_for
from deepcache_ext.settings.settings import parse
from train.laboratory.networks import CHOOSING, JUDGING, Network, called, of_half

from . import ways
from .results import FOLDER
from .samplers import SAMPLERS
from .studio import Studio

TUNING_SEED = 9016
"""Of the first picture that a network is measured by: none that is judged, in text or seed."""
MEASURED_WITH, STEPS = ("Euler", "Euler a"), 20
KEPT = FOLDER / "measured.json"

HEAD = ("sampler", "steps", "asked", "above plain DeepCache: preset", "measured")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.laboratory.measured", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; default: those of the half")
    parser.add_argument("--half", choices=(CHOOSING, JUDGING), default=JUDGING, help="default: %(default)s")
    parser.add_argument("--samplers", default="Euler,DPM++ 2M Karras,UniPC,Euler a,DPM++ 2M SDE")
    parser.add_argument("--steps", default="20,30")
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--pictures", type=int, default=8, help="that judge; default: %(default)s")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cells = list(product(options.samplers.split(","), map(int, options.steps.split(","))))
    networks = [called(name) for name in options.names] or of_half(options.half)
    found: dict[str, list[float]] = {}
    for network in networks:
        ageing = measured(network, options.guidance)
        print(f"{network.name}: {ageing}", flush=True)
        for key, values in one_network(Studio(network, options.pictures), cells, options.guidance, ageing):
            found[f"{network.name}|{key}"] = values
        keep(found)
    print("\n".join(table(found)))


def measured(network: Network, guidance: float) -> dict[bool, Ageing]:
    """The ageing of all branches, for samplers that add fresh noise (True) and for others."""
    studio, found = Studio(network, Wish().pictures, TUNING_SEED), {}
    for sampler in MEASURED_WITH:
        nature, sigmas = studio.nature(sampler), SAMPLERS[sampler].sigmas(STEPS)
        made_for, scores = MadeFor(network.name, "", studio.depth, nature.fresh_noise, sampler, STEPS), {}
        for branch in SOUNDED[studio.depth]:
            settings = parse([{"enabled": True, **every_second(made_for, branch)}])
            plan, _ = plan_for(settings, STEPS, sigmas, studio.depth, nature)
            estimator = estimator_for(settings, plan, STEPS, sigmas, nature, studio.depth)
            scores[branch] = studio.likeness(sampler, STEPS, guidance, plan, estimator)
        found[nature.fresh_noise] = learned(ageing_of(scores), UNMEASURED[studio.depth, nature.fresh_noise])
    return found


def one_network(
    studio: Studio, cells: list[tuple[str, int]], guidance: float, ageing: Mapping[bool, Ageing]
) -> Iterator[tuple[str, list[float]]]:
    """Of each cell the mean PSNR of plain DeepCache, the preset and the measured plan, in dB."""
    for (sampler, steps), wanted in product(cells, ways.SPEED_UPS):
        nature = studio.nature(sampler)
        ahead = ways.of(SAMPLERS[sampler].sigmas(steps), studio.depth, nature)
        plain = ListedPlan(ways.even(steps, ways.full_for(ahead, wanted, 0)), 0, steps)
        three = (
            ways.way("plain", wanted, plain, ESTIMATORS["copy"], ahead),
            ways.shipped(wanted, ahead),
            ways.shipped(wanted, ahead, ageing[nature.fresh_noise]),
        )
        scores = [fmean(studio.likeness(sampler, steps, guidance, one.plan, one.estimator())) for one in three]  # type: ignore[misc]
        yield f"{sampler}|{steps}|{wanted:g}", [round(score, 2) for score in scores]


def keep(found: Mapping[str, list[float]], path: Path = KEPT) -> None:
    """Beside what is there of other cells."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, **found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def table(found: Mapping[str, list[float]]) -> Iterator[str]:
    """dB above plain DeepCache by sampler, steps and speed: the mean over networks, and the worst of them."""
    yield row(HEAD)
    yield "|---" * len(HEAD) + "|"
    cells: dict[tuple[str, ...], list[list[float]]] = {}
    for key, values in found.items():
        cells.setdefault(tuple(key.split("|")[1:]), []).append(values)
    for (sampler, steps, wanted), those in cells.items():
        gains = [[values[place] - values[0] for values in those] for place in (1, 2)]
        yield row((sampler, steps, f"{wanted}x", *(f"{fmean(one):+.1f} ({min(one):+.1f})" for one in gains)))
    over = [values[2] - values[1] for values in found.values()]
    yield ""
    yield f"Above the preset: {fmean(over):+.1f} dB in the mean, {min(over):+.1f} at worst, {max(over):+.1f} at best."


if __name__ == "__main__":
    main()
