"""The rule that the choosing half proposes: which evaluations are full, at which branch, copied or forecast.

How much an error of the feature at an evaluation counts: the share of the denoised estimate that the step takes into
the latent, times s / sqrt(s^2 + m^2) of its noise level s: errors above m count alike, those below in proportion to s.
It grows with the distance in log sigma from the last full evaluation to the power ORDER, and errors add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from deepcache_ext.plan.estimators import ESTIMATORS, Estimator, Forecast
from deepcache_ext.plan.plan import ListedPlan

from .ways import SPEED_UPS, Pass, Way, full_for, way

ORDER = 1.5
MIDDLE, MIDDLE_FRESH = 2.5, 1.0
"""m above. Where a sampler adds fresh noise, early errors are forgotten, and all above 1 count alike."""


def weights(sigmas: Sequence[float], middle: float) -> np.ndarray:
    """How much an error at each evaluation counts, (n,)."""
    now = np.asarray(sigmas, dtype=np.float64)
    after = np.append(now[1:], 0.0)
    return np.abs(1 - after / now) * now / np.sqrt(now**2 + middle**2)


def listed(sigmas: Sequence[float], full: int, middle: float) -> tuple[int, ...]:
    """The `full` evaluations, the first among them, with the least sum of errors of all such choices."""
    count, place, weight = len(sigmas), np.log(np.asarray(sigmas)), weights(sigmas, middle)
    added = np.full((count, count + 1), math.inf)  # of the cached ones between a full one and the next, or the end
    for k in range(count):
        errors = weight[k + 1 :] * np.abs(place[k + 1 :] - place[k]) ** ORDER
        added[k, k + 1 :] = np.concatenate([[0.0], np.cumsum(errors)])
    best, came = np.full(count, math.inf), []
    best[0] = 0.0
    for _ in range(full - 1):
        reached = best[:, None] + added[:, :count]
        came.append(reached.argmin(0))
        best = reached.min(0)
    found = [int((best + added[:, count]).argmin())]
    for before in reversed(came):
        found.append(int(before[found[-1]]))
    return tuple(reversed(found))


class Cautious(Forecast):
    """A forecast that goes as far as the last one would have been right (as `Forecast`'s trust, 0 to 1) times the share
    of the last change that lay in its direction (the squared correlation); before both are known a copy.
    """

    name = "cautious"
    UNPROVED = 0.0

    @classmethod
    def _trust(
        cls, oldest: torch.Tensor, before: torch.Tensor, last: torch.Tensor, ratio: float
    ) -> torch.Tensor | None:
        trust = super()._trust(oldest, before, last, ratio)
        if trust is None:
            return None
        step, came = before.float() - oldest.float(), last.float() - before.float()
        apart = tuple(range(2, last.dim()))
        along = (step * came).sum(apart, keepdim=True).square()
        powers = step.square().sum(apart, keepdim=True) * came.square().sum(apart, keepdim=True)
        return trust.clamp(min=0.0) * (along / powers.clamp_min(1e-12)).to(trust.dtype)


MAKERS: dict[str, Callable[[], Estimator]] = {**ESTIMATORS, "cautious": Cautious}


def branch_for(ahead: Pass) -> int:
    """Branch 1 where it costs next to nothing (SDXL), and where fresh noise moves the shallow features; else 0."""
    return 1 if ahead.nature.fresh_noise or ahead.depth == 9 else 0


def every(ahead: Pass) -> Iterator[Way]:
    """The proposed lists at each speed-up, with the estimators that the choosing half had to decide between."""
    branch, middle = branch_for(ahead), MIDDLE_FRESH if ahead.nature.fresh_noise else MIDDLE
    for wanted in SPEED_UPS:
        plan = ListedPlan(listed(ahead.sigmas, full_for(ahead, wanted, branch), middle), branch, ahead.steps)
        for name in ("copy",) if ahead.nature.fresh_noise else ("copy", "cautious", "forecast"):
            yield way(f"proposed {name}", wanted, plan, MAKERS[name], ahead)
