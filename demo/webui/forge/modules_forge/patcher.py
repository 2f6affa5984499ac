"""The UNet as Forge keeps it: in a model that knows noise levels, in a patcher that is cloned for every pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class KModel(nn.Module):
    """`diffusion_model` with its noise levels: takes sigmas, gives the denoised latent."""

    def __init__(self, unet: nn.Module, checkpoint: Any) -> None:
        super().__init__()
        self.diffusion_model = unet
        self._checkpoint = [checkpoint]  # in a list: it holds this module
        kept = checkpoint.alphas_cumprod
        self.register_buffer("sigmas", ((1 - kept) / kept) ** 0.5)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The whole-number timesteps next to noise levels [B]."""
        distances = sigma.log() - self.sigmas.log()[:, None]
        return distances.abs().argmin(0)

    def apply_model(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
    ) -> torch.Tensor:
        """x [B, C, h, w] with noise of sigma [B] -> the denoised latent, as x."""
        level = sigma.view(-1, 1, 1, 1)
        scaled = x / (level**2 + 1) ** 0.5
        t = self.timestep(sigma).float()
        given = scaled if c_concat is None else torch.cat([scaled, c_concat], 1)
        said = self.diffusion_model(
            given, t, context=c_crossattn, control=control, transformer_options=transformer_options
        )
        return x - level * self._checkpoint[0].as_noise(said, scaled, t)


class UnetPatcher:
    """What extensions add their options to. A clone shares the model and has options of its own."""

    def __init__(self, model: KModel) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> UnetPatcher:
        made = UnetPatcher(self.model)
        made.model_options = copy.deepcopy(self.model_options)
        return made


class ForgeObjects:
    """What a pass works with."""

    def __init__(self, unet: UnetPatcher) -> None:
        self.unet = unet

    def shallow_copy(self) -> ForgeObjects:
        return ForgeObjects(self.unet)
