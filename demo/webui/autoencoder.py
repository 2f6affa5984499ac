"""A small learned autoencoder: pictures of 8 times the latent's size, 4 channels as Stable Diffusion's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LATENT_CHANNELS = 4
"""Of the latent."""

SCALE = 8
"""Pixels of picture for one element of the latent, in both directions."""


@dataclass(frozen=True)
class Widths:
    """Channels inside: of the encoder (at the latent's size), and of the decoder at the latent's size, twice and four
    times that; `blocks` of it at the latent's size.
    """

    encoder: int = 64
    decoder: tuple[int, int, int] = (64, 48, 32)
    blocks: int = 2

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> Widths:
        """From what `as_json` gave."""
        return cls(known["encoder"], tuple(known["decoder"]), known["blocks"])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Residual(nn.Module):
    """Two convolutions beside the way straight through; no norms, so that a crop is coded as in the whole picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.second.weight, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, width, h, w] -> the same."""
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class Autoencoder(nn.Module):
    """`mean`, `spread` [4]: of what the encoder gives for the pictures that the UNet learns; latents have 0 and 1."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        low, middle, high = widths.decoder
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(SCALE),
            nn.Conv2d(3 * SCALE**2, widths.encoder, 1),
            Residual(widths.encoder),
            nn.Conv2d(widths.encoder, LATENT_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, low, 3, padding=1),
            *(Residual(low) for _ in range(widths.blocks)),
            nn.Conv2d(low, 4 * middle, 1),
            nn.PixelShuffle(2),
            Residual(middle),
            nn.Conv2d(middle, 4 * high, 1),
            nn.PixelShuffle(2),
            Residual(high),
            nn.Conv2d(high, 3 * 4, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("spread", torch.ones(LATENT_CHANNELS))

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        """[B, 3, 8h, 8w] in -1..1 -> [B, 4, h, w]."""
        return (self.encoder(picture.float()) - self.mean.view(1, -1, 1, 1)) / self.spread.view(1, -1, 1, 1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, 4, h, w] -> [B, 3, 8h, 8w] in -1..1."""
        return self.decoder(latent.float() * self.spread.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)).clamp(-1, 1)
