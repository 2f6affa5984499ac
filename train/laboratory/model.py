"""A network with its text encoder, and how it is kept."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from demo.webui.checkpoints import TEXT, UNET, make_unet
from demo.webui.toys import TextEncoder

from .networks import CONTEXT, Network
from .pictures import Code

BUCKETS = 4096
TOKENS = 16
"""Of the text encoder's 77 the first ones, which hold all of these texts: the rest only takes time."""


class Model(nn.Module):
    """Text encoder and UNet of a network with latents of `channels`."""

    def __init__(self, network: Network, channels: int) -> None:
        super().__init__()
        self.text = TextEncoder(BUCKETS, CONTEXT)
        with contextlib.redirect_stdout(io.StringIO()):  # sgm's layers are chatty
            self.unet = make_unet(network.checkpoint(channels))
        for module in self.unet.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = network.groups
        self.pooled = network.layout == "sdxl"

    def forward(self, x: torch.Tensor, t: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """What the UNet predicts, [B, c, h, w], for noisy x at timesteps t [B] and words [B, 77]."""
        return self.unet(x, t, **self.given(numbers))

    def given(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """The UNet's further arguments for words [B, 77]; SDXL's shape takes the mean of the text as its vector."""
        context = self.text(numbers)[:, :TOKENS]
        return {"context": context, "y": context.mean(1)} if self.pooled else {"context": context}


def save(network: Network, model: Model, card: dict[str, Any]) -> None:
    """Weights in 16 bit and the card beside them."""
    tensors = {UNET + name: tensor.half().contiguous() for name, tensor in model.unet.state_dict().items()}
    tensors |= {TEXT + name: tensor.half().contiguous() for name, tensor in model.text.state_dict().items()}
    network.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, network.weights)
    network.card.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load(network: Network) -> tuple[Model, Code, dict[str, Any]]:
    """The trained model, the code of its latents, and its card. Raises FileNotFoundError before it was trained."""
    if not network.card.exists():
        raise FileNotFoundError(f"{network.name} has not been trained: python -m train.laboratory {network.name}")
    card = json.loads(network.card.read_text(encoding="utf-8"))
    model, found = Model(network, card["channels"]), load_file(network.weights)
    for prefix, part in ((UNET, model.unet), (TEXT, model.text)):
        part.load_state_dict({k.removeprefix(prefix): v.float() for k, v in found.items() if k.startswith(prefix)})
    code = Code(tuple(card["mean"]), tuple(card["spread"]))
    return model.eval().requires_grad_(False), code, card
