"""Checkpoints: loading one, and putting another in its place."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from modules import script_callbacks, shared
from modules.prompt_parser import DictWithShape
from torch import nn

from demo.webui import toys
from demo.webui.checkpoints import Checkpoint, available, make_unet, picture_code, state_dict, text_encoder


class CheckpointInfo:
    """A checkpoint in the model list."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.name = self.title = self.short_title = checkpoint.title
        self.name_for_extra = self.model_name = checkpoint.name
        self.shorthash = f"{checkpoint.seed:010x}"


class DiffusionWrapper(nn.Module):
    """Holds the U-Net and calls it as the host does."""

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


class LatentDiffusion(nn.Module):
    """A loaded checkpoint."""

    parameterization = "eps"
    cond_stage_key = "txt"
    is_sd2 = is_sd3 = is_ssd = False

    def __init__(self, info: CheckpointInfo) -> None:
        super().__init__()
        checkpoint = info.checkpoint
        conditioning_key = "hybrid" if checkpoint.layout == "inpaint" else "crossattn"
        self.model = DiffusionWrapper(make_unet(checkpoint), conditioning_key)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, 0).float())
        self.is_sdxl = checkpoint.layout == "sdxl"
        self.is_sd1 = not self.is_sdxl
        self.load(info)

    def load(self, info: CheckpointInfo) -> None:
        """Put the checkpoint's weights into the U-Net that is there."""
        self.sd_checkpoint_info = info
        self.sd_model_hash = info.shorthash
        self.model.diffusion_model.load_state_dict(state_dict(info.checkpoint, self.model.diffusion_model))
        self.cond_stage_model = text_encoder(info.checkpoint)
        self.pictures = picture_code(info.checkpoint)
        self.says_v = info.checkpoint.trained.get("prediction") == "v"

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: dict) -> torch.Tensor:
        """Noise in x [B, 4, h, w] at timesteps t [B], also of a U-Net that says v: all samplers ask for noise."""
        said = self.model(x, t, cond)
        if not self.says_v:
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
        vector = self.model.diffusion_model.label_emb[0][0].in_features
        pooled = [toys.encode_pooled(text, numbers, vector) for text in texts]
        return [DictWithShape(crossattn=a, vector=b) for a, b in zip(encoded, pooled, strict=True)]

    @property
    def cond_stage_model_empty_prompt(self) -> torch.Tensor:
        if self.cond_stage_model:
            return self.cond_stage_model.encode("")[None]
        return toys.encode_text("", self.sd_checkpoint_info.checkpoint.context)[None]

    def decode_first_stage(self, z: torch.Tensor) -> torch.Tensor:
        return self.pictures.decode(z) if self.pictures else toys.decode_latent(z)

    def encode_first_stage(self, x: torch.Tensor) -> torch.Tensor:
        return self.pictures.encode(x) if self.pictures else toys.encode_picture(x)


class SdModelData:
    @property
    def sd_model(self) -> Any:
        return shared.sd_model


model_data = SdModelData()
checkpoints_list: dict[str, CheckpointInfo] = {}
checkpoint_aliases: dict[str, CheckpointInfo] = {}


def list_models() -> None:
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for checkpoint in available().values():
        info = CheckpointInfo(checkpoint)
        checkpoints_list[info.title] = info
        checkpoint_aliases.update({info.title: info, info.model_name: info})


def get_closet_checkpoint_match(name: str) -> CheckpointInfo | None:
    """The host's own spelling."""
    return checkpoint_aliases.get(name)


def select_checkpoint() -> CheckpointInfo:
    """The one the options name."""
    return checkpoint_aliases[shared.opts.sd_model_checkpoint]


def reload_model_weights(info: CheckpointInfo | None = None) -> Any:
    """Make `info` (or the options' checkpoint) the loaded one: in place where the U-Net fits, else a new object."""
    info = info or select_checkpoint()
    loaded = shared.sd_model
    if loaded is not None and loaded.sd_checkpoint_info is info:
        return loaded
    if loaded is not None and loaded.sd_checkpoint_info.checkpoint.same_unet(info.checkpoint):
        loaded.load(info)
    else:
        shared.sd_model = LatentDiffusion(info)
    script_callbacks.call("model_loaded", shared.sd_model)
    return shared.sd_model
