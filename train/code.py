"""Trains the autoencoder: half of each batch are the words' pictures, the others any of the package's."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from torch.nn import functional

from demo.webui.autoencoder import SCALE, Autoencoder, Widths

from .data import SIZE

WIDTHS = Widths()
RATE, WARM_UP, BATCH = 2e-3, 50, 16
TOGETHER = 0.25
"""Share of the time in which the encoder learns too; then it stays, and with it what latents mean."""
CROP = 128
"""Pixels a side; the whole pictures take four times as long, and their corners are white."""
WHOLE = 0.85
"""Share of the decoder's time after which batches are a quarter as many whole pictures: a crop has other borders."""
NOISE = 0.1
"""Added to latents of spread 1: what the UNet makes is never exact, and the decoder shall not make it worse."""
EDGES = 1.0
"""Weight of the error of differences between neighbouring pixels."""


def error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of colours and of edges, [B, 3, h, w] each."""
    sharp = sum(functional.l1_loss(made.diff(dim=side), wanted.diff(dim=side)) for side in (-1, -2))
    return functional.l1_loss(made, wanted) + EDGES * sharp


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[B] in dB, of pictures [B, 3, h, w] in -1..1."""
    return -10 * ((made - wanted) / 2).square().mean((1, 2, 3)).log10()


def as_input(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> -1..1."""
    return pixels.float() / 127.5 - 1


def _cut(pixels: torch.Tensor, side: int, grid: int, rng: random.Random) -> torch.Tensor:
    """A part [3, side, side] of a picture [3, h, w], its corner on a grid of so many pixels."""
    top, left = (rng.randrange(0, whole - side + 1, grid) for whole in pixels.shape[1:])
    return pixels[:, top : top + side, left : left + side]


def _batch(words: torch.Tensor, others: torch.Tensor, side: int, count: int, rng: random.Random) -> torch.Tensor:
    """[count, 3, side, side] in -1..1: words' pictures as the latent's places lie, the others anywhere."""
    own = [_cut(words[rng.randrange(len(words))], side, SCALE, rng) for _ in range(count - count // 2)]
    rest = [_cut(others[rng.randrange(len(others))], side, 1, rng) for _ in range(count // 2)]
    return as_input(torch.stack(own + rest)).contiguous(memory_format=torch.channels_last)


def train_code(words: torch.Tensor, others: torch.Tensor, minutes: float, kept: Path) -> tuple[Autoencoder, float]:
    """The autoencoder after so many minutes of a core, and its last loss; pictures are uint8 [N, 3, SIZE, SIZE].

    `kept`: where the one whose encoder is done, and the one that is all done, are saved as `encoder.pt` and `code.pt`.
    """
    torch.manual_seed(1)
    half = _trained(Autoencoder(WIDTHS), words, others, minutes * TOGETHER, whole=1.0)[0]
    normalise(half, words)
    kept.mkdir(parents=True, exist_ok=True)
    torch.save(half.state_dict(), kept / "encoder.pt")
    half.encoder.requires_grad_(False)
    done, loss = _trained(half, words, others, minutes * (1 - TOGETHER), WHOLE)
    done.half().float().eval()  # from here on what the 16 bits of the file can do
    torch.save(done.state_dict(), kept / "code.pt")
    return done, loss


def _trained(
    model: Autoencoder, words: torch.Tensor, others: torch.Tensor, minutes: float, whole: float
) -> tuple[Autoencoder, float]:
    """The average of what of `model` still learns, and the loss; whole pictures from that share of the time on."""
    rng = random.Random(1)
    average = Autoencoder(WIDTHS).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    model.to(memory_format=torch.channels_last)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    losses: list[float] = []
    # Time of the processor: on a busy machine the same training takes longer, and is the same.
    begun, goal = time.process_time(), minutes * 60
    while not losses or (done := (time.process_time() - begun) / goal) < 1:
        done = done if losses else 0.0
        rate = RATE * min(1.0, (len(losses) + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        side, count = (SIZE, BATCH // 4) if done > whole else (CROP, BATCH)
        wanted = _batch(words, others, side, count, rng)
        with torch.autocast("cpu", torch.bfloat16):
            latent = model.encoder(wanted)
            spread = latent.detach().float().std((0, 2, 3), keepdim=True)
            made = model.decoder(latent + NOISE * spread * torch.randn(latent.shape))
        loss = error(made.float(), wanted)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        keep = min(0.995, (1 + len(losses)) / (20 + len(losses)))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        losses.append(float(loss.detach()))
        if len(losses) % 50 == 0:
            print(f"code: step {len(losses)}, {done:.0%}, loss {sum(losses[-50:]) / 50:.4f}", flush=True)
    return average.requires_grad_(True), sum(losses[-50:]) / len(losses[-50:])


@torch.no_grad()
def normalise(model: Autoencoder, words: torch.Tensor) -> None:
    """Latents of the words' pictures get mean 0 and spread 1."""
    raw = torch.cat([model.encoder(as_input(one[None])) for one in words])
    model.mean.copy_(raw.mean((0, 2, 3)))
    model.spread.copy_(raw.std((0, 2, 3)))


@torch.no_grad()
def latents(model: Autoencoder, words: torch.Tensor) -> torch.Tensor:
    """[N, 4, h, w] of pictures uint8 [N, 3, 8h, 8w]."""
    return torch.cat([model.encode(as_input(one[None])) for one in words])
