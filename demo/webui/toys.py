"""Stand-ins for the two big parts that caching never touches: the text encoder and the autoencoder.

The fixed ones serve UNets with random weights; a trained checkpoint brings a `TextEncoder` and an
`autoencoder.Autoencoder`.
"""

from __future__ import annotations

import hashlib
import re

import torch
from torch import nn
from torch.nn import functional

from .autoencoder import SCALE

CHUNK = 75
"""Text tokens between a chunk's start and end token; a chunk is 77 wide."""

# Brightness and two colour differences of the first three latent channels; the fourth adds fine brightness.
_TO_RGB = torch.tensor(
    [
        [0.30, 0.30, 0.30],
        [0.22, -0.02, -0.20],
        [-0.10, 0.20, -0.10],
        [0.10, 0.10, 0.10],
    ]
)


def tokens(text: str) -> list[list[str]]:
    """`text` as chunks of at most 75 tokens: words and punctuation marks; BREAK begins a new chunk."""
    chunks: list[list[str]] = []
    for part in text.split("BREAK"):
        # Weights like (word:1.2) and [word] change no length; the brackets are no tokens.
        words = re.findall(r"[\w'-]+|[^\w\s]", re.sub(r"[()\[\]]|(?<=\w):\d+(\.\d+)?", " ", part))
        chunks += [words[i : i + CHUNK] for i in range(0, len(words), CHUNK)] or [[]]
    return chunks


def _vector(word: str, width: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:7], "big")
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def encode_text(text: str, width: int) -> torch.Tensor:
    """[77 x chunks, width]: every word its own fixed direction, plus a little of its place."""
    rows = []
    for chunk in tokens(text):
        padded = ["<start>", *chunk, *["<end>"] * (CHUNK + 1 - len(chunk))]
        rows += [_vector(word, width) + 0.1 * _vector(f"<place {i}>", width) for i, word in enumerate(padded)]
    return torch.stack(rows)


def encode_pooled(text: str, numbers: list[int], width: int) -> torch.Tensor:
    """[width]: SDXL's vector: the text as a whole and sizes in pixels, each number as 256 sines and cosines."""
    frequencies = torch.exp(-torch.arange(128) / 128 * torch.log(torch.tensor(10000.0)))
    parts = []
    for number in numbers:
        angles = number * frequencies
        parts += [angles.cos(), angles.sin()]
    pooled = encode_text(text, width - 256 * len(numbers)).mean(0)
    return torch.cat([pooled, *parts])


def decode_latent(latent: torch.Tensor) -> torch.Tensor:
    """[B, 4, h, w] -> [B, 3, 8h, 8w] in -1..1: a fixed colour for each latent channel, smoothly enlarged."""
    rgb = torch.einsum("bchw,cr->brhw", latent.float(), _TO_RGB)
    return functional.interpolate(rgb, scale_factor=SCALE, mode="bilinear").clamp(-1, 1)


def encode_picture(picture: torch.Tensor) -> torch.Tensor:
    """[B, 3, 8h, 8w] in -1..1 -> [B, 4, h, w]: the smallest latent that decodes to the picture's means."""
    small = functional.avg_pool2d(picture.float(), SCALE)
    return torch.einsum("brhw,rc->bchw", small, torch.linalg.pinv(_TO_RGB))


class TextEncoder(nn.Module):
    """A learned encoder: a vector for each word's bucket and each place, and the sum of all words for every place.

    The sum makes every one of the 77 places know the whole chunk; words that were never trained stay near zero.
    """

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.words = nn.Embedding(buckets, width)
        self.places = nn.Embedding(CHUNK + 2, width)
        self.whole = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.last = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.1)

    def bucket(self, word: str) -> int:
        """1 .. buckets - 1; 0 is the start and end token."""
        return 1 + int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:7], "big") % (self.buckets - 1)

    def numbers(self, text: str) -> torch.Tensor:
        """Words as bucket numbers, [chunks, 77]."""
        rows = [[0, *map(self.bucket, chunk)] for chunk in tokens(text)]
        return torch.tensor([row + [0] * (CHUNK + 2 - len(row)) for row in rows])

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """[chunks, 77] -> [chunks, 77, width]."""
        words = self.words(numbers) * (numbers > 0).unsqueeze(-1)
        whole = self.whole(words.sum(1, keepdim=True))
        return self.last(words + self.places.weight + whole)

    @torch.no_grad()
    def encode(self, text: str) -> torch.Tensor:
        """[77 x chunks, width]."""
        return self(self.numbers(text).to(self.words.weight.device)).flatten(0, 1)
