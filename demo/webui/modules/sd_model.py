"""A loaded checkpoint as A1111 keeps it: `sd_model.model.diffusion_model` is the UNet."""

from __future__ import annotations

from typing import Any

import torch
from modules.sd_model_parts import LoadedCheckpoint
from torch import nn

from demo.webui.checkpoints import make_unet, state_dict

AT_FIRST = None
"""What stands for the model before one is loaded."""


class DiffusionWrapper(nn.Module):
    """Holds the UNet and calls it as the host does."""

    def __init__(self, unet: nn.Module, conditioning_key: str) -> None:
        super().__init__()
        self.diffusion_model = unet
        self.conditioning_key = conditioning_key

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: dict) -> torch.Tensor:
        if "crossattn" in cond:
            return self.diffusion_model(x, timesteps=t, context=cond["crossattn"], y=cond["vector"])
        if self.conditioning_key == "hybrid":
            x = torch.cat([x, *cond["c_concat"]], dim=1)
        return self.diffusion_model(x, t, context=torch.cat(cond["c_crossattn"], 1))


class LatentDiffusion(LoadedCheckpoint):
    """A loaded checkpoint."""

    def __init__(self, info: Any) -> None:
        super().__init__(info)
        conditioning_key = "hybrid" if info.checkpoint.layout == "inpaint" else "crossattn"
        self.model = DiffusionWrapper(make_unet(info.checkpoint), conditioning_key)
        self.load(info)

    @property
    def _unet(self) -> nn.Module:
        return self.model.diffusion_model

    def load(self, info: Any) -> None:
        """Put the checkpoint's weights into the UNet that is there."""
        super().load(info)
        self._unet.load_state_dict(state_dict(info.checkpoint, self._unet))

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: dict) -> torch.Tensor:
        return self.as_noise(self.model(x, t, cond), x, t)


def loaded(info: Any, before: Any) -> Any:
    """The checkpoint `info`: in the object of `before` where its UNet fits, else in a new one."""
    if before is not None and before.sd_checkpoint_info.checkpoint.same_unet(info.checkpoint):
        before.load(info)
        return before
    return LatentDiffusion(info)


def unet_of(model: Any) -> Any:
    return model.model.diffusion_model


def takes_masks(model: Any) -> bool:
    """Whether the UNet has further channels for a mask and a masked picture."""
    return model.model.conditioning_key == "hybrid"


def begin_pass(model: Any) -> None:
    """Nothing is to be prepared here."""
