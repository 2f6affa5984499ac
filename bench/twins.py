"""UNets of diffusers at their published sizes: twins of the ldm and sgm ones, on which the published helper runs, and
those that only diffusers has (SVD, DDPM), with their forwards written out by hand. Random weights, as in `unets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from . import peers, unets


@dataclass(frozen=True)
class Net:
    """A class of diffusers and its options. `tokens`: length of the text, or of the image embedding."""

    kind: str
    options: dict[str, Any]
    tokens: int = 77


TEXT, VIDEO, PIXELS = "UNet2DConditionModel", "UNetSpatioTemporalConditionModel", "UNet2DModel"
XL = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
DDPM = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
NETS = {
    "sd15": Net(TEXT, peers.SIZES["sd15"]),
    "sd21": Net(
        TEXT,
        peers.SIZES["sd15"]
        | {
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "cross_attention_dim": 1024,
        },
    ),
    "ldm-4-g": Net(
        TEXT,
        {
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 2,
            "block_out_channels": (192, 384, 576, 960),
            "attention_head_dim": 1,
            "cross_attention_dim": 512,
            "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        },
        tokens=1,
    ),
    "sdxl": Net(
        TEXT,
        XL
        | {
            "block_out_channels": (320, 640, 1280),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "transformer_layers_per_block": (1, 2, 10),
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        },
    ),
    "sdxl-refiner": Net(
        TEXT,
        XL
        | {
            "block_out_channels": (384, 768, 1536, 1536),
            "attention_head_dim": (6, 12, 24, 24),
            "cross_attention_dim": 1280,
            "transformer_layers_per_block": 4,
            "projection_class_embeddings_input_dim": 2560,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "svd": Net(
        VIDEO,
        {
            "in_channels": 8,
            "out_channels": 4,
            "layers_per_block": 2,
            "block_out_channels": (320, 640, 1280, 1280),
            "num_attention_heads": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768,
        },
        tokens=1,
    ),
    "ddpm-cifar10": Net(
        PIXELS,
        DDPM
        | {
            "sample_size": 32,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "ddpm-lsun": Net(
        PIXELS,
        DDPM
        | {
            "sample_size": 256,
            "block_out_channels": (128, 128, 256, 256, 512, 512),
            "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        },
    ),
    "tiny": Net(
        TEXT,
        peers.SIZES["sd15"]
        | {
            "block_out_channels": (32, 64, 128, 128),
            "attention_head_dim": 4,
            "cross_attention_dim": 64,
        },
    ),
}


def make(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The UNet with random weights, ready for inference."""
    unet = on_meta(name)
    if dtype != torch.float32:
        unet.to(dtype)
    unets.fill(unet.to_empty(device=device))
    return unet.eval().requires_grad_(False)


def inputs(
    name: str,
    rows: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    frames: int = 1,
) -> dict[str, Any]:
    """The arguments of one call but the timestep, as a pipeline gives them. `size`: height and width of `sample`."""
    net, generator = NETS[name], torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    channels = net.options["in_channels"]
    given: dict[str, Any] = {
        "sample": noise(rows, frames, channels, *size) if net.kind == VIDEO else noise(rows, channels, *size)
    }
    if "cross_attention_dim" in net.options:
        given["encoder_hidden_states"] = noise(rows, net.tokens, net.options["cross_attention_dim"])
    if net.kind == VIDEO:
        given["added_time_ids"] = noise(rows, 3)
    if "addition_embed_type" in net.options:
        width, each = (net.options[key] for key in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
        numbers = 5 if name == "sdxl-refiner" else 6
        given["added_cond_kwargs"] = {
            "text_embeds": noise(rows, width - numbers * each),
            "time_ids": noise(rows, numbers),
        }
    return given


def walk(
    unet: Any,
    given: dict[str, Any],
    timestep: torch.Tensor,
    branches: Sequence[int] = (),
    live: int | None = None,
    feature: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """SVD's or DDPM's forward by hand: the output, and for each branch the input of its first live layer on the way up.

    `live` and `feature`: only the live layers of this branch, on its feature: the least a cached call can do.
    """
    video = type(unet).__name__ == VIDEO
    x, rows = given["sample"], given["sample"].shape[0]
    emb = unet.time_embedding(unet.time_proj(timestep.expand(rows)).to(x.dtype))
    extra: dict[str, Any] = {}
    if video:
        frames = x.shape[1]
        ids = unet.add_time_proj(given["added_time_ids"].flatten()).reshape(rows, -1).to(x.dtype)
        emb = (emb + unet.add_embedding(ids)).repeat_interleave(frames, dim=0)
        context = given["encoder_hidden_states"].repeat_interleave(frames, dim=0)
        extra = {"image_only_indicator": torch.zeros(rows, frames, dtype=x.dtype, device=x.device)}
        x = x.flatten(0, 1)

    def layer(block: Any, i: int, h: torch.Tensor) -> torch.Tensor:
        h = block.resnets[i](h, emb, **extra)
        if not hasattr(block, "attentions"):
            return h
        if video:
            return block.attentions[i](h, encoder_hidden_states=context, return_dict=False, **extra)[0]
        return block.attentions[i](h)

    h = unet.conv_in(x)
    skips = [h]
    for block in unet.down_blocks:
        steps = [lambda h, i=i, block=block: layer(block, i, h) for i in range(len(block.resnets))]
        for step in [*steps, *(block.downsamplers or ())]:
            if live is not None and len(skips) > live:
                break
            h = step(h)
            skips.append(h)
    if live is None:
        h = unet.mid_block(h, emb, encoder_hidden_states=context, **extra) if video else unet.mid_block(h, emb)
    above = [(block, i) for block in unet.up_blocks for i in range(len(block.resnets))]
    found: dict[int, torch.Tensor] = {}
    for number, (block, i) in enumerate(above):
        branch = len(above) - 1 - number
        if live is not None and branch > live:
            continue
        if branch == live:
            assert feature is not None
            h = feature
        if branch in branches:
            found[branch] = h
        h = layer(block, i, torch.cat([h, skips.pop()], dim=1))
        if i == len(block.resnets) - 1:
            for upsampler in block.upsamplers or ():
                h = upsampler(h)
    h = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
    return (h.unflatten(0, (rows, -1)) if video else h), found


def count_flops(
    name: str, rows: int, size: tuple[int, int], branches: Sequence[int], frames: int = 1
) -> tuple[int, dict[int, int]]:
    """As `unets.count_flops`, for a net whose forward is written out here."""
    unet, given = on_meta(name), inputs(name, rows, size, "meta", frames=frames)
    timestep = torch.zeros((), device="meta")

    def counted(**options: Any) -> tuple[int, Any]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = walk(unet, given, timestep, **options)
        return counter.get_total_flops(), result

    whole, (_, features) = counted(branches=branches)
    return whole, {b: counted(live=b, feature=features[b])[0] for b in branches}


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        unet = getattr(diffusers, NETS[name].kind)(**NETS[name].options)
    return unet.to("meta")  # SVD's mixing factors are made where no default device reaches
