"""What a plan should gain, before it is run: from the cost of a cached call by branch.

Shares of a full call in FLOPs, attention included, counted on the real ldm and sgm UNets at 512 and 1024 pixels
(`python -m bench`). On the authors' GPUs the gain was lower (docs/speed.md, *reported*). The sampler, the text encoders
and the decoder are not made faster, so a whole picture gains less than its UNet.
"""

from __future__ import annotations

from collections.abc import Sequence

SHARES: dict[int, tuple[float, ...]] = {
    12: (0.0787, 0.2243, 0.3802, 0.4699, 0.5641, 0.673, 0.7598, 0.8484, 0.9411, 0.9604, 0.9727, 0.9849),
    9: (0.0145, 0.0378, 0.0661, 0.1289, 0.2141, 0.3062, 0.4372, 0.6586, 0.8821),
}
"""By the number of output blocks (SD1.x and SD2.x have 12, SDXL 9), then by branch. SDXL's refiner has 12, too, of
other widths, and is taken for an SD1.x.
"""

USUAL_DEPTH = 12
"""Of SD1.x and SD2.x: what a UNet of unknown shares is taken for."""


def share(branch: int, depth: int = USUAL_DEPTH) -> float:
    """What a cached call at `branch` costs of a full one, for a UNet of `depth` output blocks. A UNet of another depth
    is taken for one of the usual depth whose branches lie closer together or further apart.
    """
    known = SHARES.get(depth)
    if known is None:
        known = SHARES[USUAL_DEPTH]
        branch = round(branch * USUAL_DEPTH / max(depth, 1))
    return known[min(max(branch, 0), len(known) - 1)]


def speed_up(branches: Sequence[int | None], depth: int = USUAL_DEPTH) -> float:
    """Of the UNet's time, for a pass with the branch that each evaluation runs; None: the whole UNet."""
    cost = sum(1.0 if branch is None else share(branch, depth) for branch in branches)
    return len(branches) / cost if cost > 0 else 1.0


NEARLY = 0.99
"""So much of a wanted speed-up is enough: for 2.6x of 30 evaluations 10 full ones (2.59x), not 9 (2.82x). Chosen by
hand.
"""


def full_for(evaluations: int, wanted: float, cached_share: float) -> int:
    """How many evaluations may be full for `NEARLY` the `wanted` speed-up; at least one."""
    budget = evaluations / (NEARLY * wanted) - evaluations * cached_share
    return min(max(int(budget / (1 - cached_share) + 1e-9), 1), evaluations)
