"""Tiny UNets under the protocols of Forge and its kin, and what a call of one should give, looked up by hand."""

from __future__ import annotations

from typing import Any

import torch
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding

from demo.webui.forge_unet import ForgeUNet, Transformer, through

TINY: dict[str, Any] = {
    "image_size": 32,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 1, 2, 2],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "use_checkpoint": False,
    "legacy": False,
}

PROTOCOLS: dict[str, dict[str, bool]] = {
    "forge": {},
    "reforge": {"called": False, "modifies": False},
    "classic": {"called": False},
}


def make(protocol: str = "forge", seed: int = 0, channels: int = 4, context: int = 32) -> ForgeUNet:
    """A fresh UNet in eval mode; every weight is random, so that the deep features reach the output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = ForgeUNet(UNetModel(**TINY, in_channels=channels, context_dim=context), **PROTOCOLS[protocol])
        for parameter in unet.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.03)
    return unet.eval().requires_grad_(False)


def by_hand(
    unet: ForgeUNet,
    branch: int | None,
    feature: torch.Tensor | None = None,
    *,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    control: Any = None,
    transformer_options: Any = None,
    features: dict[int, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The naive rule: (output, output of the boundary's block) of a call where, with a `feature`, that block and all
    that it alone needs are left out, and the place of every other one is looked up rather than counted.

    Leaves its arguments as they are, but for `features`, which is filled with what comes out before each branch.
    """
    count = len(unet.output_blocks)
    branch = count - 1 if branch is None else branch
    boundary = count - 2 - branch
    order = [*(("input", i) for i in range(count)), ("middle", 0), *(("output", i) for i in range(count))]
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    edge = ("output", boundary) if boundary >= 0 else ("middle", 0)
    gone = (
        {("input", i) for i in range(branch + 1, count)}
        | {("middle", 0)}
        | {("output", i) for i in range(boundary + 1)}
        if feature is not None
        else set()
    )
    options, patches = dict(transformer_options), (transformer_options or {}).get("patches", {})
    options["original_shape"] = list(x.shape)
    residuals = {}
    for side in ("input", "middle", "output"):
        given = list((control or {}).get(side, []))
        places = [place for place in order if place[0] == side]
        residuals.update(dict(zip(places, reversed(given), strict=False)))
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False))
    h, skips, kept = x.clone(), {}, None
    for number, (place, block) in enumerate(zip(order, blocks, strict=True)):
        if place in gone and place != edge:
            continue
        options["block"] = place
        options["transformer_index"] = sum(isinstance(m, Transformer) for b in blocks[:number] for m in b)
        side, i = place
        if side == "output" and place not in gone:
            skip = skips[count - 1 - i]
            if residuals.get(place) is not None:
                skip = skip + residuals[place]
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            h = torch.cat([h, skip], 1)
        if place in gone:
            h = feature.clone()  # type: ignore[union-attr]
            options["transformer_index"] += sum(isinstance(m, Transformer) for m in block)
        else:
            h = unet._modified(h, "before", options)
            shape = skips[count - 2 - i].shape if side == "output" and i < count - 1 else None
            h = through(block, h, emb, context, options, shape)
        kept = h.clone() if place == edge else kept
        if features is not None and side != "input" and place not in gone and (side, i) != ("output", count - 1):
            features[count - 1 if side == "middle" else count - 2 - i] = h.clone()
        if side in ("input", "middle") and residuals.get(place) is not None:
            h = h + residuals[place]
        h = unet._modified(h, "after", options)
        if side == "input":
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips[i] = h  # the very tensor: patches write in place
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)
    options["block"] = ("last", 0)
    h = unet._modified(unet.out(unet._modified(h, "before", options)), "after", options)
    assert kept is not None
    return h, kept
