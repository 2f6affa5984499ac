"""Drives a session as a host does: evaluations of a drifting latent, and the calls that each one makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.session.session import Session
from tests import unets


class OwnTests:
    """Names of code that a test's session calls harmless: what the tests themselves put on a UNet."""

    def __contains__(self, name: object) -> bool:
        return str(name).startswith("tests.")


TRUSTED: Any = OwnTests()


def session(
    interval: int = 3, branch: int = 0, total: int = 9, estimator: Copy | Forecast | None = None, **window: Any
) -> Session:
    return Session(UniformPlan(interval, branch, total, **window), estimator or Copy(), trusted=TRUSTED)


def drifting(
    rows: int, channels: int = 4, size: tuple[int, int] = (8, 8), seed: int = 0
) -> Callable[[int], torch.Tensor]:
    """The latent of evaluation k: slowly changing, different in every row and place."""
    generator = torch.Generator().manual_seed(seed)
    base, drift = (torch.randn(rows, channels, *size, generator=generator) for _ in range(2))
    return lambda k: base * 0.97**k + drift * 0.05 * k


def sigma(k: int) -> float:
    return 14.6 * 0.7**k


def evaluate(cache: Session, unet: Any, k: int, latent: torch.Tensor, *calls: dict[str, Any]) -> list[torch.Tensor]:
    """One evaluation with these calls, each x scaled as k-diffusion scales it."""
    cache.tick(lambda: latent, sigma(k))
    outputs = [unet(**{**call, "x": scaled(call["x"], k)}) for call in calls]
    cache.pause()
    return outputs


def scaled(x: torch.Tensor, k: int) -> torch.Tensor:
    """The latent's channels alone: hosts put a mask and a picture beside them when that is done."""
    return torch.cat([x[:, :4] / (sigma(k) ** 2 + 1) ** 0.5, x[:, 4:]], dim=1)


LAYOUT = "three-levels"
"""The smallest layout: 6 input and 6 output blocks."""


def call(seed: int = 0, rows: int = 2, **changes: Any) -> dict[str, Any]:
    """Arguments of one call of that layout."""
    return {**unets.inputs(LAYOUT, rows=rows, size=(8, 8), seed=seed), **changes}


def run(cache: Session, unet: Any, evaluations: int) -> list[torch.Tensor]:
    """So many evaluations of one call each."""
    latent, arguments = drifting(2), call()
    return [evaluate(cache, unet, k, latent(k), {**arguments, "x": latent(k)})[0] for k in range(evaluations)]


def expected_copy(unet: Any, evaluations: int, interval: int, branch: int) -> list[torch.Tensor]:
    """What `run` must give with a copy at that branch, by hand."""
    latent, arguments, outputs, feature = drifting(2), call(), [], None
    for k in range(evaluations):
        now = {**arguments, "x": scaled(latent(k), k)}
        output, kept = unets.by_hand(unet, branch, feature if k % interval else None, **now)
        feature = kept
        outputs.append(output)
    return outputs
