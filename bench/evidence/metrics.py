"""How far a picture is from the one it stands for, and how sure a mean over pictures is.

Pictures are [B, 3, h, w] in 0..1, not rounded; each measure gives one number for each picture, [B].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from deepcache_ext.report.psnr import psnr as psnr_of

PSNR_CAP = 100.0
"""Where equal pictures end in dB: infinity has no mean. (Rounding to 8 bits alone costs all beyond 59 dB.)"""

MS_WEIGHTS = (0.096, 0.596, 0.289, 0.019)
_LUMA = (0.299, 0.587, 0.114)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, at most `PSNR_CAP`."""
    found = [psnr_of(*pair, peak=1.0) for pair in zip(a.cpu(), b.cpu(), strict=True)]
    return torch.tensor(found, dtype=torch.float64).clamp(max=PSNR_CAP)


def ssim(a: torch.Tensor, b: torch.Tensor, size: int = 11, sigma: float = 1.5) -> torch.Tensor:
    """Structural similarity (Wang and others, 2004) with its Gaussian window, the mean over the colour channels."""
    a, b = a.double(), b.double()
    channels = a.shape[1]
    along = torch.exp(-((torch.arange(size, dtype=a.dtype) - size // 2) ** 2) / (2 * sigma**2))
    window = torch.outer(along, along)
    window = (window / window.sum()).expand(channels, 1, size, size)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


def gmsd(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude similarity deviation (Xue and others, 2014) of two brightnesses [B, 1, h, w]."""
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=a.dtype) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]

    def steepness(x: torch.Tensor) -> torch.Tensor:
        return (functional.conv2d(x, kernels).square().sum(1) + 1e-12).sqrt()

    steep_a, steep_b = steepness(a), steepness(b)
    constant = 170 / 255**2
    similarity = (2 * steep_a * steep_b + constant) / (steep_a**2 + steep_b**2 + constant)
    return similarity.flatten(1).std(1, unbiased=False)


def ms_gmsd(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multi-scale GMSD (Zhang and others, 2017) of the brightness at four scales; 0 where nothing differs."""
    luma = torch.tensor(_LUMA, dtype=torch.float64).view(1, 3, 1, 1)
    a, b = ((x.double() * luma).sum(1, keepdim=True) for x in (a, b))
    total = torch.zeros(len(a), dtype=torch.float64)
    for scale, weight in enumerate(MS_WEIGHTS):
        if scale:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        total += weight * gmsd(a, b).square()
    return total.sqrt()


METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "psnr": psnr,
    "ssim": ssim,
    "distance": ms_gmsd,
}


def compare(pictures: torch.Tensor, references: torch.Tensor) -> list[dict[str, float]]:
    """All measures, for each picture."""
    columns = {name: metric(pictures, references).tolist() for name, metric in METRICS.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(pictures))]


@dataclass(frozen=True)
class Mean:
    """A mean over pictures with its 95 % interval."""

    mean: float
    low: float
    high: float
    samples: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bootstrap(values: Sequence[float], groups: Sequence[str] | None = None, resamples: int = 4000) -> Mean:
    """The mean and its percentile interval; the same for the same values.

    Whole groups are drawn, such as all pictures of one prompt, which are alike; without `groups` each value by itself.
    """
    array = np.asarray(values, dtype=np.float64)
    _, place = np.unique(list(groups) if groups is not None else np.arange(len(array)), return_inverse=True)
    sums, counts = np.bincount(place, weights=array), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(sums), size=(resamples, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return Mean(float(array.mean()), float(low), float(high), len(array))
