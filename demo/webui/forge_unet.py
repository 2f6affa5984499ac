"""A UNet that is called as Forge's and reForge's are: written from the protocol of their forwards, around ldm's layers.

What the protocol says: `transformer_options["block"]` names each block before it runs and `transformer_index` counts
transformers; `control` lists give each block its residual from their end; `patches` act on every block, entries of
`patches_replace` on the attention of the block they are keyed by; block modifiers (Forge, Classic) run before and after
each block, and once more around the output layers. Forge calls a block, reForge and Classic go through its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel, Upsample
from ldm.modules.diffusionmodules.util import timestep_embedding
from torch import nn
from torch.nn.functional import interpolate, scaled_dot_product_attention


class Attend:
    """One attention layer under the protocol's patches. Its name is `attn1` or `attn2`."""

    def __init__(self, layer: Any, name: str) -> None:
        self.layer, self.name = layer, name

    def __call__(self, n: torch.Tensor, context: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        patches = options.get("patches", {})
        extra = {key: value for key, value in options.items() if not key.startswith("patches")}
        value = context
        for patch in patches.get(f"{self.name}_patch", ()):
            n, context, value = patch(n, context, value, extra)
        q, k, v = self.layer.to_q(n), self.layer.to_k(context), self.layer.to_v(value)
        replacing = options.get("patches_replace", {}).get(self.name, {})
        side, place = options["block"]
        attention = replacing.get((side, place, options["block_index"])) or replacing.get((side, place))
        out = self.layer.to_out(attention(q, k, v, extra) if attention else self.plain(q, k, v))
        for patch in patches.get(f"{self.name}_output_patch", ()):
            out = patch(out, extra)
        return out

    def plain(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = self.layer.heads
        apart = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
        return scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """An ldm transformer, run with patches; raises the count of transformers by one."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.transformer_blocks = inner.transformer_blocks

    def forward(self, x: torch.Tensor, context: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        height, inner = x.shape[2], self.inner
        h = inner.proj_in(inner.norm(x)).flatten(2).transpose(1, 2)
        for options["block_index"], block in enumerate(self.transformer_blocks):
            n = block.norm1(h)
            h = h + Attend(block.attn1, "attn1")(n, n, options)
            h = h + Attend(block.attn2, "attn2")(block.norm2(h), context, options)
            h = h + block.ff(block.norm3(h))
        return x + inner.proj_out(h.transpose(1, 2).unflatten(2, (height, -1)))


Layers = Any
"""A block as far as the walk needs it: something to go through."""


def through(
    layers: Layers,
    h: torch.Tensor,
    emb: torch.Tensor,
    context: torch.Tensor,
    options: dict[str, Any],
    output_shape: Sequence[int] | None = None,
    modifies: bool = True,
) -> torch.Tensor:
    """A block's layers one after another; each modifier of the inside sees each layer before and after."""
    modifiers = options.get("block_inner_modifiers", []) if modifies else []
    for place, layer in enumerate(layers):
        for modifier in modifiers:
            h = modifier(h, "before", layer, place, layers, options)
        if isinstance(layer, ResBlock):
            h = layer(h, emb)
        elif isinstance(layer, Transformer):
            h = layer(h, context, options)
            options["transformer_index"] += 1
        elif isinstance(layer, Upsample):
            h = layer.conv(interpolate(h, (output_shape or h.shape)[2:], mode="nearest"))
        else:
            h = layer(h)
        for modifier in modifiers:
            h = modifier(h, "after", layer, place, layers, options)
    return h


class CalledBlock(nn.Sequential):
    """A block of Forge's, which is called."""

    def forward(self, h: torch.Tensor, emb: Any, context: Any, options: Any, output_shape: Any = None) -> torch.Tensor:
        return through(self, h, emb, context, options, output_shape)


class ForgeUNet(nn.Module):
    """Forge's protocol, around the layers of an ldm UNet. With `called=False` reForge's and Classic's, whose forwards
    go through the blocks' layers; with `modifies=False` reForge's, which knows no block modifiers.
    """

    def __init__(self, inner: UNetModel, *, called: bool = True, modifies: bool = True) -> None:
        super().__init__()
        self.called, self.modifies = called, modifies
        self.model_channels, self.num_classes = inner.model_channels, None
        self.time_embed, self.out = inner.time_embed, inner.out
        self.input_blocks = nn.ModuleList(map(_block, inner.input_blocks))
        self.middle_block = _block(inner.middle_block)
        self.output_blocks = nn.ModuleList(map(_block, inner.output_blocks))

    def forward(
        self,
        x: torch.Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        options = transformer_options
        options.update(original_shape=list(x.shape), transformer_index=0)
        patches = options.get("patches", {})
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels, repeat_only=False))
        h, skips = x, []
        for place, block in enumerate(self.input_blocks):
            options["block"] = ("input", place)
            h = self._modified(h, "before", options)
            h = add_residual(self._run(block, h, emb, context, options), control, "input")
            h = self._modified(h, "after", options)
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)
        options["block"] = ("middle", 0)
        h = self._modified(h, "before", options)
        h = add_residual(self._run(self.middle_block, h, emb, context, options), control, "middle")
        h = self._modified(h, "after", options)
        for place, block in enumerate(self.output_blocks):
            options["block"] = ("output", place)
            skip = add_residual(skips.pop(), control, "output")
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            h = torch.cat([h, skip], dim=1)
            h = self._modified(h, "before", options)
            h = self._run(block, h, emb, context, options, skips[-1].shape if skips else None)
            h = self._modified(h, "after", options)
        options["block"] = ("last", 0)
        h = self._modified(h, "before", options)
        return self._modified(self.out(h), "after", options)

    def _run(self, block: Any, *arguments: Any) -> torch.Tensor:
        if self.called:
            return block(*arguments)  # type: ignore[no-any-return]
        return through(block, *arguments, modifies=self.modifies)

    def _modified(self, h: torch.Tensor, when: str, options: dict[str, Any]) -> torch.Tensor:
        for modifier in options.get("block_modifiers", []) if self.modifies else ():
            h = modifier(h, when, options)
        return h


def add_residual(h: torch.Tensor, control: Any, side: str) -> torch.Tensor:
    """In place, as Forge and Classic do it; a list that has run out gives nothing."""
    if control and control.get(side):
        residual = control[side].pop()
        if residual is not None:
            h += residual
    return h


def _block(layers: Any) -> CalledBlock:
    return CalledBlock(*(Transformer(layer) if isinstance(layer, SpatialTransformer) else layer for layer in layers))
