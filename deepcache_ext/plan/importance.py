"""Where an error counts most in the finished picture, and the evaluations that are therefore full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import cost


@dataclass(frozen=True)
class Nature:
    """What of a pass decides how much an error counts. `fresh_noise`: its sampler adds noise in the course of it
    (ancestral, SDE); `all_fresh`: it replaces all noise at every step (LCM).
    """

    fresh_noise: bool = False
    all_fresh: bool = False


USUAL = Nature()


@dataclass(frozen=True)
class Law:
    """How the error of a plan is predicted. `order`: an error of the forecast grows with this power of the distance in
    log sigma. `tilt`: further power of sigma in the weights, below 0 for more at the end of the run.

    The defaults go with `weights` as they were measured on three networks of the laboratory's choosing half
    (research/laboratory.md).
    """

    order: float = 1.5
    tilt: float = 0.0


ONE_BRANCH = Law()


BY_DEPTH = Law(order=2.0, tilt=-0.2)
"""For plans with a deeper branch. Fitted on the demo's first checkpoint with the weights before the present ones (24
laws, three samplers, research/plans.md); with these it was measured as it is, not fitted anew (research/laboratory.md).
"""


def weights(sigmas: Sequence[float], nature: Nature = USUAL, law: Law = ONE_BRANCH) -> np.ndarray:
    """How much an error of the UNet's kept feature at each evaluation counts in the finished picture, (n,).

    Two factors, of the noise level s before and s' after the step. 1 - s'/s: the share of the denoised estimate that
    the step takes into the latent. s / sqrt(s^2 + m^2): above m all errors count alike, below in proportion to s. So it
    was measured, one cached evaluation at a time, on networks that predict noise (bench/laboratory); m is `MIDDLE`.
    """
    now = np.asarray(sigmas, dtype=np.float64)
    after = np.append(now[1:], 0.0)
    middle = MIDDLE_FRESH if nature.fresh_noise else MIDDLE
    return np.abs(1 - after / now) * now / np.sqrt(now**2 + middle**2) * now**law.tilt


MIDDLE, MIDDLE_FRESH = 2.5, 1.0
"""m of `weights`: sigmas. A sampler that adds fresh noise forgets more of what went wrong early. Fitted on three
networks of the laboratory's choosing half, 20 steps, guidance 7 (research/laboratory.md).
"""


def weighted(
    sigmas: Sequence[float],
    full: int,
    must: frozenset[int] = frozenset(),
    nature: Nature = USUAL,
    law: Law = ONE_BRANCH,
) -> tuple[int, ...]:
    """The `full` evaluations (more where `must` asks for more) with the least predicted error of all such choices.

    A cached evaluation adds its weight times (distance in log sigma from the last full one)^order: what is kept lags
    behind in one direction, so errors add up. Dynamic programming over the last full evaluation and how many there
    were.
    """
    count = len(sigmas)
    full = max(full, len(must | {0}))
    if full >= count:
        return tuple(range(count))
    place, weight = np.log(np.asarray(sigmas, dtype=np.float64)), weights(sigmas, nature, law)
    widest = min(count, max(8, 3 * -(-count // full)))
    # added[k, gap - 1]: what the cached evaluations between a full one at k and the next at k + gap add.
    added = np.full((count, widest), np.inf)
    for k in range(count):
        total = 0.0
        for gap in range(1, widest + 1):
            added[k, gap - 1] = total
            if k + gap >= count:
                break
            if k + gap in must:
                break
            total += float(weight[k + gap] * abs(place[k + gap] - place[k]) ** law.order)
    best = np.full(count, np.inf)
    best[0] = 0.0
    came_from = np.zeros((full, count), dtype=int)
    for n in range(1, full):
        following = np.full(count, np.inf)
        for gap in range(1, min(widest, count - 1) + 1):
            reached = best[:-gap] + added[: count - gap, gap - 1]
            better = reached < following[gap:]
            following[gap:][better] = reached[better]
            came_from[n, gap:][better] = np.nonzero(better)[0]
        best = following
    ends = [best[k] + (added[k, count - k - 1] if count - k <= widest else np.inf) for k in range(count)]
    last = int(np.argmin(ends))
    if not math.isfinite(ends[last]):
        return tuple(sorted({0, *must, *range(0, count, -(-count // full))}))
    found = [last]
    for n in range(full - 1, 0, -1):
        found.append(int(came_from[n, found[-1]]))
    return tuple(reversed(found))


def by_depth(
    sigmas: Sequence[float],
    speed_up: float,
    branches: tuple[int, int],
    depth: int,
    must: frozenset[int] = frozenset(),
    nature: Nature = USUAL,
    law: Law = BY_DEPTH,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The full evaluations, and those that run the deeper one of the two `branches`: of the `weighted` ones, as many as
    `speed_up` allows, every second runs the deeper branch, but where `must` asks for a full one.
    """
    shallow, deeper = (cost.share(branch, depth) for branch in branches)
    count = len(sigmas)
    pairs = (count / (cost.NEARLY * speed_up) - count * shallow) / (1 + deeper - 2 * shallow)
    least = max(2, len(must | {0}))
    renewals = min(max(int(2 * pairs) + 1, least), count)  # one too many, at most: of an odd number one more is full
    while True:
        chosen = weighted(sigmas, renewals, must, nature, law)
        full = tuple(k for place, k in enumerate(chosen) if place % 2 == 0 or k in must)
        renewed = tuple(k for k in chosen if k not in full)
        spent = len(full) + len(renewed) * deeper + (count - len(chosen)) * shallow
        if renewals <= least or count / spent >= cost.NEARLY * speed_up:
            return full, renewed
        renewals -= 1
