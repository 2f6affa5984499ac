"""Pictures of a Python program, made with one plan after another: what `DeepCache.measure` goes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..measure.trial import NotMeasured
from ..report.psnr import psnr
from ..report.run_report import PassOutcome
from ..settings.fields import CUSTOM
from ..settings.settings import Settings

Tried = Callable[[Settings, Callable[[], Any]], tuple[Any, Sequence[PassOutcome]]]
"""Runs a function with settings; what it gives, and the passes that it ran."""


class Trials:
    """A `measure.trial.Studio`. `make`: the picture of a seed, or a list of pictures, from one run of the UNet's."""

    first_pass: PassOutcome

    def __init__(self, tried: Tried, asked: Settings, make: Callable[[int], Any], pictures: int, seed: int) -> None:
        self._tried, self._asked, self._make, self._pictures, self._seed = tried, asked, make, pictures, seed
        self._evaluations = 0
        self.told = ""

    def make(self, settings: Mapping[str, Any]) -> list[np.ndarray]:
        """See `trial.Studio`: for each seed, all that was made of it."""
        asked = replace(self._asked, preset=CUSTOM, **settings)
        return [self._one(asked, seed) for seed in range(self._seed, self._seed + self._pictures)]

    def _one(self, settings: Settings, seed: int) -> np.ndarray:
        made, passes = self._tried(settings, lambda: self._make(seed))
        wrong = next((one.report.off for one in passes if one.report.off), "")
        if wrong:
            raise NotMeasured(f"a run did not go as planned: {wrong}")
        if len(passes) != 1:
            raise NotMeasured(f"a picture is to be one run of the UNet; seed {seed} took {len(passes)}")
        self.first_pass = passes[0]
        ran = self.first_pass.report.evaluations
        self._evaluations = self._evaluations or ran
        if ran != self._evaluations:
            raise NotMeasured(f"a run broke off, or had another number of steps: {ran} instead of {self._evaluations}")
        return _as_array(made)

    def scores(self, pictures: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> list[float]:
        """See `trial.Studio`."""
        pairs = list(zip(pictures, reference, strict=True))
        if any(one.shape != other.shape for one, other in pairs):
            raise NotMeasured("pictures of different sizes were made")
        return [psnr(one, other, peak=_peak(other)) for one, other in pairs]


def _as_array(made: Any) -> np.ndarray:
    """Of a PIL image, an array, a tensor, or a list of them. Raises `NotMeasured`."""
    if isinstance(made, torch.Tensor):
        return made.detach().float().cpu().numpy()
    try:
        if isinstance(made, (list, tuple)):
            return np.stack([_as_array(one) for one in made])
        found = np.asarray(made)
    except ValueError as error:
        raise NotMeasured(f"pictures of one seed are not of one size: {error}") from error
    if found.dtype == object or not found.size:
        raise NotMeasured(f"make gave {type(made).__name__}, not a picture")
    return found


def _peak(picture: np.ndarray) -> float:
    """How far the darkest and the brightest value may lie apart: known of bytes, as far as they do of other numbers."""
    return 255.0 if picture.dtype == np.uint8 else float(np.ptp(picture)) or 1.0
