"""Real UNets, small, with weights that matter; and what ControlNet puts on one."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from imaginairy.modules.sgm import attention as sgm_attention
from imaginairy.modules.sgm.diffusionmodules import openaimodel as sgm_openaimodel
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import nn

from .recording import CLASS_FORWARD, Event, noise

SMALL: dict[str, Any] = {
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "use_spatial_transformer": True,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 1, 2, 2],
    "num_heads": 2,
    "transformer_depth": 1,
    "image_size": 32,
    "use_checkpoint": False,
    "legacy": False,
}
SMALL_XL: dict[str, Any] = {
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 1, 2],
    "num_head_channels": 16,
    "transformer_depth": [0, 1, 1],
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
}


class Torch:
    """`torch` as the host gives it to the UNets: a `cat` that fits sizes together, for odd latents."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def cat(tensors: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(tensors) == 2 and tensors[0].shape[-2:] != tensors[1].shape[-2:]:
            fitted = nn.functional.interpolate(tensors[0], tensors[1].shape[-2:], mode="nearest")
            tensors = (fitted, tensors[1])
        return torch.cat(tensors, *args, **kwargs)


@contextlib.contextmanager
def as_in_the_host() -> Iterator[None]:
    """The UNets' modules as A1111 changes them, for the time of a replay."""
    before = ldm_openaimodel.th, sgm_openaimodel.th, sgm_openaimodel.SpatialTransformer
    ldm_openaimodel.th = sgm_openaimodel.th = Torch()
    sgm_openaimodel.SpatialTransformer = sgm_attention.SpatialTransformer
    try:
        yield
    finally:
        ldm_openaimodel.th, sgm_openaimodel.th, sgm_openaimodel.SpatialTransformer = before


@dataclass(frozen=True)
class Kind:
    """What a recorded call tells of its UNet's layout."""

    channels: int
    context: int
    vector: int
    ids: int = 6

    @classmethod
    def of(cls, call: Event) -> Kind:
        return cls(call["x"][1], call["context"][-1], call["y"][-1] if call.get("y") else 0)


def make(kind: Kind, seed: int) -> nn.Module:
    """A fresh UNet. ldm starts its last convolutions at zero, which would hide what the deep blocks do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shared: dict[str, Any] = {"in_channels": kind.channels, "context_dim": kind.context}
        if kind.vector:
            unet = sgm_openaimodel.UNetModel(**SMALL_XL, **shared, adm_in_channels=kind.vector)
        else:
            unet = ldm_openaimodel.UNetModel(**SMALL, **shared)
        for parameter in unet.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.03)
    return unet.eval().requires_grad_(False)


Make = Callable[[Kind, int], nn.Module]


@functools.lru_cache(maxsize=8)
def weights(make: Make, kind: Kind, seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in make(kind, seed).state_dict().items()}


class Models:
    """The checkpoints of one recording, by the recorded numbers of UNet objects and of their weights."""

    def __init__(self, make: Make = make) -> None:
        self._make = make
        self._unets: dict[int, nn.Module] = {}
        self._loaded: dict[int, int] = {}
        self._first: dict[int, tuple[Kind, int]] = {}
        self.current = -1

    def use(self, kind: Kind, unet: int, weights_number: int) -> None:
        """Make a UNet object current, with these weights; one that is there gets them in place."""
        if unet not in self._unets:
            self._unets[unet] = self._make(kind, weights_number)
            self._first[unet] = kind, weights_number
        elif self._loaded[unet] != weights_number:
            kind, _ = self._first[unet]  # it stays what it was made as
            self._unets[unet].load_state_dict(weights(self._make, kind, weights_number))
        self._loaded[unet] = weights_number
        self.current = unet

    def rewind(self) -> None:
        """All as they were when they were made."""
        for unet, (kind, weights_number) in self._first.items():
            self.use(kind, unet, weights_number)

    @property
    def unet(self) -> nn.Module:
        return self._unets[self.current]

    @property
    def version(self) -> tuple[int, int]:
        """What tells one model from another, for the reference."""
        return self.current, self._loaded[self.current]

    def all(self) -> list[nn.Module]:
        return list(self._unets.values())


# ControlNet -----------------------------------------------------------------------------

CONTROL_FORWARD = "UnetHook.hook.<locals>.forward_webui"
MIDDLE = -1


@dataclass
class Control:
    """What ControlNet adds in one evaluation: residuals by position, and how strong they are.

    `inner`: arguments of the class's forward that reference_only runs first, inside the call.
    """

    strength: float = 0.0
    soft: bool = False
    inner: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def residual(self, position: int, blocks: int, h: torch.Tensor) -> torch.Tensor:
        """For input block `position`, or for the middle block (`MIDDLE`); of the shape of its output `h`."""
        depth = blocks if position == MIDDLE else position
        weight = self.strength * (0.825 ** (blocks - depth) if self.soft else 1)
        return weight * noise(("residual", position), *h.shape[1:])


def strength(t: float, generation_request: dict[str, Any], progress: float) -> Control:
    """ControlNet's settings of a request at one moment, as far as they act on the UNet."""
    scripts = generation_request.get("alwayson_scripts") or {}
    units = scripts.get("controlnet", {}).get("args", [])
    unit = units[0] if units and isinstance(units[0], dict) else {}
    stopped = progress >= unit.get("guidance_end", 1.0) or progress < unit.get("guidance_start", 0.0)
    without_model = unit.get("model") in (None, "None")
    amount = 0.0 if stopped or without_model else unit.get("weight", 1.0) * (0.6 + 0.4 * math.cos(t / 300))
    return Control(amount, unit.get("control_mode") == "My prompt is more important")


def control_forward(unet: nn.Module, control: Callable[[], Control]) -> Any:
    """What ControlNet puts on a UNet: the class's forward, written anew, with residuals by position."""
    embedding = ldm_openaimodel.timestep_embedding

    def forward_webui(
        self: Any, x: torch.Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **_: Any
    ) -> Any:
        now = control()
        for arguments in now.inner:
            x = x + 0.1 * type(self).forward(self, **arguments)
        emb = self.time_embed(embedding(timesteps, self.model_channels, repeat_only=False))
        if y is not None:
            emb = emb + self.label_emb(y)
        residuals: list[Callable[[torch.Tensor], torch.Tensor]] = []
        count = len(self.input_blocks)
        for position in [*range(count), MIDDLE]:
            residuals.append(functools.partial(now.residual, position, count))
        h, hs = x, []
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        h += residuals.pop()(h)
        for module in self.output_blocks:
            skip = hs.pop()
            h = Torch.cat([h, skip + residuals.pop()(skip)], dim=1)
            h = module(h, emb, context)
        return self.out(h.type(x.dtype))

    return forward_webui.__get__(unet)


def set_forward(unet: nn.Module, recorded: str | None, control: Callable[[], Control]) -> None:
    """Bring the instance's `forward` attribute to the recorded state; a foreign one that is there stays."""
    now = unet.__dict__.get("forward")
    foreign = now is not None and getattr(now, "__func__", None) is not type(unet).forward
    if recorded is None:
        unet.__dict__.pop("forward", None)
    elif recorded == CLASS_FORWARD:
        if now is None or foreign:
            unet.forward = type(unet).forward.__get__(unet)
    elif not foreign:
        unet.forward = control_forward(unet, control)


def forward_name(unet: nn.Module) -> str:
    """Which forward runs: the class's own is the same whether bound in the instance or not."""
    now = unet.__dict__.get("forward")
    own = now is None or getattr(now, "__func__", None) is type(unet).forward
    return "own" if own else "foreign"
