"""`python -m research.tried_plans`: plans that were tried beside the weighted one, in the loop of `research.tried`.

By depth: some of the evaluations that would be full run a deeper branch and renew the shallower feature. Adaptive:
full whenever the input has moved far enough, each picture for itself. Calibrated: what the feature did in uncached
runs of other pictures, instead of the law of `deepcache_ext.plan.importance.weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from bench.evidence.metrics import psnr
from bench.tables import markdown, row
from deepcache_ext.plan import cost
from deepcache_ext.plan.importance import Nature, weighted, weights
from research.tried import ESTIMATORS, Studio, Way, begin, questions

TRUST = "trust, a channel"
RIVALS = ("weighted", "by depth", "adaptive", "calibrated")


def by_depth(sigmas: Sequence[float], speed: float, branch: int, every: int, fresh_noise: bool) -> Way:
    """Of the weighted evaluations only each `every`-th is full, the others run `branch`; as many as `speed` allows."""
    steps, found = len(sigmas), Way(frozenset({0}), 0)
    for count in range(2, steps + 1):
        renewed = sorted(weighted(sigmas, count, nature=Nature(fresh_noise, "v")))
        full = frozenset(renewed[::every])
        deeper = {k: branch for k in renewed if k not in full}
        spent = len(full) + len(deeper) * cost.share(branch) + (steps - count) * cost.share(0)
        if steps / spent < speed:
            break
        found = Way(full, 0, ESTIMATORS[TRUST], deeper)
    return found


def features(studio: Studio, sampler: str, steps: int, guidance: float) -> list[torch.Tensor]:
    """The feature at branch 0 of each evaluation of an uncached run."""
    way = Way(frozenset(range(steps)), 0)
    seen: list[torch.Tensor] = []
    keep = way.keep
    way.keep = lambda at, kept: (seen.append(kept[0]), keep(at, kept))[1]  # type: ignore[method-assign, func-returns-value]
    studio.run(sampler, steps, guidance, way)
    return seen


def calibrated(sigmas: Sequence[float], seen: Sequence[torch.Tensor], full: int, fresh_noise: bool) -> frozenset[int]:
    """The full evaluations of least predicted error: squares of weight times what a half damped forecast from the last
    two full ones missed in `seen`, by dynamic programming over those two.
    """
    steps, place = len(sigmas), np.log(np.asarray(sigmas))
    taken = weights(sigmas, Nature(fresh_noise, "v"))
    drift = 1.0 if fresh_noise else (0.8 + 0.35 * np.asarray(sigmas)) * sigmas / np.sqrt(1 + np.square(sigmas))
    weight = taken / drift  # the measured error takes the place of the law's drift
    flat = torch.stack([one.flatten() for one in seen])
    products = (flat @ flat.T).double().numpy()

    def missed(before: int, last: int, at: int) -> float:
        r = 0.0 if before == last else 0.5 * min((place[at] - place[last]) / (place[last] - place[before]), 2.0)
        shares = np.zeros(steps)
        shares[at] += 1
        shares[last] -= 1 + r
        shares[before] += r
        return float(max(shares @ products @ shares, 0.0)) * float(weight[at]) ** 2

    widest = max(8, 3 * -(-steps // full))
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, (0,))}
    for _ in range(full - 1):
        following: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (before, last), (spent, path) in best.items():
            added = 0.0
            for at in range(last + 1, min(last + widest, steps)):
                known = following.get((last, at))
                if known is None or spent + added < known[0]:
                    following[(last, at)] = spent + added, (*path, at)
                added += missed(before, last, at)
        best = following
    ends = [
        (spent + sum(missed(before, last, at) for at in range(last + 1, steps)), path)
        for (before, last), (spent, path) in best.items()
    ]
    return frozenset(min(ends)[1])


def adaptive(
    studio: Studio, sampler: str, steps: int, guidance: float, speed: float, reference: torch.Tensor
) -> tuple[float, float]:
    """Mean PSNR and speed-up with the threshold, one for all pictures, that comes closest to `speed`."""
    low, high, found = 0.0, 2.0, (math.inf, 1.0)
    for _ in range(7):
        threshold, likeness, cost = (low + high) / 2, [], 0.0
        for k in range(len(reference)):
            way = Way(frozenset({0, 1}), 0, ESTIMATORS[TRUST], threshold=threshold)
            picture = studio.picked([k]).run(sampler, steps, guidance, way)
            likeness.append(float(psnr(picture, reference[k : k + 1]).mean()))
            cost += way.cost
        reached = steps * len(reference) / cost
        if abs(reached - speed) < abs(found[1] - speed):
            found = sum(likeness) / len(likeness), reached
        low, high = (threshold, high) if reached < speed else (low, threshold)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = questions("tried_plans", __doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--speed-ups", default="1.6,2.0,2.6")
    parser.add_argument("--only", default=",".join(RIVALS), help="of: " + ", ".join(RIVALS))
    options = parser.parse_args(argv)
    begin()
    both, steps, guidance = Studio(2 * options.pairs), options.steps, options.guidance
    studio = both.picked(range(options.pairs))
    others = both.picked(range(options.pairs, 2 * options.pairs))
    print("\n".join(markdown(("sampler", "asked", "speed-up", "plan", "PSNR, dB"))))
    for sampler in options.samplers.split(","):
        fresh_noise = sampler == "Euler a"
        reference = studio.run(sampler, steps, guidance)
        sigmas = [float(sigma) for sigma in studio.sigmas(sampler, steps)[:-1]]
        seen = features(others, sampler, steps, guidance)
        for asked in map(float, options.speed_ups.split(",")):
            full = cost.full_for(steps, asked, cost.share(0))
            chosen = frozenset(weighted(sigmas, full, nature=Nature(fresh_noise, "v")))
            ways = {"weighted": Way(chosen, 0, ESTIMATORS[TRUST])}
            for branch, every in ((2, 2), (5, 2), (8, 2), (2, 3)):
                name = f"by depth: each {every}. full, the others branch {branch}"
                ways[name] = by_depth(sigmas, asked, branch, every, fresh_noise)
            ways["calibrated"] = Way(calibrated(sigmas, seen, full, fresh_noise), 0, ESTIMATORS[TRUST])
            found = {}
            for name, way in ways.items():
                if name.split(":")[0] in options.only:
                    picture = studio.run(sampler, steps, guidance, way)
                    found[name] = float(psnr(picture, reference).mean()), steps / way.cost
            if "adaptive" in options.only:
                found["adaptive"] = adaptive(studio, sampler, steps, guidance, asked, reference)
            for name, (likeness, speed) in found.items():
                print(row((sampler, f"{asked:g}x", f"{speed:.2f}x", name, f"{likeness:.1f}")), flush=True)


if __name__ == "__main__":
    main()
