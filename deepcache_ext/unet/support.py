"""What cannot be cached, and why: layouts that are unknown, compiled UNets, forwards and caches of other extensions."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .compiled import COMPILED, inner, is_compiled, uncompiled, why_not
from .shadows import Shadow


class UnknownLayout(ValueError):
    """The UNet cannot be cached; `str()` says why, in words for a user. `others_skip`: another cache is at work, so
    that not even what runs uncached by us is known to be full.
    """

    def __init__(self, why: str, others_skip: bool = False) -> None:
        super().__init__(why)
        self.others_skip = others_skip


# Other people's forwards --------------------------------------------------------------------------------------

CACHES = re.compile(
    r"(?:deep|tea|mag|sea|easy|faster|taylor_?seer|first_?block|fb|block)_?cache|fbc_(?:leader_)?block"
    r"|attention_broadcast",
    re.IGNORECASE,
)
"""Names under which other caches put marks and forwards on a UNet: `_deepcache_hooked` (aria1th's
sd-webui-deepcache-standalone), `_teacache_patched` (feffy380's sd-webui-teacache) and their like; and those of
diffusers' own caches in its registry of hooks.
"""


def twice(name: str) -> UnknownLayout:
    """What is to be said where another cache, of this name, is at work."""
    return UnknownLayout(f"another extension caches this UNet already ({name}); use one of the two", others_skip=True)


def other_cache(unet: nn.Module) -> str | None:
    """The name that another extension's cache left on this UNet, if one is at work there: never both at once."""
    for name, value in vars(unet).items():
        # Their marks stay behind as False when they are done.
        if CACHES.search(name) and value:
            return name
    for forward in (unet.__dict__.get("forward"), type(unet).forward):
        function: Any = getattr(forward, "__func__", forward)
        for name in (getattr(function, "__qualname__", ""), getattr(function, "__module__", "") or ""):
            if CACHES.search(name):
                return name
    return None


def registered(module: nn.Module) -> Mapping[str, Any]:
    """What diffusers' registry of hooks has on a module, by its names: each may run instead of the forward."""
    hooks: Mapping[str, Any] = getattr(module.__dict__.get("_diffusers_hook"), "hooks", {})
    return hooks


def cache_inside(unet: nn.Module) -> str | None:
    """The name of a cache of diffusers' own that acts on the UNet or on layers of it, if one does."""
    names = (name for module in unet.modules() for name in registered(module))
    return next(filter(CACHES.search, names), None)


WEIGHT_MOVERS = ("accelerate.hooks", "diffusers.hooks.hooks")
"""Modules whose wrappers around a forward only move weights."""


def own_forward(unet: nn.Module) -> Callable[..., Any] | None:
    """The forward that another extension put on this very instance, or None where the class's own runs.

    ControlNet and others "restore" by leaving the class's forward, bound, in the instance's `__dict__`. The hooks of
    accelerate and diffusers that move weights wrap whatever is there and call it with all its arguments: what counts
    is the forward inside, which stays the same when a host puts such hooks up anew.
    """
    forward: Any = inside(uncompiled(unet.__dict__.get("forward")))
    if getattr(forward, "__self__", None) is unet and getattr(forward, "__func__", None) is type(unet).forward:
        return None
    return forward


def inside(forward: Any) -> Any:
    """The forward inside the wrappers that move weights."""
    while defined_in(forward) in WEIGHT_MOVERS:
        forward = getattr(forward, "__wrapped__", None)
    return forward


def plain_function(function: Any) -> Any:
    """The function of a partial or of a bound method; anything else as it is."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function)


def defined_in(function: Any) -> str | None:
    """The module whose code a function runs, which `functools.wraps` and `__module__` do not disguise; None where the
    code is not Python's.
    """
    globals_ = getattr(plain_function(function), "__globals__", None)
    return None if globals_ is None else globals_.get("__name__", "?")


def _check_module(unet: Any) -> None:
    if isinstance(unet, torch.jit.ScriptModule):
        raise UnknownLayout("the UNet is a TorchScript module")
    if not isinstance(unet, nn.Module):
        raise UnknownLayout("the model has no UNet module")


# ldm's and sgm's layout ---------------------------------------------------------------------------------------

NAMES = ("input_blocks", "middle_block", "output_blocks")


def check_ldm(unet: Any) -> None:
    """Raise `UnknownLayout` where the ladder cannot be shadowed; the message is for the user."""
    _check_module(unet)
    if is_compiled(unet):
        raise UnknownLayout(COMPILED)
    other = other_cache(unet)
    if other is not None:
        raise twice(other)
    children = unet._modules
    if any(children.get(name) is None for name in NAMES):
        raise UnknownLayout("the model is not a UNet with input, middle and output blocks")
    below, above = children["input_blocks"], children["output_blocks"]
    if not isinstance(below, nn.ModuleList) or not isinstance(above, nn.ModuleList):
        raise UnknownLayout("the UNet's blocks are not in lists")
    inputs, outputs = len(below), len(above)
    if inputs != outputs or not outputs:
        raise UnknownLayout(f"the UNet has {inputs} input and {outputs} output blocks")
    own = {name: unet.__dict__[name] for name in NAMES if name in unet.__dict__}
    # The real ones stand there in a copy that was made inside a call (`hooks.remove_inert`).
    if any(not isinstance(one, Shadow) and one is not children[name] for name, one in own.items()):
        raise UnknownLayout("another extension shadows the UNet's blocks")


# diffusers' layout --------------------------------------------------------------------------------------------

LAYERS = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
"""A block's lists with one entry for each layer, in the order in which a layer calls them."""

SAMPLERS = ("downsamplers", "upsamplers")


def layer_lists(block: Any) -> list[tuple[str, nn.ModuleList]]:
    lists = [(name, block._modules.get(name)) for name in LAYERS]
    return [(name, layers) for name, layers in lists if isinstance(layers, nn.ModuleList)]


def check_diffusers(unet: Any) -> None:
    """Raise `UnknownLayout` where the ladder cannot be shadowed; the message is for the user."""
    _check_module(unet)
    if why := why_not(unet):
        raise UnknownLayout(why)
    unet = inner(unet)
    children = unet._modules
    below, above = children.get("down_blocks"), children.get("up_blocks")
    if not isinstance(below, nn.ModuleList) or not isinstance(above, nn.ModuleList) or "conv_in" not in children:
        raise UnknownLayout("the model is not a UNet with conv_in, down_blocks, mid_block and up_blocks")
    if any(isinstance(unet.__dict__.get(name), Shadow) for name in ("down_blocks", "mid_block", "up_blocks")):
        raise UnknownLayout("another extension shadows the UNet's blocks")
    for block in [*below, *above]:
        _check_block(block)
    _check_skips(unet, below, above)
    other = cache_inside(unet)
    if other is not None:
        raise twice(other)
    if any("group_offloading" in name for module in unet.modules() for name in registered(module)):
        raise UnknownLayout("group offloading expects every block to run at every call")


def _check_block(block: nn.Module) -> None:
    if is_compiled(block):
        raise UnknownLayout("the UNet's down or up blocks are compiled")
    layers, name = dict(layer_lists(block)), type(block).__name__
    if not layers.get("resnets") or hasattr(block, "skip_conv"):
        raise UnknownLayout(f"blocks of type {name} are unknown")
    for child, module in block._modules.items():
        known = child in SAMPLERS or (child in layers and len(layers[child]) == len(layers["resnets"]))
        if isinstance(module, nn.ModuleList) and not known:
            raise UnknownLayout(f"blocks of type {name} are unknown: {child}")


def _check_skips(unet: nn.Module, below: nn.ModuleList, above: nn.ModuleList) -> None:
    """Every up layer must take one skip connection beside what the layer before it gave: its channels say so."""
    skips = [_channels(unet.conv_in, "out")]
    for block in below:
        skips += [_channels(layer, "out") for layer in block.resnets]  # type: ignore[union-attr]
        if block.downsamplers is not None:
            skips.append(_channels(block.downsamplers[-1], "out"))  # type: ignore[index]
    takers = [layer for block in above for layer in block.resnets]  # type: ignore[union-attr]
    if len(skips) != len(takers):
        raise UnknownLayout(f"the UNet has {len(skips)} skip connections and {len(takers)} layers that take them")
    before = skips[-1]
    for layer, skip in zip(takers, reversed(skips), strict=True):
        if _channels(layer, "in") != before + skip:
            raise UnknownLayout("the UNet's layers do not take one skip connection each")
        before = _channels(layer, "out")


def _channels(layer: Any, side: str) -> int:
    """`in_channels` or `out_channels` of a layer, as it says itself or as its first or last part does."""
    name = f"{side}_channels"
    for candidate in (layer, getattr(layer, "spatial_res_block", None)):
        channels = getattr(candidate, name, None)
        if isinstance(channels, int):
            return channels
    raise UnknownLayout(f"layers of type {type(layer).__name__} are unknown")
