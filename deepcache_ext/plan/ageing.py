"""How fast kept features age, by branch, and which branches serve a plan best for that.

The deeper a kept feature lies, the less the picture suffers from its age, and the more a cached evaluation costs. What
an error at an evaluation counts is `importance.weights`'; how the two weigh up hangs on the model, and on whether the
sampler adds fresh noise: that is the *ageing*, a few numbers for a model that can be measured (`measure/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from . import cost
from .importance import USUAL, Nature, order, spreads, weights

Ageing = Mapping[int, float]
"""By branch: the error of the finished picture where every second evaluation is cached at it, in units of branch 0's.
Only the branches that it names are chosen among.
"""

UNMEASURED: dict[tuple[int, bool], Ageing] = {
    (12, False): {0: 1.0, 1: 0.85, 2: 0.80, 3: 0.84, 5: 0.87},
    (12, True): {0: 1.0, 1: 0.56, 2: 0.37, 3: 0.33, 5: 0.25},
    (9, False): {0: 1.0, 1: 0.85, 2: 0.89, 3: 0.53, 4: 0.32, 5: 0.23},
    (9, True): {0: 1.0, 1: 0.62, 2: 0.53, 3: 0.45, 4: 0.30, 5: 0.16},
}
"""By the number of output blocks (SD1.x and SD2.x have 12, SDXL 9) and whether the sampler adds fresh noise: of each
branch the worst of the laboratory's choosing half, forecasts with Euler and copies with Euler a, 20 steps, guidance 7;
with 12 blocks and fresh noise half-way to the mean, since branch 0 is no safe choice there (research/laboratory.md).
"""

SOUNDED: dict[int, tuple[int, ...]] = {12: (0, 2, 5), 9: (0, 3, 5)}
"""The branches that are measured of a model, by the number of output blocks; of the others `learned` tells."""


def learned(measured: Ageing, usual: Ageing) -> Ageing:
    """The ageing of all of `usual`'s branches, from what was measured of some: between those log-linear in the branch,
    beyond the outermost as there, and then half-way to the usual one. A few pictures say only so much: gone by alone,
    what they say was no better than the usual one on the laboratory's choosing half (research/laboratory.md).
    """
    known, branches = sorted(measured), sorted(usual)
    found = np.interp(branches, known, np.log([measured[branch] for branch in known]))
    expected = np.log([usual[branch] for branch in branches])
    return dict(zip(branches, map(float, np.exp((found + expected) / 2)), strict=True))


Spread = tuple[tuple[int, ...], tuple[int, ...], int, int]
"""Of a plan: the full evaluations, the medium ones (none: a plan of one branch), the branch, and the medium one's."""


def least_error(
    sigmas: Sequence[float],
    speed_up: float,
    depth: int,
    ageing: Ageing,
    must: frozenset[int] = frozenset(),
    nature: Nature = USUAL,
) -> Spread:
    """The plan of that speed-up with the least `predicted` error: of one branch, or of two that are not neighbours.
    `depth`: how many output blocks the UNet has. `must`: evaluations that are full in any case.
    """
    singles = [(branch,) for branch in sorted(ageing) if branch < depth]
    pairs = [(one, other) for (one,) in singles for (other,) in singles if other > one + 1]
    found = list(candidates(sigmas, speed_up, depth, [*singles, *pairs], must, nature))
    return min(found, key=lambda one: predicted(one, sigmas, ageing, nature))


def candidates(
    sigmas: Sequence[float],
    speed_up: float,
    depth: int,
    branches: Sequence[tuple[int, ...]],
    must: frozenset[int] = frozenset(),
    nature: Nature = USUAL,
) -> Iterator[Spread]:
    """A plan for each of these single branches and pairs that can be as fast; for the first one in any case. Of a
    pair's renewals every second one is medium, but where `must` asks for a full one.
    """
    count, least = len(sigmas), max(2, len(must | {0}))
    # The others leave no time for two evaluations that renew the feature.
    left = count / (cost.NEARLY * speed_up) - 1
    branches = [
        one
        for place, one in enumerate(branches)
        if not place or (count - 2) * cost.share(one[0], depth) + (cost.share(one[1], depth) if one[1:] else 1) <= left
    ]
    shares = [[cost.share(branch, depth) for branch in one] for one in branches]
    most = [_renewals(count, speed_up, one) for one in shares]
    chosen = spreads(sigmas, max(min(most), least), max(*most, least), must, nature)
    for place, (one, share, renewals) in enumerate(zip(branches, shares, most, strict=True)):
        for number in range(max(renewals, least), least - 1, -1):
            listed = chosen.get(number) or spreads(sigmas, number, number, must, nature)[number]
            renewed = tuple(k for n, k in enumerate(listed) if n % 2 and k not in must) if len(one) > 1 else ()
            full = tuple(k for k in listed if k not in renewed)
            spent = len(full) + len(renewed) * share[-1] + (count - len(listed)) * share[0]
            fits = count / spent >= cost.NEARLY * speed_up - 1e-9
            if fits or (not place and number == least) or len(one) == 1:
                break
        if fits or not place:
            yield full, renewed, one[0], one[-1]


def _renewals(count: int, speed_up: float, shares: Sequence[float]) -> int:
    """The most evaluations that renew the feature at that speed-up; of a pair one too many at most: of an odd number
    one more is full.
    """
    if len(shares) == 1:
        return cost.full_for(count, speed_up, shares[0])
    shallow, deeper = shares
    pairs = (count / (cost.NEARLY * speed_up) - count * shallow) / (1 + deeper - 2 * shallow)
    return min(max(int(2 * pairs) + 1, 1), count)


def predicted(spread: Spread, sigmas: Sequence[float], ageing: Ageing, nature: Nature = USUAL) -> float:
    """The error of a plan: what each evaluation that is not full adds, by its weight and the age of what it runs on.
    What a medium one renews is as old as the deeper feature that it came from.
    """
    full, renewed, branch, deeper = spread
    weight, place = weights(sigmas, nature), np.log(np.asarray(sigmas, dtype=np.float64))
    power, error, last_full, last = order(nature), 0.0, 0, 0
    for k in range(len(sigmas)):
        if k in full:
            last_full = last = k
            continue
        if k in renewed:
            last = k
        aged = ageing[deeper] * abs(place[last] - place[last_full]) ** power
        aged += ageing[branch] * abs(place[k] - place[last]) ** power
        error += float(weight[k] * aged)
    return error
