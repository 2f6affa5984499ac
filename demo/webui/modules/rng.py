"""Noise that depends on a picture's own seed, never on its place in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ImageRNG:
    """`next()` gives [len(seeds), *shape]; each row comes from its seed's own generator."""

    def __init__(self, shape: Sequence[int], seeds: Sequence[int], **_: object) -> None:
        self.shape = tuple(shape)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def next(self) -> torch.Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
