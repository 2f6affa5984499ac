"""What timed calls say about a whole loop: its speed-up, what hand-written live calls allow, and the limit of FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .timing import Ratio

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Setting:
    """A loop of `steps` evaluations, full at every `interval`-th, the others at `branch`."""

    steps: int
    interval: int
    branch: int

    @property
    def full(self) -> int:
        return -(-self.steps // self.interval)

    def gain(self, plain: Any, full: Any, cached: Any) -> Any:
        """How much faster the loop is than one of `plain` calls alone; of numbers, or of arrays of them."""
        return self.steps * plain / (self.full * full + (self.steps - self.full) * cached)


@dataclass(frozen=True)
class Composed:
    """Speed-ups with 95 % intervals. `share`: `gain` as a part of what `by_hand` allows."""

    gain: Ratio
    by_hand: Ratio
    share: Ratio


def compose(
    setting: Setting,
    full: Samples,
    cached: Samples,
    ours: tuple[str, str],
    plain: str,
    hand: str,
    resamples: int = 4000,
) -> Composed:
    """`ours`: the names of our samples in `full` and in `cached`; `plain` and `hand`: those of the rivals.

    The loop is not run: it is put together from the medians of calls that took turns in one process. The intervals
    are a bootstrap over whole rounds, of full and of cached calls independently.
    """
    calls = [_medians(full, [plain, ours[0]], resamples), _medians(cached, [ours[1], hand], resamples)]
    plain_s, full_s, cached_s, hand_s = (row for found in calls for row in found)
    gains, allowed = setting.gain(plain_s, full_s, cached_s), setting.gain(plain_s, plain_s, hand_s)
    rounds = min(len(full[plain]), len(cached[hand]))
    return Composed(*(_ratio(drawn, rounds) for drawn in (gains, allowed, gains / allowed)))


def helpers(setting: Setting, full: Samples, cached: Samples, name: str, plain: str, resamples: int = 4000) -> Ratio:
    """The speed-up of one rival over the same UNet's plain calls."""
    plain_s, full_s = _medians(full, [plain, name], resamples)
    (cached_s,) = _medians(cached, [name], resamples)
    return _ratio(setting.gain(plain_s, full_s, cached_s), min(len(full[plain]), len(cached[name])))


def _medians(samples: Samples, names: Sequence[str], resamples: int) -> list[np.ndarray]:
    """For each name the median of all rounds, followed by those of resampled ones; the same rounds for all names."""
    rows = [np.asarray(samples[name]) for name in names]
    count = len(rows[0])
    drawn = np.random.default_rng(count).integers(0, count, size=(resamples, count))
    return [np.concatenate([[np.median(row)], np.median(row[drawn], axis=1)]) for row in rows]


def _ratio(values: np.ndarray, rounds: int) -> Ratio:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Ratio(float(values[0]), float(low), float(high), rounds)
