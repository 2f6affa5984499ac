"""Trains one network: a fixed number of steps, the same ones at each time."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from train.learn import alphas_cumprod, fused_attention

from . import model as kept
from .model import Model
from .networks import Network
from .pictures import SIDE, Pictures

EMPTY = 0.1
"""Share of empty texts, for guidance."""
RATE, WARM_UP = 2e-3, 100
HEAVIEST = 20.0
"""A network that predicts noise learns what is to be seen in much noise as fast as one that predicts v, if an error
counts 1 + sigma^2 times; at most so much.
"""
SHIFT = 1
"""Pixels by which drawings of the large set are moved at random."""
PROMPTS = 64
"""So many different texts of the training stand on the card, for pictures to be asked for."""


@fused_attention()
def train(network: Network, pictures: Pictures, steps: int | None = None) -> dict[str, Any]:
    """Train, save, and return the card. `steps` instead of the network's own, for a quick look."""
    steps = steps or network.steps
    torch.manual_seed(network.seed)
    rng = random.Random(network.seed)
    model, average = Model(network, pictures.channels), Model(network, pictures.channels)
    model.train().requires_grad_(True)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    alphas, code, losses = alphas_cumprod(), pictures.code(), []
    begun, used = time.perf_counter(), time.process_time()
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = [rng.randrange(len(pictures.texts)) for _ in range(network.batch)]
        x0 = code.encode(_moved(pictures.pixels[chosen], network, rng).float() / 127.5 - 1)
        noise = torch.randn(x0.shape)
        # One timestep from each of `batch` equal parts: every step sees all noise levels.
        t = ((torch.arange(network.batch) + torch.rand(network.batch)) / network.batch * len(alphas)).long()
        a, s = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        texts = ["" if rng.random() < EMPTY else pictures.texts[k] for k in chosen]
        said = model(a * x0 + s * noise, t, torch.cat([model.text.numbers(text)[:1] for text in texts]))
        if network.prediction == "eps":
            loss = ((said - noise).square() * (1 / a**2).clamp(max=HEAVIEST)).mean()
        else:
            loss = functional.mse_loss(said, a * noise - s * x0)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.995, (1 + step) / (20 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            print(f"{network.name}: step {step + 1} of {steps}, loss {sum(losses[-100:]) / 100:.4f}", flush=True)
    known = sorted(set(pictures.texts))
    rng.shuffle(known)
    card = {
        **_what_it_is(network, average, pictures),
        "texts": known[:PROMPTS],
        "steps": steps,
        "loss": round(sum(losses[-200:]) / len(losses[-200:]), 4),
        "minutes": round((time.perf_counter() - begun) / 60, 1),
        "processor_minutes": round((time.process_time() - used) / 60, 1),
    }
    kept.save(network, average, card)
    return card


def _what_it_is(network: Network, model: Model, pictures: Pictures) -> dict[str, Any]:
    """Of the card: what holds before and after training."""
    code = pictures.code()
    return {
        "name": network.name,
        "half": network.half,
        "prediction": network.prediction,
        "layout": network.layout,
        "config": network.config,
        "width": network.width,
        "groups": network.groups,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "output_blocks": len(model.unet.output_blocks),
        "attends_finest": network.attends_finest,
        "channels": pictures.channels,
        "size": SIDE,
        "mean": code.mean,
        "spread": code.spread,
        "pictures": network.pictures,
        "count": len(pictures.texts),
        "licence": pictures.licence,
        "batch": network.batch,
        "seed": network.seed,
        "empty": EMPTY,
    }


def _moved(pixels: torch.Tensor, network: Network, rng: random.Random) -> torch.Tensor:
    """Photographs mirrored, drawings of the large set moved, each picture [B, c, h, w] by chance."""
    if network.pictures == "photos":
        return torch.stack([one.flip(-1) if rng.random() < 0.5 else one for one in pixels])
    if network.pictures == "emoji":
        wide = functional.pad(pixels, (SHIFT,) * 4, value=255)
        corners = [(rng.randint(0, 2 * SHIFT), rng.randint(0, 2 * SHIFT)) for _ in pixels]
        return torch.stack(
            [one[:, top : top + SIDE, left : left + SIDE] for one, (top, left) in zip(wide, corners, strict=True)]
        )
    return pixels
