"""A small ControlNet and what its extension does with it: the counterpart of sd-webui-controlnet's hook on a UNet.

As there, the hook puts a forward on the UNet's instance that closes over the hook object (`outer`), runs each unit's
network inside the UNet's call and adds what it returns by position; guidance start and end are looked at when an
evaluation begins.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn

from tests import unets
from tests.replay.reference import joined

SOFT = 0.825


class ControlNet(nn.Module):
    """A copy of a UNet's input side with a convolution behind each block (not at zero, or nothing would come of it)."""

    def __init__(self, copied: Any, seed: int, residual_type: torch.dtype = torch.float32) -> None:
        """Takes the blocks of `copied`, a UNet of their own or the name of a layout to make one of.

        `residual_type`: of what the convolutions give, before it is cast to the type of x.
        """
        super().__init__()
        copied = unets.make(copied, seed) if isinstance(copied, str) else copied
        self.model_channels = copied.model_channels
        self.time_embed, self.input_blocks, self.middle_block = (
            copied.time_embed,
            copied.input_blocks,
            copied.middle_block,
        )
        self.label_emb = getattr(copied, "label_emb", None)
        widths = [self._width(block) for block in [*self.input_blocks, self.middle_block]]
        sequence = type(self.middle_block)
        convolutions = [
            sequence(self._convolution(width, width, seed + i), Cast(residual_type)) for i, width in enumerate(widths)
        ]
        self.zero_convs, self.middle_block_out = nn.ModuleList(convolutions[:-1]), convolutions[-1]
        self.input_hint_block = sequence(self._convolution(3, widths[0], seed + 99))
        self.eval().requires_grad_(False)

    @staticmethod
    def _width(block: Any) -> int:
        sizes = [layer.out_channels for layer in block if hasattr(layer, "out_channels")]
        return int(sizes[-1])

    @staticmethod
    def _convolution(inputs: int, outputs: int, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, hint, timesteps, context, y=None, **_):
        given = x.dtype
        emb = self.time_embed(unets.timestep_embedding(timesteps, self.model_channels, repeat_only=False))
        if self.label_emb is not None and y is not None:
            emb = emb + self.label_emb(y)
        hint = nn.functional.interpolate(hint, x.shape[-2:])
        guide, h, residuals = self.input_hint_block(hint, emb, context), x, []
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = block(h, emb, context)
            if guide is not None:
                h += guide
                guide = None
            residuals.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        residuals.append(self.middle_block_out(h, emb, context))
        return [residual.to(given) for residual in residuals]


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, h):
        return h.to(self.dtype)


class Pluggable(nn.Module):
    """The wrapper that a unit holds."""

    def __init__(self, control_model: nn.Module) -> None:
        super().__init__()
        self.control_model = control_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.control_model(*args, **kwargs)


class Adapter(nn.Module):
    """A T2I-Adapter: four features of the picture, added behind four input blocks; runs whole, and is small."""

    def __init__(self, widths: list[int], seed: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(ControlNet._convolution(3, width, seed) for width in widths)
        self.requires_grad_(False)

    def forward(self, x, hint, **_):
        return [convolution(hint) for convolution in self.convolutions]


@dataclass
class Unit:
    """One unit, as the extension's `ControlParams`. `kind`: "controlnet", "adapter" or "reference"."""

    control_model: nn.Module | None
    hint: torch.Tensor
    kind: str = "controlnet"
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    soft_injection: bool = False
    cfg_injection: bool = False
    pooling: bool = False
    mask: torch.Tensor | None = None
    advanced_weighting: list[float] | None = None
    guidance_stopped: bool = False


@dataclass
class Hook:
    """The extension's hook object."""

    control_params: list[Unit] = field(default_factory=list)

    def begin_evaluation(self, progress: float) -> None:
        """The extension's own `on_cfg_denoiser`."""
        for unit in self.control_params:
            unit.guidance_stopped = not unit.start <= progress <= unit.end

    def hook(self, unet: Any) -> None:
        outer, original = self, type(unet).forward

        def forward(self, x, timesteps=None, context=None, y=None, **_):
            controls: list[Any] = [0.0] * (len(self.input_blocks) + 1)
            features: list[Any] = [0.0] * 4
            # The first half of the batch is cond, the second uncond.
            mark = (torch.arange(len(x)) < len(x) / 2).to(x.dtype)[:, None, None, None]
            for unit in outer.control_params:
                if unit.guidance_stopped:
                    continue
                if unit.kind == "reference":
                    known = {} if y is None else {"y": y}
                    h = original(self, x=unit.hint, timesteps=timesteps, context=context, **known)
                    x = x + 0.1 * unit.weight * h
                    continue
                # An inpainting model's own five channels are none of ControlNet's; asked as the original asks.
                network, x_in = getattr(unit.control_model, "control_model", None), x
                if unit.kind == "controlnet" and hasattr(network, "input_blocks"):
                    if x.shape[1] != network.input_blocks[0][0].in_channels and x.shape[1] == 9:
                        x_in = x[:, :4]
                elif x.shape[1] == 9:
                    x_in = x[:, :4]
                residuals = unit.control_model(x=x_in, hint=unit.hint, timesteps=timesteps, context=context, y=y)
                target = controls if unit.kind == "controlnet" else features
                for i, residual in enumerate(outer.scaled(unit, residuals, mark)):
                    target[i] = residual + target[i]
            emb = unets.timestep_embedding(timesteps, self.model_channels, repeat_only=False)
            emb = self.time_embed(emb)
            if y is not None:
                emb = emb + self.label_emb(y)
            h, skips = x, []
            for i, block in enumerate(self.input_blocks):
                h = block(h, emb, context)
                if i in INJECTED:
                    h = added(h, features.pop(0))
                skips.append(h)
            h = self.middle_block(h, emb, context)
            h = added(h, controls.pop())
            for block in self.output_blocks:
                h = block(joined(h, added(skips.pop(), controls.pop())), emb, context)
            return self.out(h.type(x.dtype))

        def forward_webui(*args, **kwargs):
            try:
                return forward(*args, **kwargs)
            finally:
                outer.control_params  # noqa: B018  (the original moves the models to the CPU here)

        unet.forward = MethodType(forward_webui, unet)

    @staticmethod
    def scaled(unit: Unit, residuals: list[torch.Tensor], mark: torch.Tensor) -> list[torch.Tensor]:
        if unit.cfg_injection or unit.pooling:
            residuals = [residual * mark for residual in residuals]
        scales = [
            unit.weight * (SOFT ** (len(residuals) - 1 - i) if unit.soft_injection else 1)
            for i in range(len(residuals))
        ]
        scales = unit.advanced_weighting or scales
        residuals = [residual * scale for residual, scale in zip(residuals, scales, strict=True)]
        if unit.mask is not None:
            fitted = [nn.functional.interpolate(unit.mask, residual.shape[-2:]) for residual in residuals]
            residuals = [residual * mask for residual, mask in zip(residuals, fitted, strict=True)]
        if unit.pooling:
            residuals = [residual.mean(dim=(2, 3), keepdim=True) for residual in residuals]
        for residual in residuals:
            residual[len(residual) :] = 0  # written to, as by its batches with units of their own
        return residuals

    @staticmethod
    def restore(unet: Any) -> None:
        unet.forward = type(unet).forward.__get__(unet)


INJECTED = (1, 2, 4, 5)
"""Input blocks behind which an adapter's features are added; the original's are 2, 5, 8 and 11."""


def added(base: torch.Tensor, residual: Any) -> torch.Tensor:
    """As ControlNet adds: fitted in size where it differs."""
    if isinstance(residual, float):
        return base if residual == 0.0 else base + residual
    if base.shape[-2:] != residual.shape[-2:] and residual.shape[-1] > 1:
        residual = nn.functional.interpolate(residual, base.shape[-2:], mode="nearest")
    return base + residual


def counted(network: nn.Module) -> Counter[str]:
    """Counts, from now on, how often each block and convolution of a control network runs."""
    counts: Counter[str] = Counter()
    for name, module in network.named_modules():
        if (name.count(".") == 1 and name.split(".")[0] in ("input_blocks", "zero_convs")) or name == "middle_block":
            module.register_forward_pre_hook(lambda *_, name=name: counts.update([name]))
    return counts
