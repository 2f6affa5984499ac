"""What extensions and options of Forge and its kin do above the UNet's calls and beside its weights, in small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def wrapped(host: Any, wrapper: Any) -> Iterator[None]:
    """A `model_function_wrapper`: it stands above the UNet's calls, in every pass."""
    options = host.module("shared").sd_model.forge_objects_original.unet.model_options
    options["model_function_wrapper"] = wrapper
    try:
        yield
    finally:
        del options["model_function_wrapper"]


def spectrum(host: Any) -> Any:
    """Spectrum: every second call after the first few is made up from those before, without the UNet."""
    state: dict[str, Any] = {"count": 0, "last": None}

    def spectrum_unet_wrapper(function: Any, given: dict[str, Any]) -> torch.Tensor:
        state["count"] += 1
        if state["count"] % 2 or state["last"] is None or state["last"].shape != given["input"].shape:
            state["last"] = function(given["input"], given["timestep"], **given["c"])
        return state["last"]

    return wrapped(host, spectrum_unet_wrapper)


def forecaster_without_a_name(host: Any) -> Any:
    """The same, under a name that nobody knows."""
    count = [0]
    last: list[Any] = [None]

    def implement(function: Any, given: dict[str, Any]) -> torch.Tensor:
        count[0] += 1
        if count[0] % 2 or last[0] is None:
            last[0] = function(given["input"], given["timestep"], **given["c"])
        return last[0]

    return wrapped(host, implement)


def forge_tiles(host: Any) -> Any:
    """Forge's MultiDiffusion: overlapping tiles, one call each, and their mean."""

    def implement(function: Any, given: dict[str, Any]) -> torch.Tensor:
        x = given["input"]
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for left in range(0, x.shape[3] - 7, 4):
            tile = {**given["c"], "c_concat": None}
            total[..., left : left + 8] += function(x[..., left : left + 8], given["timestep"], **tile)
            count[..., left : left + 8] += 1
        return total / count

    return wrapped(host, implement)


@contextlib.contextmanager
def compiled(host: Any) -> Iterator[None]:
    """Forge Neo's torch.compile: during a call another module is in the UNet's place, and runs none of its hooks."""
    model = host.module("shared").sd_model.forge_objects_original.unet.model
    unet, apply = model.diffusion_model, model.apply_model

    class Compiled(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return type(unet).forward(unet, *args, **kwargs)

    def apply_model_with_compile(*args: Any, **kwargs: Any) -> Any:
        model._modules["diffusion_model"] = Compiled()
        try:
            return apply(*args, **kwargs)
        finally:
            model._modules["diffusion_model"] = unet

    model._torch_compile_config, model.apply_model = ("dynamic",), apply_model_with_compile
    try:
        yield
    finally:
        del model._torch_compile_config, model.apply_model


class OnlineLora:
    """A LoRA that Forge adds to a layer's weight whenever the layer runs: `forge_online_loras` on each linear layer."""

    def __init__(self, host: Any, strength: float) -> None:
        self.layers = [module for module in host.unet.modules() if isinstance(module, nn.Linear)]
        generator = torch.Generator().manual_seed(5)
        for layer in self.layers:
            value = 0.05 * torch.randn(layer.weight.shape, generator=generator)
            layer.forge_online_loras = {"weight": [[strength, value, 1.0, None, None]]}

    def move(self, strength: float) -> None:
        for layer in self.layers:
            layer.forge_online_loras["weight"][0][0] = strength


@contextlib.contextmanager
def online_lora(host: Any, strength: float) -> Iterator[OnlineLora]:
    """The layers' class is patched as Forge's own operations are: the forward knows what lies on its layer."""
    plain = nn.Linear.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        for patches in self.__dict__.get("forge_online_loras", {}).values():
            for strength, value, *_ in patches:
                weight = weight + strength * value
        return nn.functional.linear(x, weight, self.bias)

    lora = OnlineLora(host, strength)
    nn.Linear.forward = forward  # type: ignore[method-assign]
    try:
        yield lora
    finally:
        nn.Linear.forward = plain  # type: ignore[method-assign]
        for layer in lora.layers:
            del layer.forge_online_loras
