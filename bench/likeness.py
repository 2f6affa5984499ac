"""How near a picture is to the one it stands for."""

from __future__ import annotations

import torch

from deepcache_ext.report.psnr import psnr as psnr_of

PSNR_CAP = 100.0
"""Where equal pictures end in dB: infinity has no mean. (Rounding to 8 bits alone costs all beyond 59 dB.)"""


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each of the pictures [B, 3, h, w] in 0..1, not rounded: [B], at most
    `PSNR_CAP`.
    """
    found = [psnr_of(*pair, peak=1.0) for pair in zip(a.cpu(), b.cpu(), strict=True)]
    return torch.tensor(found, dtype=torch.float64).clamp(max=PSNR_CAP)
