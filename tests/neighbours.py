"""What other extensions and host options do to a UNet's blocks, layers and calls, in small: their techniques, not them.

Each is a context manager that takes the embedded host; while it is open the technique acts, with DeepCache or without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any
from unittest import mock

import torch
from ldm.modules import attention
from torch import nn


def attentions(host: Any, name: str) -> list[Any]:
    return [module for path, module in host.unet.named_modules() if path.endswith(name)]


@contextlib.contextmanager
def _forwards(modules: list[Any], make: Any) -> Iterator[None]:
    """An instance forward on each module, as IP-Adapter, Regional Prompter and HyperTile put it there."""
    for module in modules:
        module.forward = MethodType(make(module.forward), module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def tome(host: Any) -> Any:
    """Token merging: self-attention sees the mean of neighbouring tokens, and each gets its pair's result."""

    def make(original: Any) -> Any:
        def forward(self: Any, x: torch.Tensor, context: Any = None, **kwargs: Any) -> torch.Tensor:
            if x.shape[1] % 2:
                return original(x, context=context, **kwargs)
            merged = (x[:, ::2] + x[:, 1::2]) / 2
            return original(merged, context=context, **kwargs).repeat_interleave(2, dim=1)

        return forward

    return _forwards(attentions(host, "attn1"), make)


def hypertile(host: Any) -> Any:
    """Self-attention within each half of the picture alone."""

    def make(original: Any) -> Any:
        def forward(self: Any, x: torch.Tensor, context: Any = None, **kwargs: Any) -> torch.Tensor:
            if x.shape[1] % 2:
                return original(x, context=context, **kwargs)
            halves = x.reshape(x.shape[0] * 2, -1, x.shape[2])
            return original(halves, context=context, **kwargs).reshape(x.shape)

        return forward

    return _forwards(attentions(host, "attn1"), make)


def regional_attention(host: Any) -> Any:
    """Regional Prompter's attention mode: each half of the picture listens to its own half of the prompt."""

    def make(original: Any) -> Any:
        def forward(self: Any, x: torch.Tensor, context: Any = None, **kwargs: Any) -> torch.Tensor:
            first, second = context.chunk(2, dim=1)
            middle = x.shape[1] // 2
            one = original(x, context=first, **kwargs)[:, :middle]
            return torch.cat([one, original(x, context=second, **kwargs)[:, middle:]], dim=1)

        return forward

    return _forwards(attentions(host, "attn2"), make)


def ip_adapter(host: Any) -> Any:
    """A second cross-attention to tokens of a picture."""

    def make(original: Any) -> Any:
        def forward(self: Any, x: torch.Tensor, context: Any = None, **kwargs: Any) -> torch.Tensor:
            picture = torch.ones(x.shape[0], 4, context.shape[-1]) * torch.arange(1, 5).view(1, 4, 1) / 4
            return original(x, context=context, **kwargs) + 0.7 * original(x, context=picture, **kwargs)

        return forward

    return _forwards(attentions(host, "attn2"), make)


@contextlib.contextmanager
def other_attention(_: Any) -> Iterator[None]:
    """Another kind of attention for all layers: torch's scaled dot product."""

    def forward(self: Any, x: torch.Tensor, context: Any = None, mask: Any = None) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    with mock.patch.object(attention.CrossAttention, "forward", forward):
        yield


@contextlib.contextmanager
def tiling(host: Any) -> Iterator[None]:
    """Pictures without seams: every convolution wraps around."""
    convolutions = [m for m in host.unet.modules() if isinstance(m, nn.Conv2d) and m.padding != (0, 0)]

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        high, wide = self.padding
        return nn.functional.conv2d(
            nn.functional.pad(x, (wide, wide, high, high), mode="circular"), self.weight, self.bias, self.stride
        )

    with _forwards(convolutions, lambda _: forward):
        yield


@contextlib.contextmanager
def freeu(host: Any) -> Iterator[None]:
    """FreeU: writes into the deep feature, and weakens the skip, wherever the two are put together."""
    from ldm.modules.diffusionmodules import openaimodel

    from tests.replay import reference

    def weighed(cat: Any) -> Any:
        def call(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if len(tensors) == 2:
                tensors[0][:, : tensors[0].shape[1] // 2].mul_(1.2)
                tensors = [tensors[0], tensors[1] * 0.9]
            return cat(tensors, *args, **kwargs)

        return call

    class Weighed:
        def __init__(self, real: Any) -> None:
            self.real, self.cat = real, staticmethod(weighed(real.cat)).__func__

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    joined = reference.joined
    by_hand = lambda h, skip: weighed(lambda tensors: joined(*tensors))([h.clone(), skip])  # noqa: E731
    with (
        mock.patch.object(openaimodel, "th", Weighed(openaimodel.th)),
        mock.patch.object(reference, "joined", by_hand),
    ):
        yield


@contextlib.contextmanager
def low_precision_storage(host: Any) -> Iterator[None]:
    """Weights kept in 8 bits and cast for each use."""
    layers = [m for m in host.unet.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    kept = [(layer.weight.data, layer) for layer in layers]
    for layer in layers:
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)

    def make(original: Any) -> Any:
        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            stored = self.weight.data
            self.weight.data = stored.to(x.dtype)
            try:
                return original(x)
            finally:
                self.weight.data = stored

        return forward

    try:
        with _forwards(layers, make):
            yield
    finally:
        for weight, layer in kept:
            layer.weight.data = weight


@contextlib.contextmanager
def channels_last(host: Any) -> Iterator[None]:
    host.unet.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        host.unet.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def callback(host: Any, name: str, function: Any) -> Iterator[None]:
    callbacks = host.module("script_callbacks")
    getattr(callbacks, f"on_{name}")(function)
    try:
        yield
    finally:
        callbacks.remove_callbacks_for_function(function)


def dynamic_thresholding(host: Any) -> Any:
    """Rewrites what the evaluation gave, after the UNet."""

    def squeeze(params: Any) -> None:
        params.x.clamp_(-2, 2).mul_(0.9)

    return callback(host, "cfg_denoised", squeeze)


def changed_conditioning(host: Any) -> Any:
    """Writes into the conditioning before the UNet sees it, differently at each third evaluation (as CADS does)."""

    def disturb(params: Any) -> None:
        if params.sampling_step % 3 == 2:
            params.text_cond = params.text_cond * 0.9

    return callback(host, "cfg_denoiser", disturb)


@contextlib.contextmanager
def tiles(host: Any) -> Iterator[None]:
    """MultiDiffusion: overlapping tiles, one call each, and their mean (Mixture of Diffusers weighs them)."""
    wrapper = host.module("shared").sd_model.model
    original = wrapper.forward

    def forward(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for left in range(0, x.shape[3] - 7, 4):
            total[..., left : left + 8] += original(x[..., left : left + 8], t, cond)
            count[..., left : left + 8] += 1
        return total / count

    wrapper.forward = forward
    try:
        yield
    finally:
        del wrapper.forward


@contextlib.contextmanager
def guided_twice(host: Any) -> Iterator[None]:
    """PAG: a further call of the same rows in each evaluation, here with disturbed self-attention."""
    wrapper = host.module("shared").sd_model.model
    original, layers = wrapper.forward, attentions(host, "attn1")

    def forward(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        whole = original(x, t, cond)
        with _forwards(layers, lambda _: lambda self, x, context=None, **kwargs: self.to_out(self.to_v(x))):
            disturbed = original(x, t, cond)
        return whole + 0.3 * (whole - disturbed)

    wrapper.forward = forward
    try:
        yield
    finally:
        del wrapper.forward


# Forge's ------------------------------------------------------------------------------------------------------


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
