"""The UNet's training: the noise, or v, predicted on Stable Diffusion's schedule, with empty prompts now and then."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ldm.modules.attention as ldm_attention
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from demo.webui.autoencoder import SCALE
from demo.webui.checkpoints import Checkpoint, make_unet
from demo.webui.toys import TextEncoder

from .data import PHRASES, SIZE, VOCABULARY

BUCKETS = 1024
PREDICTIONS = ("eps", "v")
EMPTY = 0.12
"""Share of empty prompts, for classifier-free guidance."""

RATE = 1.5e-3
WARM_UP = 150
HEAVIEST = 100.0
"""A network that predicts noise learns what is to be seen in much noise as fast as one that predicts v, if an error
counts 1 + sigma^2 times; at most so much.
"""
OFFSET, SPREAD = 0.1, 0.03
"""How far mean (of each channel) and size of a picture's noise vary in training, beside what chance makes of 32x32
places (0.03 and 0.01): an error of the mean is seen as a tint, one of the size as mottle, both 15 times as large as in
the noise. The first is offset noise (Guttenberg, "Diffusion with Offset Noise", 2023), there for dark pictures.
"""
EXACT = 0.8
"""Share of the training from which on it computes in 32 bit; before, in 16 where that is faster."""
SAVE_EVERY = 120.0
"""Seconds between states on disk."""

# Attention at quarters and eighths of the size only: at full size it alone would take most of the time, at halves a
# third of it.
LAYOUT = Checkpoint(
    "demo-sd1",
    width=32,
    context=64,
    config={
        "image_size": SIZE // SCALE,
        "channel_mult": [1, 2, 2, 2],
        "attention_resolutions": [4, 8],
        "num_heads": 1,
    },
    # Four channels in each, where Stable Diffusion has ten: with one in each, the mean of the noise could not be told,
    # and a picture got the tint of its seed.
    groups=8,
)


def alphas_cumprod() -> torch.Tensor:
    """[1000]: Stable Diffusion's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


class Model(nn.Module):
    """Text encoder and UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder(BUCKETS, LAYOUT.context)
        self.unet = make_unet(LAYOUT).train().requires_grad_(True)

    def forward(self, x: torch.Tensor, t: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Noise, or v, [B, 4, h, w] for noisy x at timesteps t [B] and words [B, 77]."""
        return self.unet(x, t, context=self.text(numbers))


@dataclass
class Progress:
    """What a resumed training goes on from."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def fast_attention(self: Any, x: torch.Tensor, context: torch.Tensor | None = None, mask: Any = None) -> torch.Tensor:
    """In place of ldm's own: the same numbers from torch's fused attention."""
    context = x if context is None else context
    q, k, v = (
        layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for layer, given in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
    )
    found = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
    return self.to_out(found.transpose(1, 2).flatten(2))


def prompts(text: TextEncoder, names: list[int], rng: random.Random) -> torch.Tensor:
    """Words [B, 77] for pictures by number; some empty, the others in one of the phrases."""
    known = list(VOCABULARY)
    rows = ["" if rng.random() < EMPTY else rng.choice(PHRASES).format(known[i]) for i in names]
    return torch.cat([text.numbers(row) for row in rows])


@contextmanager
def fused_attention() -> Iterator[None]:
    """ldm's attention layers compute by `fast_attention` inside."""
    own = ldm_attention.CrossAttention.forward
    ldm_attention.CrossAttention.forward = fast_attention
    try:
        yield
    finally:
        ldm_attention.CrossAttention.forward = own


@fused_attention()
def train(
    latents: torch.Tensor,
    folder: Path,
    minutes: float,
    device: str,
    batch: int,
    resume: bool,
    prediction: str = "eps",
) -> tuple[Model, Progress]:
    """The averaged model after `minutes` of training (of a core, on a CPU) on latents [N, 4, h, w]."""
    layout = torch.channels_last
    model = Model().to(device, memory_format=layout)
    average = Model().to(device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    progress, state, goal = Progress(), folder / f"state-{prediction}.pt", minutes * 60
    if resume and state.exists():
        found = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(found["model"])
        average.load_state_dict(found["average"])
        optimiser.load_state_dict(found["optimiser"])
        progress = Progress(**found["progress"])
        print(f"resumed at step {progress.step}, {progress.seconds / 60:.1f} minutes", flush=True)

    latents = latents.to(device)
    # Time of the processor: on a busy machine the same training takes longer, and is the same.
    clock = time.process_time if device == "cpu" else time.perf_counter
    rng = random.Random(progress.step)
    torch.manual_seed(progress.step)
    bar = tqdm(total=int(goal), initial=int(progress.seconds), unit="s", mininterval=10, desc="training")
    saved = progress.seconds
    while progress.seconds < goal:
        begun = clock()
        done = progress.seconds / goal
        # Warm-up by steps, then along a cosine to a fiftieth by time.
        rate = RATE * min(1.0, (progress.step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = _loss(model, latents, batch, prediction, rng, exact=done > EXACT)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.998, (1 + progress.step) / (20 + progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        progress.losses.append(float(loss.detach()))
        progress.step += 1
        progress.seconds += clock() - begun
        bar.n = min(int(progress.seconds), int(goal))
        recent = progress.losses[-200:]
        bar.set_postfix(refresh=False, step=progress.step, loss=f"{sum(recent) / len(recent):.4f}")
        bar.update(0)
        if progress.seconds - saved > SAVE_EVERY or progress.seconds >= goal:
            saved = progress.seconds
            _save(state, model, average, optimiser, progress)
    bar.close()
    return average.eval(), progress


def _loss(
    model: Model, latents: torch.Tensor, batch: int, prediction: str, rng: random.Random, exact: bool
) -> torch.Tensor:
    """Of `batch` of the latents [N, 4, h, w] by chance; `exact`: computed in 32 bit."""
    device = latents.device
    kept = alphas_cumprod().to(device)
    names = [rng.randrange(len(latents)) for _ in range(batch)]
    x0, noise = latents[names], _noise(batch, latents.shape[1:], device)
    # One timestep from each of `batch` equal parts: every step sees all noise levels.
    t = ((torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch * len(kept)).long()
    a, s = kept[t].sqrt().view(-1, 1, 1, 1), (1 - kept[t]).sqrt().view(-1, 1, 1, 1)
    x = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=not exact):
        said = model(x, t, prompts(model.text, names, rng).to(device))
    if prediction == "v":
        return functional.mse_loss(said.float(), a * noise - s * x0)
    return ((said.float() - noise).square() * (1 / a**2).clamp(max=HEAVIEST)).mean()


def _noise(batch: int, shape: torch.Size, device: torch.device) -> torch.Tensor:
    """[batch, 4, h, w] of about the normal distribution, see `OFFSET`."""
    size = 1 + SPREAD * torch.randn(batch, 1, 1, 1, device=device)
    offset = OFFSET * torch.randn(batch, shape[0], 1, 1, device=device)
    return size * torch.randn(batch, *shape, device=device) + offset


def _save(state: Path, model: Model, average: Model, optimiser: Any, progress: Progress) -> None:
    """Written beside and then moved: an interruption leaves the last whole one."""
    state.parent.mkdir(parents=True, exist_ok=True)
    fresh = state.with_suffix(".new")
    torch.save(
        {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "progress": vars(progress),
        },
        fresh,
    )
    fresh.replace(state)
