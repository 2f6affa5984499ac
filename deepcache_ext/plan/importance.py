"""Where an error counts most in the finished picture, and the evaluations that are therefore full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Nature:
    """What of a pass decides how much an error counts. `fresh_noise`: its sampler adds noise in the course of it
    (ancestral, SDE); `all_fresh`: it replaces all noise at every step (LCM).
    """

    fresh_noise: bool = False
    all_fresh: bool = False


USUAL = Nature()


ORDER, ORDER_FRESH = 1.5, 1.0
"""An error of the kept feature grows with this power of its age in log sigma: without fresh noise, and where some moves
the latent about. Fitted on three networks of the laboratory's choosing half, as which pictures come nearest
(research/laboratory.md).
"""


def order(nature: Nature) -> float:
    """The power for that kind of pass: see `ORDER`."""
    return ORDER_FRESH if nature.fresh_noise else ORDER


def weights(sigmas: Sequence[float], nature: Nature = USUAL) -> np.ndarray:
    """How much an error of the UNet's kept feature at each evaluation counts in the finished picture, (n,).

    Two factors, of the noise level s before and s' after the step. 1 - s'/s: the share of the denoised estimate that
    the step takes into the latent. s / sqrt(s^2 + m^2): above m all errors count alike, below in proportion to s. So it
    was measured, one cached evaluation at a time, on networks that predict noise (bench/laboratory); m is `MIDDLE`.
    """
    now = np.asarray(sigmas, dtype=np.float64)
    after = np.append(now[1:], 0.0)
    middle = MIDDLE_FRESH if nature.fresh_noise else MIDDLE
    return np.abs(1 - after / now) * now / np.sqrt(now**2 + middle**2)


MIDDLE, MIDDLE_FRESH = 2.5, 1.0
"""m of `weights`: sigmas. A sampler that adds fresh noise forgets more of what went wrong early. Fitted on three
networks of the laboratory's choosing half, 20 steps, guidance 7 (research/laboratory.md).
"""


def spreads(
    sigmas: Sequence[float], least: int, most: int, must: frozenset[int] = frozenset(), nature: Nature = USUAL
) -> dict[int, tuple[int, ...]]:
    """For every number from `least` to `most`, or from as many as `must` asks for: that many full evaluations with the
    least predicted error of all such choices.

    A cached evaluation adds its weight times (distance in log sigma from the last full one)^`order`: what is kept lags
    behind in one direction, so errors add up. Dynamic programming over the last full evaluation and how many there
    were.
    """
    count = len(sigmas)
    least = min(max(least, len(must | {0})), count)
    most = min(max(most, least), count)
    place, weight = np.log(np.asarray(sigmas, dtype=np.float64)), weights(sigmas, nature)
    power = order(nature)
    free = max(least - len(must | {0}) + 1, 1)
    widest = min(count, max(8, 3 * -(-count // free)))
    # added[k, gap - 1]: what the cached evaluations between a full one at k and the next at k + gap add.
    added = np.full((count, widest), np.inf)
    for k in range(count):
        total = 0.0
        for gap in range(1, widest + 1):
            added[k, gap - 1] = total
            if k + gap >= count or k + gap in must:
                break
            total += float(weight[k + gap] * abs(place[k + gap] - place[k]) ** power)
    after = np.array([added[k, count - k - 1] if count - k <= widest else np.inf for k in range(count)])
    best = np.full(count, np.inf)
    best[0] = 0.0
    came_from = np.zeros((most, count), dtype=int)
    found = {}
    for n in range(1, most + 1):
        last = int(np.argmin(best + after))
        if n >= least and math.isfinite(best[last] + after[last]):
            chosen = [last]
            for m in range(n - 1, 0, -1):
                chosen.append(int(came_from[m, chosen[-1]]))
            found[n] = tuple(reversed(chosen))
        elif n >= least:
            found[n] = tuple(sorted({0, *must, *range(0, count, -(-count // n))}))
        if n == most:
            break
        following = np.full(count, np.inf)
        for gap in range(1, min(widest, count - 1) + 1):
            reached = best[:-gap] + added[: count - gap, gap - 1]
            better = reached < following[gap:]
            following[gap:][better] = reached[better]
            came_from[n, gap:][better] = np.nonzero(better)[0]
        best = following
    return found
