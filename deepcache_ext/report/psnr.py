"""How far one picture is from another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def psnr(image: Any, reference: Any, peak: float = 255.0) -> float:
    """Peak signal to noise ratio in dB of two pictures, arrays from 0 to `peak` or what numpy makes one of; infinite
    where they are equal, nan where their shapes differ.
    """
    a, b = (np.asarray(one, dtype=np.float64) for one in (image, reference))
    if a.shape != b.shape:
        return math.nan
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
