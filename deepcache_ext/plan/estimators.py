"""What stands for a feature that was not computed: a copy of the last one, or a forecast from the last three."""

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


@dataclass
class Kept:
    """What one full call left: a feature for each walk over the ladder (one, but for forwards that walk twice).

    `trust`: for each feature, what the estimator learned when it was kept, or None.
    """

    features: tuple[torch.Tensor, ...]
    moment: Moment
    trust: tuple[torch.Tensor | None, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.features)


class Estimator(Protocol):
    """`keeps`: how many full calls it looks back on."""

    name: str
    keeps: int

    def learn(self, kept: Sequence[Kept]) -> None:
        """A full call has been kept, the last of `kept`: work out what the cached calls after it have in common."""

    def estimate(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        """New tensors, one for each walk, of the shape and dtype of the kept ones; `kept` is oldest first."""


class Copy:
    """DeepCache: the feature of the last full call."""

    name = "copy"
    keeps = 1

    def learn(self, kept: Sequence[Kept]) -> None:
        pass

    def estimate(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        return [feature.clone() for feature in kept[-1].features]


class Forecast:
    """First order in log sigma: the direction from the last two full calls, trusted as far as the last three say:
    h + t r (h - h_before), where r is the distance from the last full call in units of the distance between the two.
    The evaluation's index stands in for log sigma where a sigma is missing.

    The trust t is measured at each full call, for each row and channel: the factor with which the forecast made
    before it would have come nearest, <h - h_before, s> / <s, s> with s the full forecast step, kept between -1 and 1.
    Features that go on as they went have t near 1; those that fresh noise, strong guidance or wide gaps throw about
    have t near 0, which is a copy, or below, where they swing. Before there are three full calls t is 1/2.
    Nothing of it waits for the device.

    `settled`: such a part of what the last full call showed the forecast to be wrong by is added at the first
    evaluation after it. The cached ones before it have bent the latent by that error; this bends it back.

    Uneven steps can put r far outside what two points support, and samplers may go back in time, so r is kept between
    -1 (the older feature) and `REACH`; between the two points the line is taken as it is.
    """

    name = "forecast"
    keeps = 3
    REACH = 2.0
    """In distances between the last two full calls. Chosen by hand."""
    UNPROVED = 0.5
    """The trust before it can be measured. Chosen by hand: between a copy and the whole step."""

    def __init__(self, settled: float = 0.0) -> None:
        self.settled = settled

    def learn(self, kept: Sequence[Kept]) -> None:
        last = kept[-1]
        if len(kept) < 3:
            last.trust = (None,) * len(last.features)
            return
        before, oldest = kept[-2], kept[-3]
        ratio = self.ratio(oldest.moment, before.moment, last.moment)
        last.trust = tuple(
            self._trust(*features, ratio)
            for features in zip(oldest.features, before.features, last.features, strict=True)
        )

    def estimate(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        found = self._ahead(kept, now)
        if self.settled and self._is_due(kept, now):
            expected = self._ahead(list(kept)[:-1], kept[-1].moment)
            for feature, came, guess in zip(found, kept[-1].features, expected, strict=True):
                if came.shape == guess.shape:
                    feature.add_(came - guess, alpha=self.settled)
        return found

    @staticmethod
    def _is_due(kept: Sequence[Kept], now: Moment) -> bool:
        """Whether `now` comes right after a full call that has cached ones before it."""
        last = kept[-1].moment.index
        return now.index == last + 1 and len(kept) > 1 and last > kept[-2].moment.index + 1

    def _ahead(self, kept: Sequence[Kept], now: Moment) -> list[torch.Tensor]:
        """The forecast for `now` from the last three of `kept`, as far as they are there."""
        last = kept[-1]
        ratio = self.ratio(kept[-2].moment, last.moment, now) if len(kept) > 1 else 0.0
        if ratio == 0.0:
            return [feature.clone() for feature in last.features]
        trusts = last.trust or (None,) * len(last.features)
        return [
            self._forecast(before, feature, ratio, trust)
            for before, feature, trust in zip(kept[-2].features, last.features, trusts, strict=True)
        ]

    @classmethod
    def _trust(
        cls, oldest: torch.Tensor, before: torch.Tensor, last: torch.Tensor, ratio: float
    ) -> torch.Tensor | None:
        """(rows, channels, 1, 1), in the features' dtype; None where nothing can be learned."""
        if ratio <= 0.0 or not oldest.shape == before.shape == last.shape or last.dim() < 3:
            return None
        # In float32: the sum of squares of a half-precision feature has no room in half precision.
        step = (before.float() - oldest.float()).mul_(ratio)
        came = (last.float() - before.float()).mul_(step)
        apart = tuple(range(2, last.dim()))
        found = came.sum(apart, keepdim=True) / step.square_().sum(apart, keepdim=True).clamp_min(1e-12)
        return found.clamp_(-1.0, 1.0).to(last.dtype)

    @classmethod
    def _forecast(
        cls, before: torch.Tensor, last: torch.Tensor, ratio: float, trust: torch.Tensor | None
    ) -> torch.Tensor:
        if before.shape != last.shape:
            return last.clone()
        if ratio < 0:
            return torch.lerp(before, last, 1.0 + ratio)
        if trust is None:
            return torch.lerp(before, last, 1.0 + ratio * cls.UNPROVED)
        return torch.lerp(before, last, (trust * ratio).add_(1.0))

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

SETTLED: dict[int, float] = {9: 0.2}
"""`Forecast`'s `settled`, by the number of output blocks; elsewhere none. On SDXL's shape both networks of the
laboratory's choosing half came nearer by it. On SD1.x's two of three did, but the one that knows its pictures by heart
went up to 3.9 dB further away (research/laboratory.md).
"""

FORECAST_UP_TO = 1.1
"""How far apart in log sigma full evaluations may lie on average for `auto` to forecast with samplers that add none: so
far it was better than a copy on the laboratory's choosing half, 2.6x of 20 steps (research/laboratory.md).
"""
FORECAST_BY_DEPTH_UP_TO = 0.9
"""The same of evaluations that renew the shallower of two features; fitted to the demo's first checkpoint
(research/estimators.md)."""
FORECAST_UP_TO_STEPS = 3.4
"""The same in evaluations, for where the noise levels are not known: fitted to that checkpoint at 30 steps."""
