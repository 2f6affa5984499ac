"""Real UNets of every layout, small and with random weights that matter; and their forwards written out by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from imaginairy.modules.sgm import attention as sgm_attention
from imaginairy.modules.sgm.diffusionmodules import openaimodel as sgm_openaimodel
from ldm.modules.diffusionmodules.openaimodel import UNetModel as LdmUNet
from ldm.modules.diffusionmodules.util import timestep_embedding
from torch import nn

sgm_openaimodel.SpatialTransformer = sgm_attention.SpatialTransformer

LDM = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 64,
    "use_checkpoint": False,
    "legacy": False,
}
SGM = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 4],
    "num_head_channels": 16,
    "transformer_depth": [1, 2, 3],
    "context_dim": 128,
    "num_classes": "sequential",
    "adm_in_channels": 96,
    "use_linear_in_transformer": True,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "sd1": LDM,
    "sd2": LDM | {"num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True},
    "inpaint": LDM | {"in_channels": 9},
    "instruct-pix2pix": LDM | {"in_channels": 8},
    "ldm-4-g": LDM
    | {
        "in_channels": 3,
        "out_channels": 3,
        "attention_resolutions": [8, 4, 2],
        "channel_mult": [1, 2, 3, 5],
        "num_heads": 1,
    },
    "ldm-class-labels": LDM | {"num_classes": 10, "use_spatial_transformer": False, "context_dim": None},
    "three-levels": LDM | {"channel_mult": [1, 2, 2], "num_res_blocks": 1},
    "sdxl": SGM,
    "sdxl-refiner": SGM | {"channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1], "model_channels": 32},
    "ssd-1b": SGM,
}


def make(layout: str = "sd1", seed: int = 0) -> nn.Module:
    """A fresh UNet in eval mode; every weight is random, so that the deep features reach the output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = LAYOUTS[layout]
        unet = (sgm_openaimodel.UNetModel if "adm_in_channels" in options else LdmUNet)(**options)
        if layout == "ssd-1b":
            _remove_blocks(unet)
        for parameter in unet.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return unet.eval().requires_grad_(False)


def _remove_blocks(unet: nn.Module) -> None:
    """As SSD-1B does with SDXL: no attention in the middle, fewer transformer blocks elsewhere."""
    unet.middle_block = type(unet.middle_block)(unet.middle_block[0])
    for block in [*unet.input_blocks, *unet.output_blocks]:
        for layer in block:
            if hasattr(layer, "transformer_blocks"):
                layer.transformer_blocks = layer.transformer_blocks[:1]


shared_unet = functools.lru_cache(maxsize=None)(make)
"""One UNet per layout for tests that leave no trace on it."""


def inputs(layout: str, rows: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> dict[str, Any]:
    """Arguments of one call: x, timesteps, context and y as this layout wants them."""
    options, generator = LAYOUTS[layout], torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    arguments: dict[str, Any] = {
        "x": noise(rows, options["in_channels"], *size),
        "timesteps": torch.full((rows,), 900.0),
    }
    if options["context_dim"]:
        arguments["context"] = noise(rows, 77, options["context_dim"])
    if options.get("num_classes") == "sequential":
        arguments["y"] = noise(rows, options["adm_in_channels"])
    elif options.get("num_classes"):
        arguments["y"] = torch.arange(rows) % options["num_classes"]
    return arguments


def by_hand(
    unet: nn.Module,
    branch: int,
    feature: torch.Tensor | None = None,
    *,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
    cat: Callable[..., torch.Tensor] = torch.cat,
    kept: dict[int, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, input of output block n-1-branch) of a full call, or with `feature` of the live blocks on it alone.

    `kept` is filled with the input of every output block that runs, by branch.
    """
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False))
    if y is not None:
        emb = emb + unet.label_emb(y)
    below, above = list(unet.input_blocks), list(unet.output_blocks)
    h, skips = x.type(getattr(unet, "dtype", x.dtype)), []
    for block in below if feature is None else below[: branch + 1]:
        h = block(h, emb, context)
        skips.append(h)
    first_live = len(above) - 1 - branch
    if feature is None:
        h = unet.middle_block(h, emb, context)
        for place, block in enumerate(above[:first_live]):
            if kept is not None:
                kept[len(above) - 1 - place] = h.clone()
            h = block(cat([h, skips.pop()], dim=1), emb, context)
        feature = h
    h = feature
    for place, block in enumerate(above[first_live:]):
        if kept is not None:
            kept[branch - place] = h.clone()
        h = block(cat([h, skips.pop()], dim=1), emb, context)
    return unet.out(h.type(x.dtype)), feature


def traces(unet: nn.Module) -> tuple[int, int, frozenset[str]]:
    """What could be left on a UNet: hooks before, hooks after, names in its `__dict__`."""
    return len(unet._forward_pre_hooks), len(unet._forward_hooks), frozenset(unet.__dict__)
