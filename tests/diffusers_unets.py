"""Real diffusers UNets of every class, small and with random weights that matter; and their forwards by hand."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch
from diffusers.utils import torch_utils
from torch import nn

SD = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
SDXL = SD | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}
DDPM = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
SVD = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (32, 32, 64),
    "down_block_types": (
        "CrossAttnDownBlockSpatioTemporal",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
    ),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12,
    "num_frames": 2,
}
MOTION = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "norm_num_groups": 4,
}
UNET3D = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", SD),
    "sd2": ("UNet2DConditionModel", SD | {"use_linear_projection": True, "attention_head_dim": (2, 4, 4)}),
    "inpaint": ("UNet2DConditionModel", SD | {"in_channels": 9}),
    "instruct-pix2pix": ("UNet2DConditionModel", SD | {"in_channels": 8}),
    "no-middle": ("UNet2DConditionModel", SD | {"mid_block_type": None}),
    "one-layer": ("UNet2DConditionModel", SD | {"layers_per_block": 1}),
    "three-layers": ("UNet2DConditionModel", SD | {"layers_per_block": 3}),
    "uneven": ("UNet2DConditionModel", SD | {"layers_per_block": (1, 3, 2)}),
    "pixels": (
        "UNet2DConditionModel",
        SD
        | {
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
    ),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "refiner": (
        "UNet2DConditionModel",
        SDXL
        | {
            "block_out_channels": (8, 16, 16, 16),
            "attention_head_dim": (2, 4, 4, 4),
            "transformer_layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "ddpm": ("UNet2DModel", DDPM),
    "ddpm-resnet-samplers": ("UNet2DModel", DDPM | {"downsample_type": "resnet", "upsample_type": "resnet"}),
    "svd": ("UNetSpatioTemporalConditionModel", SVD),
    "motion": ("UNetMotionModel", MOTION),
    "3d": ("UNet3DConditionModel", UNET3D),
}
HELPER_RUNS = tuple(
    name
    for name, (_, options) in LAYOUTS.items()
    if options["layers_per_block"] == 2 and (options.get("mid_block_type", "") is not None)
)
"""Layouts that DeepCache 0.1.1 runs with the same branches; it writes 3 for layers_per_block + 1."""

FRAMES = 2


def make(layout: str = "sd1", seed: int = 0, **changes: Any) -> nn.Module:
    """A fresh UNet in eval mode; every weight is random, so that the deep features reach the output."""
    name, options = LAYOUTS[layout]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = getattr(diffusers, name)(**{**options, **changes})
        for parameter in unet.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return unet.eval().requires_grad_(False)


shared_unet = functools.lru_cache(maxsize=None)(make)
"""One UNet per layout for tests that leave no trace on it."""


def inputs(layout: str, rows: int = 2, size: tuple[int, int] = (8, 8), seed: int = 0) -> dict[str, Any]:
    """Arguments of one call, as this class wants them."""
    name, options = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    channels = options["in_channels"]
    shape = {
        "UNetSpatioTemporalConditionModel": (rows, FRAMES, channels, *size),
        "UNetMotionModel": (rows, channels, FRAMES, *size),
        "UNet3DConditionModel": (rows, channels, FRAMES, *size),
    }.get(name, (rows, channels, *size))
    call: dict[str, Any] = {"sample": noise(*shape), "timestep": torch.tensor(500 - seed)}
    if "cross_attention_dim" in options:
        each = rows * FRAMES if layout == "motion" else rows  # AnimateDiff's pipeline repeats it for each frame
        call["encoder_hidden_states"] = noise(each, 1 if layout == "svd" else 7, options["cross_attention_dim"])
    if layout == "svd":
        call["added_time_ids"] = noise(rows, 3)
    if options.get("addition_embed_type") == "text_time":
        call["added_cond_kwargs"] = {"text_embeds": noise(rows, 16), "time_ids": noise(rows, 6)}
    return call


def by_hand(
    unet: nn.Module,
    branch: int,
    feature: torch.Tensor | None = None,
    *,
    sample: torch.Tensor,
    timestep: Any,
    encoder_hidden_states: torch.Tensor | None = None,
    added_time_ids: torch.Tensor | None = None,
    added_cond_kwargs: dict[str, torch.Tensor] | None = None,
    control: list[torch.Tensor] | None = None,
    middle: torch.Tensor | None = None,
    adapter: list[torch.Tensor] | None = None,
    features: dict[int, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, kept feature) of a full call, or with `feature` of the live layers on it alone. `features` is filled
    with what enters each layer on the way up that runs, by branch.

    Written from the idea, layer by layer: skips are counted from the input, up layers from the output.
    """
    x, rows = sample, sample.shape[0]
    frames = {"UNetSpatioTemporalConditionModel": 1, "UNetMotionModel": 2, "UNet3DConditionModel": 2}.get(
        type(unet).__name__
    )
    frames = x.shape[frames] if frames else 1
    emb = unet.time_embedding(unet.time_proj(torch.as_tensor(timestep).expand(rows)))
    if added_time_ids is not None:
        emb = emb + unet.add_embedding(unet.add_time_proj(added_time_ids.flatten()).reshape(rows, -1))
    if added_cond_kwargs is not None and "time_ids" in added_cond_kwargs:
        ids = unet.add_time_proj(added_cond_kwargs["time_ids"].flatten()).reshape(rows, -1)
        emb = emb + unet.add_embedding(torch.cat([added_cond_kwargs["text_embeds"], ids], dim=-1))
    context = encoder_hidden_states
    if frames > 1:
        emb = emb.repeat_interleave(frames, dim=0)
        if type(unet).__name__ != "UNetMotionModel":
            context = context.repeat_interleave(frames, dim=0)
        if type(unet).__name__ == "UNetSpatioTemporalConditionModel":
            x = x.flatten(0, 1)
        else:
            x = x.permute(0, 2, 1, 3, 4).flatten(0, 1)
    still = torch.zeros(rows, frames)

    if added_cond_kwargs is not None and "image_embeds" in added_cond_kwargs:  # an IP-Adapter
        context = (context, unet.encoder_hid_proj(added_cond_kwargs["image_embeds"]))

    def run_layer(block: nn.Module, i: int, h: torch.Tensor) -> torch.Tensor:
        kind = type(block).__name__
        if "SpatioTemporal" in kind:
            h = block.resnets[i](h, emb, image_only_indicator=still)
            if hasattr(block, "attentions"):
                h = block.attentions[i](
                    h, encoder_hidden_states=context, image_only_indicator=still, return_dict=False
                )[0]
            return h
        h = block.resnets[i](h, emb)
        if hasattr(block, "temp_convs"):
            h = block.temp_convs[i](h, num_frames=frames)
        if getattr(block, "has_cross_attention", False):
            if "Simple" in kind:
                h = block.attentions[i](h, encoder_hidden_states=context)
            else:
                h = block.attentions[i](h, encoder_hidden_states=context, return_dict=False)[0]
        elif hasattr(block, "attentions"):
            h = block.attentions[i](h)
        if hasattr(block, "temp_attentions"):
            h = block.temp_attentions[i](h, num_frames=frames, return_dict=False)[0]
        if hasattr(block, "motion_modules"):
            h = block.motion_modules[i](h, num_frames=frames)
        return h

    def resample(block: nn.Module, sampler: nn.Module, h: torch.Tensor, size: Any = None) -> torch.Tensor:
        if type(sampler).__name__ == "ResnetBlock2D":
            return sampler(h, emb)
        return sampler(h) if size is None else sampler(h, size)

    h = unet.conv_in(x)
    if hasattr(unet, "transformer_in"):
        h = unet.transformer_in(h, num_frames=frames, return_dict=False)[0]
    skips = [h]
    enough = None if feature is None else branch + 1
    for number, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            if enough == len(skips):
                break
            h = run_layer(block, i, h)
            last = i == len(block.resnets) - 1
            if (
                last
                and adapter is not None
                and number < len(adapter)
                and (getattr(block, "has_cross_attention", False) or block.downsamplers is None)
            ):
                h = h + adapter[number]
            skips.append(h)
        if enough == len(skips):
            break
        if block.downsamplers is not None:
            for sampler in block.downsamplers:
                h = resample(block, sampler, h)
            if adapter is not None and number < len(adapter) and not getattr(block, "has_cross_attention", False):
                h = h + adapter[number]
            skips.append(h)
    if control is not None:
        skips = [skip + more for skip, more in zip(skips, control, strict=False)]
    if feature is None:
        if unet.mid_block is not None:
            if "SpatioTemporal" in type(unet).__name__:
                h = unet.mid_block(h, emb, encoder_hidden_states=context, image_only_indicator=still)
            elif context is None:
                h = unet.mid_block(h, emb)
            elif frames > 1:
                h = unet.mid_block(h, emb, encoder_hidden_states=context, num_frames=frames)
            else:
                h = unet.mid_block(h, emb, encoder_hidden_states=context)
        if middle is not None:
            h = h + middle
    layers = [(block, i) for block in unet.up_blocks for i in range(len(block.resnets))]
    first_live = len(layers) - 1 - branch
    forced = any(side % 2 ** (len(unet.up_blocks) - 1) for side in sample.shape[-2:])
    for number, (block, i) in enumerate(layers):
        if feature is not None and number < first_live:
            continue
        if number == first_live:
            if feature is None:
                feature = h
            h = feature
        if features is not None:
            features[len(layers) - 1 - number] = h.clone()
        skip = skips.pop()
        if getattr(block, "s1", None):  # FreeU
            factors = {name: getattr(block, name) for name in ("s1", "s2", "b1", "b2")}
            h, skip = torch_utils.apply_freeu(block.resolution_idx, h.clone(), skip.clone(), **factors)
        h = run_layer(block, i, torch.cat([h, skip], dim=1))
        if i == len(block.resnets) - 1 and block.upsamplers is not None:
            for sampler in block.upsamplers:
                h = resample(block, sampler, h, skips[-1].shape[2:] if forced else None)
    h = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
    if type(unet).__name__ == "UNetSpatioTemporalConditionModel":
        h = h.reshape(rows, frames, *h.shape[1:])
    elif frames > 1:
        h = h.reshape(rows, frames, *h.shape[1:]).permute(0, 2, 1, 3, 4)
    return h, feature


def traces(unet: nn.Module) -> tuple[int, int, dict[str, frozenset[str]]]:
    """What could be left on a UNet: hooks before, hooks after, names in its and its blocks' `__dict__`s."""
    return (
        len(unet._forward_pre_hooks),
        len(unet._forward_hooks),
        {name: frozenset(module.__dict__) for name, module in unet.named_modules()},
    )
