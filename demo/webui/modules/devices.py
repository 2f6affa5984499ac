"""Where tensors live: this host has the CPU."""

from __future__ import annotations

import contextlib

import torch

device = cpu = torch.device("cpu")
dtype = dtype_vae = dtype_unet = torch.float32


def torch_gc() -> None:
    """Nothing to free on the CPU."""


def autocast(disable: bool = False) -> contextlib.AbstractContextManager[None]:
    """No mixed precision on the CPU."""
    return contextlib.nullcontext()


without_autocast = autocast


class NansException(Exception):
    """The UNet gave nothing but NaN."""


def test_for_nans(x: torch.Tensor, where: str) -> None:
    """Raise if every element is NaN. `where` is "unet" or "vae"."""
    if torch.isnan(x).all():
        raise NansException(f"A tensor with all NaNs was produced in {where}.")
