"""What stands for a feature that was not computed: a copy of the last one, or a forecast from the last two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Moment:
    """When an evaluation takes place.

    `index`: its number in the pass, from 0. `sigma`: the noise level as k-diffusion counts it
    (sqrt((1 - alpha_bar) / alpha_bar) for timestep samplers), or None where the host does not tell.
    """

    index: int
    sigma: float | None = None

    @property
    def log_sigma(self) -> float | None:
        if self.sigma is None or not 0 < self.sigma < math.inf:
            return None
        return math.log(self.sigma)


@dataclass(frozen=True)
class Kept:
    """What one full call left: a feature for each walk over the ladder (one, but for forwards that walk twice)."""

    features: tuple[torch.Tensor, ...]
    moment: Moment

    @property
    def nbytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.features)


class Estimator(Protocol):
    """`keeps`: how many full calls it looks back on."""

    name: str
    keeps: int

    def estimate(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        """New tensors, one for each walk, of the shape and dtype of the kept ones; `kept` is oldest first."""


class Copy:
    """DeepCache: the feature of the last full call."""

    name = "copy"
    keeps = 1

    def estimate(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        return [feature.clone() for feature in kept[-1].features]


class Forecast:
    """First order in log sigma from the last two full calls, half damped: h + r/2 (h - h_before), where r is the
    distance from the last full call in units of the distance between the two. The evaluation's index stands in for
    log sigma where a sigma is missing.

    Undamped it overshoots where guidance is strong or full calls lie far apart (docs/estimators.md). Uneven steps can
    put r far outside what two points support, and samplers may go back in time, so r is kept between -1 (the older
    feature) and `REACH`; between the two points nothing is damped.
    """

    name = "forecast"
    keeps = 2
    REACH = 2.0
    DAMPING = 0.5

    def estimate(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        last = kept[-1]
        ratio = self.ratio(kept[-2].moment, last.moment, now) if len(kept) > 1 else 0.0
        if ratio > 0:
            ratio *= self.DAMPING
        if ratio == 0.0:
            return [feature.clone() for feature in last.features]
        return [
            torch.lerp(before, feature, 1.0 + ratio) if before.shape == feature.shape else feature.clone()
            for before, feature in zip(kept[-2].features, last.features, strict=True)
        ]

    @classmethod
    def ratio(cls, before: Moment, last: Moment, now: Moment) -> float:
        """How far beyond `last` the present lies, in units of the way from `before` to `last`."""
        moments = (before, last, now)
        points = [moment.log_sigma for moment in moments if moment.log_sigma is not None]
        if len(points) < len(moments):
            points = [float(moment.index) for moment in moments]
        span = points[1] - points[0]
        if abs(span) < 1e-6:
            return 0.0
        return min(max((points[2] - points[1]) / span, -1.0), cls.REACH)


ESTIMATORS: dict[str, type[Copy] | type[Forecast]] = {"copy": Copy, "forecast": Forecast}

FORECAST_UP_TO = 3
"""The widest interval over which `auto` forecasts: over wider ones a copy came nearer (docs/estimators.md)."""
