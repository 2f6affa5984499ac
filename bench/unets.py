"""The UNets that are measured, and their forwards written out by hand.

The classes are the real ones (ldm for SD1.5, sgm for SDXL) at their published sizes. The weights are random:
no time and no FLOP depends on them, only picture quality does.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

POOL = 1_000_003
"""How many random numbers are drawn; weights repeat them. A prime, so that rows of a matrix differ."""

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """One UNet architecture. `size` and `cpu_size`: the default latent side on a GPU and on a CPU."""

    family: str
    size: int
    cpu_size: int
    options: dict[str, Any]
    tokens: int = 77


LATENTS = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2}
"""What Stable Diffusion's UNets have in common."""
LDM = {"use_spatial_transformer": True, "transformer_depth": 1, "use_checkpoint": False}
SD = (
    LATENTS
    | LDM
    | {"image_size": 32, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "legacy": False}
)
SGM = LATENTS | {
    "attention_resolutions": [4, 2],
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
}

LAYOUTS = {
    "sd15": Layout("ldm", 64, 64, SD | {"num_heads": 8, "context_dim": 768}),
    "sd21": Layout(
        "ldm", 64, 64, SD | {"num_head_channels": 64, "use_linear_in_transformer": True, "context_dim": 1024}
    ),
    "ldm-4-g": Layout(
        "ldm",
        64,
        64,
        LDM
        | {
            "image_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 192,
            "num_res_blocks": 2,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 5],
            "num_heads": 1,
            "context_dim": 512,
        },
        tokens=1,
    ),
    "sdxl": Layout(
        "sgm",
        128,
        32,
        SGM
        | {
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 2, 10],
            "context_dim": 2048,
            "adm_in_channels": 2816,
        },
    ),
    "sdxl-refiner": Layout(
        "sgm",
        128,
        32,
        SGM
        | {
            "model_channels": 384,
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": 4,
            "context_dim": 1280,
            "adm_in_channels": 2560,
        },
    ),
    "tiny": Layout("ldm", 16, 16, SD | {"model_channels": 32, "num_heads": 4, "context_dim": 64}),
}


def make(
    layout: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, attention: str = "sdp"
) -> Any:
    """The UNet with random weights, ready for inference.

    `attention`: "sdp" gives ldm's layers torch's fused attention, as A1111 does (`--opt-sdp-attention`);
    "vanilla" leaves them as published, with the attention matrix in memory. sgm's layers are fused already.
    """
    unet = on_meta(layout).to(dtype)
    for module in unet.modules():
        if type(module).__name__ == "GroupNorm32":  # computes in single precision, whatever the rest does
            module.float()
    unet.to_empty(device=device)
    fill(unet)
    if attention == "sdp":
        for module in unet.modules():
            if type(module).__name__ == "CrossAttention" and LAYOUTS[layout].family == "ldm":
                module.forward = types.MethodType(_sdp_attention, module)
    return unet.eval().requires_grad_(False)


def fill(unet: Any) -> None:
    """Random weights, drawn once and repeated: quick, and no time depends on them."""
    pools: dict[torch.dtype, torch.Tensor] = {}
    drawn = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    for name, parameter in unet.named_parameters():
        pool = pools.setdefault(parameter.dtype, drawn.to(parameter))
        flat = parameter.data.view(-1)
        if parameter.dim() > 1:
            scale = parameter[0].numel() ** -0.5
            for part in flat.split(POOL):
                torch.mul(pool[: len(part)], scale, out=part)
        else:  # norms: weight near 1; biases: near 0
            flat.copy_(pool[: len(flat)] * 0.02 + (1.0 if name.endswith("weight") else 0.0))


def inputs(
    layout: str,
    batch: int,
    size: int | tuple[int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """The arguments of one call, as a host gives them: the tokens of the text, and SDXL's vector y.

    `size`: side of the latents, or their height and width.
    """
    height, width = (size, size) if isinstance(size, int) else size
    options, generator = LAYOUTS[layout].options, torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    given = {
        "x": noise(batch, options["in_channels"], height, width),
        "timesteps": torch.full((batch,), 500.0, device=device),
        "context": noise(batch, LAYOUTS[layout].tokens, options["context_dim"]),
    }
    if "adm_in_channels" in options:
        given["y"] = noise(batch, options["adm_in_channels"])
    return given


def full(unet: Any, given: Inputs, branches: Sequence[int] = ()) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The whole forward by hand: the output, and for each branch the input of its first live output block."""
    emb, context = embedding(unet, given), given["context"]
    h, skips, features = given["x"].type(_dtype(unet, given)), [], {}
    for block in unet.input_blocks:
        h = block(h, emb, context)
        skips.append(h)
    h = unet.middle_block(h, emb, context)
    for i, block in enumerate(unet.output_blocks):
        branch = len(unet.output_blocks) - 1 - i
        if branch in branches:
            features[branch] = h
        h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
    return unet.out(h.type(given["x"].dtype)), features


def live(unet: Any, given: Inputs, branch: int, feature: torch.Tensor) -> torch.Tensor:
    """The live blocks of `branch` by hand, on `feature`: the least that a cached call can do.

    It does nothing else: no look at the arguments, no copy of the feature. So it bounds every cached call.
    """
    emb, context = embedding(unet, given), given["context"]
    h, skips = given["x"].type(_dtype(unet, given)), []
    for block in unet.input_blocks[: branch + 1]:
        h = block(h, emb, context)
        skips.append(h)
    h = feature
    for block in unet.output_blocks[len(unet.output_blocks) - 1 - branch :]:
        h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
    return unet.out(h.type(given["x"].dtype))


def count_flops(layout: str, batch: int, size: int, branches: Sequence[int]) -> tuple[int, dict[int, int]]:
    """FLOPs of the full call, and of the live blocks of each branch, the attention products included.

    Counted on meta tensors, which have shapes and no numbers: quick, needs no memory, and on a CPU the
    counter would leave out fused attention, which it does not know.
    """
    unet = on_meta(layout)
    given = inputs(layout, batch, size, device="meta")

    def counted(run: Any) -> tuple[int, Any]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = run()
        return counter.get_total_flops(), result

    whole, (_, features) = counted(lambda: full(unet, given, branches))
    return whole, {b: counted(lambda b=b: live(unet, given, b, features[b]))[0] for b in branches}


def on_meta(layout: str) -> Any:
    """The UNet without memory for weights: what the constructors put there would be overwritten anyway."""
    made = LAYOUTS[layout]
    cls = _sgm_class() if made.family == "sgm" else _ldm_class()
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):  # sgm's layers are chatty
        return cls(**made.options)


def _ldm_class() -> Any:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel


def _sgm_class() -> Any:
    from imaginairy.modules.sgm import attention
    from imaginairy.modules.sgm.diffusionmodules import openaimodel

    vars(openaimodel)["SpatialTransformer"] = attention.SpatialTransformer  # it had another one
    return openaimodel.UNetModel


def embedding(unet: Any, given: Inputs) -> torch.Tensor:
    """Of the timesteps, and of SDXL's vector, [B, e]: what the blocks are given beside their input."""
    sinusoids = sys.modules[type(unet).__module__].timestep_embedding
    emb = unet.time_embed(sinusoids(given["timesteps"], unet.model_channels, repeat_only=False))
    return emb + unet.label_emb(given["y"]) if "y" in given else emb


def _dtype(unet: Any, given: Inputs) -> Any:
    return getattr(unet, "dtype", given["x"].dtype)


def _sdp_attention(
    self: Any, x: torch.Tensor, context: torch.Tensor | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """ldm's CrossAttention.forward with torch's fused attention: same parameters, same result."""
    source = x if context is None else context

    def heads(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    out = functional.scaled_dot_product_attention(
        heads(self.to_q(x)),
        heads(self.to_k(source)),
        heads(self.to_v(source)),
        attn_mask=mask,
        scale=1 / math.sqrt(self.to_q.out_features // self.heads),
    )
    return self.to_out(out.transpose(1, 2).flatten(2))
