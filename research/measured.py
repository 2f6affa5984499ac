"""Plans from one uncached run: how much each evaluation's guided output would change on an older feature, measured.

At evaluation j of an uncached run the live blocks run on j's own latent once more for every earlier evaluation i, on
the feature that was kept at i (a copy), or on one forecast from two earlier ones. What the guided noise then differs by
is exactly the error that a plan makes there which has its last full evaluation at i. How much that counts in the
finished picture is `counts`; errors of a plan add up. Dynamic programming finds the plan with the least sum. It did not
hold: research/laboratory.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bench import unets
from bench.laboratory.samplers import SAMPLERS
from bench.laboratory.studio import Studio
from deepcache_ext.plan.estimators import Forecast, Kept, Moment
from deepcache_ext.plan.importance import MIDDLE, MIDDLE_FRESH
from train.learn import fused_attention

REACH = 6
"""Evaluations that a feature may be old."""
FIRST_SEED = 9016
"""Of the pictures that are measured: none that is judged."""


@dataclass
class Measured:
    """Errors of the guided noise, root mean square. `copy`: by branch, [j, i] on the feature of i. `forecast`: by
    branch, [j, i, h] on the one forecast from h and i, as `Forecast` does after three evenly spaced ones. Infinite
    where it was not measured.
    """

    sigmas: tuple[float, ...]
    copy: dict[int, np.ndarray] = field(default_factory=dict)
    forecast: dict[int, np.ndarray] = field(default_factory=dict)


@torch.no_grad()
@fused_attention()
def measure(
    studio: Studio, sampler: str, steps: int, guidance: float, branches: Sequence[int] = (0, 1), pictures: int = 2
) -> Measured:
    """From so many pictures of texts and seeds that are not judged, in one batch."""
    given, noise, seeds = studio.others(FIRST_SEED, pictures)
    sigmas = tuple(SAMPLERS[sampler].sigmas(steps))
    made = Measured(
        sigmas,
        {b: np.full((steps, steps), math.inf) for b in branches},
        {b: np.full((steps, steps, steps), math.inf) for b in branches},
    )
    kept: list[dict[int, torch.Tensor]] = []
    scale = 1.0 if studio.network.prediction == "eps" else -1.0

    def guided(said: torch.Tensor) -> torch.Tensor:
        asked, empty = said.chunk(2)
        return empty + guidance * (asked - empty)

    def denoiser(x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        both = torch.cat([x, x])
        call = {"x": both, "timesteps": t.expand(len(both)), **given}
        said, features = unets.full(studio.model.unet, call, branches)
        whole, j = guided(said), len(kept)
        factor = 1.0 if scale > 0 else 1 / math.sqrt(1 + sigma**2)

        def error(branch: int, feature: torch.Tensor) -> float:
            off = guided(unets.live(studio.model.unet, call, branch, feature)) - whole
            return factor * float(off.square().mean().sqrt())

        if j < steps:
            for branch in branches:
                _at(made, branch, j, kept, error)
            kept.append(features)
        if studio.network.prediction == "eps":
            return whole
        return (whole + sigma * x) / (sigma**2 + 1) ** 0.5

    SAMPLERS[sampler].run(denoiser, noise, steps, seeds)
    return made


def _at(made: Measured, branch: int, j: int, kept: list[dict[int, torch.Tensor]], error) -> None:  # type: ignore[no-untyped-def]
    def as_kept(k: int) -> Kept:
        return Kept([kept[k][branch]], Moment(k, made.sigmas[k]))

    for i in range(max(0, j - REACH), j):
        made.copy[branch][j, i] = error(branch, kept[i][branch])
        for h in range(max(0, i - REACH), i):
            those, forecast = [as_kept(one) for one in (max(2 * h - i, 0), h, i)], Forecast()
            if 2 * h - i < 0:
                those = those[1:]
            forecast.learn(those)
            made.forecast[branch][j, i, h] = error(branch, forecast.estimate(those, Moment(j, made.sigmas[j]))[0])


def counts(sigmas: Sequence[float], fresh_noise: bool, middle: float | None = None) -> np.ndarray:
    """How much an error of the guided noise at each evaluation counts in the finished picture, (n,)."""
    now = np.asarray(sigmas, dtype=np.float64)
    after = np.append(now[1:], 0.0)
    middle = (MIDDLE_FRESH if fresh_noise else MIDDLE) if middle is None else middle
    return np.abs(now - after) / np.sqrt(now**2 + middle**2)


def listed_copy(errors: np.ndarray, count: np.ndarray, full: int, power: float = 1.0) -> tuple[float, tuple[int, ...]]:
    """Predicted error and the `full` evaluations with the least, by copies."""
    n = len(count)
    added = np.full((n, n + 1), math.inf)
    for i in range(n):
        spent = np.concatenate([[0.0], np.cumsum((count[i + 1 :] * errors[i + 1 :, i]) ** power)])
        added[i, i + 1 :] = spent
    best, came = np.full(n, math.inf), []
    best[0] = 0.0
    for _ in range(full - 1):
        reached = best[:, None] + added[:, :n]
        came.append(reached.argmin(0))
        best = reached.min(0)
    last = best + added[:, n]
    found = [int(last.argmin())]
    for before in reversed(came):
        found.append(int(before[found[-1]]))
    return float(last.min()), tuple(reversed(found))


def listed_forecast(
    made: np.ndarray, copies: np.ndarray, count: np.ndarray, full: int, power: float = 1.0
) -> tuple[float, tuple[int, ...]]:
    """The same by forecasts from the two last full evaluations."""
    n = len(count)
    # added[h, i, k]: of the cached ones between full ones i and k where the one before i was h; h = i: there is none.
    added = np.full((n, n, n + 1), math.inf)
    for i in range(n):
        for h in range(i + 1):
            one = copies[i + 1 :, i] if h == i else made[i + 1 :, i, h]
            added[h, i, i + 1 :] = np.concatenate([[0.0], np.cumsum((count[i + 1 :] * one) ** power)])
    best = np.full((n, n), math.inf)
    best[0, 0] = 0.0
    came = []
    for _ in range(full - 1):
        reached = best[:, :, None] + added[:, :, :n]  # [h, i, k]
        came.append(reached.argmin(0))  # [i, k]: h
        best = reached.min(0)  # [i, k]
    last = best + added[:, :, n]
    h, i = np.unravel_index(int(last.argmin()), last.shape)
    found = [int(i)]
    state = (int(h), int(i))
    for before in reversed(came):
        h, i = state
        found.append(h)
        state = (int(before[h, i]), h)
    return float(last.min()), tuple(sorted(set(found)))
