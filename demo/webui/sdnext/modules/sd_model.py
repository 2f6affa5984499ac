"""A loaded checkpoint as SD.Next keeps it: `sd_model` is a real diffusers pipeline, and its `unet` the UNet."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would say that torchvision is not there

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from modules.sd_model_parts import LoadedCheckpoint
from torch import nn

from demo.webui.checkpoints import LATENT_CHANNELS, Checkpoint, make_unet, state_dict

AT_FIRST = None
"""What stands for the model before one is loaded."""

NOISE_LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

diffusers.logging.set_verbosity_error()


class Parts(LoadedCheckpoint):
    """What the pipeline is not given: texts come as embeddings, pictures as latents."""


def make_diffusers_unet(checkpoint: Checkpoint) -> diffusers.UNet2DConditionModel:
    """The checkpoint's UNet in diffusers' layout, with the same weights under their names there."""
    if checkpoint.layout != "sd1":
        raise NotImplementedError(f"the embedded SD.Next has no checkpoint of the layout {checkpoint.layout}")
    ldm = make_unet(checkpoint)
    attends = [any(hasattr(layer, "proj_in") for layer in block) for block in ldm.input_blocks]
    levels = len(ldm.channel_mult)
    # Each level has two blocks of layers and, but for the last, one that makes it smaller.
    cross = [attends[1 + 3 * level] for level in range(levels)]
    unet = diffusers.UNet2DConditionModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=2,
        sample_size=64,
        block_out_channels=[checkpoint.width * times for times in ldm.channel_mult],
        down_block_types=["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in cross],
        up_block_types=["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(cross)],
        attention_head_dim=ldm.num_heads,
        cross_attention_dim=checkpoint.context,
    )
    unet.conv_norm_out.num_groups = checkpoint.groups  # its `norm_num_groups` would be of all norms
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in state_dict(checkpoint, ldm).items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(weights, unet.config))
    return unet.eval().requires_grad_(False)


def loaded(info: Any, before: Any) -> Any:
    """The checkpoint `info` in a new pipeline."""
    parts = Parts(info)
    parts.load(info)
    pipe = diffusers.StableDiffusionPipeline(
        unet=make_diffusers_unet(info.checkpoint),
        vae=None,
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE_LEVELS, steps_offset=1),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.sd_checkpoint_info, pipe.parts = info, parts
    return pipe


def as_kind(pipe: Any, kind: type) -> Any:
    """The same parts in a pipeline of another class, as the host does for image to image."""
    if type(pipe) is kind:
        return pipe
    made = kind(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    made.sd_checkpoint_info, made.parts = pipe.sd_checkpoint_info, pipe.parts
    return made


def unet_of(model: Any) -> nn.Module:
    return model.unet


def embeddings(pipe: Any, prompts: list[str], negatives: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, tokens, width] each, of one length: the shorter ones are drawn out with empty prompts."""
    encoded = [pipe.parts.get_learned_conditioning(texts, 0, 0) for texts in (prompts, negatives)]
    empty = pipe.parts.cond_stage_model_empty_prompt[0]
    longest = max(len(one) for texts in encoded for one in texts)

    def padded(one: torch.Tensor) -> torch.Tensor:
        return torch.cat([one, empty.repeat((longest - len(one)) // len(empty), 1)])

    cond, uncond = (torch.stack([padded(one) for one in texts]) for texts in encoded)
    return cond, uncond
