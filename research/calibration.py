"""`python -m research.calibration`: what Calibrate gains on pictures it has not seen, in the loop of `research.tried`.

The search tries its plans on the seeds of one prompt, and keeps what it finds if other seeds say so too, as in the
WebUI. That plan, the weighted plan that ships and plain uniform copying are then held against the uncached pictures of
other prompts. All on the half of the words that `make evidence` does not report on; `--checkpoint FOLDER` takes another
checkpoint that `python -m train` wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from bench.evidence.metrics import psnr
from bench.tables import markdown, row
from deepcache_ext.calibrate.search import Proposal, Wanted, Wish, search
from deepcache_ext.plan import cost
from deepcache_ext.plan.importance import Nature
from deepcache_ext.plan.preview import PassAhead, PlannedPass, planned
from deepcache_ext.settings.settings import Settings, parse
from research.tried import ESTIMATORS, Studio, Way, begin, questions

DEPTH = cost.USUAL_DEPTH
NAMES = {"copy": "copy", "forecast": "trust, a channel"}


class Trial:
    """Plans on the pictures of one studio."""

    def __init__(self, studio: Studio, sampler: str, steps: int, guidance: float) -> None:
        self._studio, self._asked = studio, (sampler, steps, guidance)
        self._uncached = studio.run(*self._asked)

    def scores(self, plan: PlannedPass) -> tuple[list[float], float]:
        """PSNR in dB of each picture, and the speed-up."""
        branches = plan.branches
        full = frozenset(k for k, branch in enumerate(branches) if branch is None)
        deeper = {k: branch for k, branch in enumerate(branches) if branch}
        way = Way(full, 0, ESTIMATORS[NAMES[plan.estimator.name]], deeper)
        found = psnr(self._studio.run(*self._asked, way), self._uncached)
        return [float(one) for one in found], len(branches) / way.cost


def main(argv: Sequence[str] | None = None) -> None:
    parser = questions("calibration", __doc__)
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="default: the demo's")
    parser.add_argument("--steps", default="20,30")
    parser.add_argument("--speed-ups", default="1.6,2.0,2.6")
    parser.add_argument("--pictures", type=int, default=Wish().pictures)
    parser.add_argument("--tries", type=int, default=Wish().tries)
    options = parser.parse_args(argv)
    begin()
    both, pictures = Studio(2 * options.pictures + options.pairs, options.checkpoint), options.pictures
    studios = (
        both.of_one_prompt(range(pictures)),
        both.of_one_prompt(range(pictures, 2 * pictures)),
        both.picked(range(2 * pictures, both.count)),
    )
    print("\n".join(markdown(("steps", "sampler", "asked", "uniform copy", "weighted", "calibrated"))))
    for steps in map(int, options.steps.split(",")):
        for sampler in options.samplers.split(","):
            trials = [Trial(studio, sampler, steps, options.guidance) for studio in studios]
            sigmas = tuple(float(sigma) for sigma in both.sigmas(sampler, steps)[:-1])
            nature = Nature(sampler == "Euler a", both.prediction)
            for asked in map(float, options.speed_ups.split(",")):
                cells = line(*trials, PassAhead(False, steps, sigmas, DEPTH, nature), asked, options.tries)
                print(row((str(steps), sampler, f"{asked:g}x", *cells)), flush=True)


def line(tuning: Trial, judging: Trial, others: Trial, ahead: PassAhead, speed_up: float, tries: int) -> list[str]:
    """Of uniform copying, the weighted plan and the calibrated one: likeness and speed-up on `others`."""
    weighted = Settings(enabled=True, strategy="weighted", speed_up=speed_up)
    first = planned(weighted, ahead)

    def listed(one: Proposal) -> PlannedPass:
        own = {"full_evaluations": one.text, "cache_branch_id": one.branch, "estimator": one.estimator}
        return planned(replace(weighted, strategy="custom", **own), ahead)

    assert ahead.sigmas is not None
    wanted = Wanted(ahead.sigmas, speed_up, 0, ahead.depth, ahead.nature)
    beaten = Proposal(tuple(first.branches))
    found = search(wanted, beaten, tuning.scores(first)[0], tries, lambda one: tuning.scores(listed(one))[0])
    best = listed(found.best)
    if fmean(judging.scores(best)[0]) <= fmean(judging.scores(first)[0]):
        best = first
    copying = next(
        one
        for one in (uniform(ahead, interval) for interval in range(2, ahead.total))
        if (one.speed_up() or math.inf) >= cost.NEARLY * speed_up
    )
    results = (others.scores(one) for one in (copying, first, best))
    return [f"{fmean(scores):.1f} at {reached:.2f}x" for scores, reached in results]


def uniform(ahead: PassAhead, interval: int) -> PlannedPass:
    return planned(parse([{"enabled": True, "cache_interval": interval, "estimator": "copy"}]), ahead)


if __name__ == "__main__":
    main()
