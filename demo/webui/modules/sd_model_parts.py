"""What a loaded checkpoint has on every host: its text encoder, its autoencoder, its noise levels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from modules.prompt_parser import DictWithShape
from torch import nn

from demo.webui import toys
from demo.webui.checkpoints import autoencoder, text_encoder


class LoadedCheckpoint(nn.Module):
    """All but the UNet, which each host keeps in a place of its own: subclasses have it as `_unet`."""

    cond_stage_key = "txt"
    is_sd2 = is_sd3 = is_ssd = False
    _unet: nn.Module

    def __init__(self, info: Any) -> None:
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, 0).float())
        self.is_sdxl = info.checkpoint.layout == "sdxl"
        self.is_sd1 = not self.is_sdxl

    def load(self, info: Any) -> None:
        """Take the checkpoint's other parts."""
        self.sd_checkpoint_info = info
        self.sd_model_hash = info.shorthash
        self.cond_stage_model = text_encoder(info.checkpoint)
        self.first_stage_model = autoencoder(info.checkpoint)
        self.parameterization = info.checkpoint.trained.get("prediction", "eps")

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    def as_noise(self, said: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noise in x [B, 4, h, w] at timesteps t [B], also of a UNet that says v: all samplers ask for noise."""
        if self.parameterization != "v":
            return said
        kept = self.alphas_cumprod[t.float().round().long().clamp(0, 999)].view(-1, 1, 1, 1)
        return kept.sqrt() * said + (1 - kept).sqrt() * x

    def get_learned_conditioning(self, texts: list[str], width: int, height: int) -> Any:
        """One entry for each text: [tokens, width], for SDXL a dict that also has the vector [1600]."""
        context = self.sd_checkpoint_info.checkpoint.context
        encode = self.cond_stage_model.encode if self.cond_stage_model else partial(toys.encode_text, width=context)
        encoded = [encode(text) for text in texts]
        if not self.is_sdxl:
            return encoded
        numbers = [height, width, 0, 0, height, width]
        vector = self._unet.label_emb[0][0].in_features
        pooled = [toys.encode_pooled(text, numbers, vector) for text in texts]
        return [DictWithShape(crossattn=a, vector=b) for a, b in zip(encoded, pooled, strict=True)]

    @property
    def cond_stage_model_empty_prompt(self) -> torch.Tensor:
        if self.cond_stage_model:
            return self.cond_stage_model.encode("")[None]
        return toys.encode_text("", self.sd_checkpoint_info.checkpoint.context)[None]

    def decode_first_stage(self, z: torch.Tensor) -> torch.Tensor:
        return self.first_stage_model.decode(z) if self.first_stage_model else toys.decode_latent(z)

    def encode_first_stage(self, x: torch.Tensor) -> torch.Tensor:
        return self.first_stage_model.encode(x) if self.first_stage_model else toys.encode_picture(x)
