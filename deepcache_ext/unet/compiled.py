"""UNets that `torch.compile` has compiled: a graph for each rung of the ladder, and how they are told apart.

Facts of torch (seen with 2.8, 2.12 and 2.13): hooks of the module that was compiled run outside of its graphs, where
the compiler is kept from following them. A graph that was made while a name was shadowed asks for that shadow; one that
was made while it was not does not ask whether one has come, and would be taken for any rung's. The values of arguments
are always asked for. Of diffusers' UNets one does nothing but say how the output is to be wrapped, `return_dict`, and
is asked for its truth alone: there the rung's name goes along. Torch 2.6 asks for the very same shadows as when the
graph was made, and compiles anew at each call.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .ladder import Arguments, Walks

COMPILED = "the UNet is compiled"

ORIGINAL = "_torchdynamo_orig_callable"
"""Torch's own mark on what it made of a function: that function."""

WRAPPING = "return_dict"

OLDEST = (2, 8)
"""The torch that makes no new graph for new shadows."""


def inner(unet: Any) -> Any:
    """The module inside the one that `torch.compile(unet)` returns; any other one itself."""
    return vars(unet).get("_modules", {}).get("_orig_mod", unet) if isinstance(unet, nn.Module) else unet


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made this module's calls its own, or its forward alone."""
    return is_compiled_as_a_whole(module) or hasattr(vars(module).get("forward"), ORIGINAL)


def is_compiled_as_a_whole(module: nn.Module) -> bool:
    """Whether the compiler meets this module's hooks: `torch.compile(module)` and `module.compile()`."""
    return inner(module) is not module or getattr(module, "_compiled_call_impl", None) is not None


def is_new_enough() -> bool:
    """Whether this torch tells the graphs of a compiled UNet apart as we need it."""
    return tuple(map(int, torch.__version__.split(".")[:2])) >= OLDEST


def why_not(unet: nn.Module) -> str:
    """Why a UNet of diffusers cannot be cached as it is compiled, in words; "" where it can, or is not compiled."""
    if not is_compiled(unet):
        return ""
    if not is_new_enough():
        return f"{COMPILED}, and this torch is too old for that"
    has_it = WRAPPING in inspect.signature(type(inner(unet)).forward).parameters
    return "" if has_it else f"{COMPILED}, and its forward has no {WRAPPING}"


def uncompiled(forward: Any) -> Any:
    """The function that `torch.compile` was given, where it made this one of it; any other one itself."""
    return getattr(forward, ORIGINAL, forward)


class Truth:
    """True or false as `value` is, and known to the compiler by the name of a rung as well."""

    def __init__(self, value: bool, rung: str) -> None:
        self.value, self.rung = value, rung

    def __bool__(self) -> bool:
        return bool(self.rung) and self.value  # in this order: what the compiled code reads is asked for at each call


class Graphs:
    """What goes into the calls of a compiled UNet of diffusers, and comes out of its graphs."""

    def __init__(self, unet: nn.Module) -> None:
        parameters = inspect.signature(type(unet).forward).parameters
        self._place = list(parameters)[1:].index(WRAPPING)
        self._usual = parameters[WRAPPING].default

    def told_apart(self, walks: Walks, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a call with shadows up, so that no other rung's graph is taken for it."""
        if self._place < len(args):
            value = Truth(bool(args[self._place]), walks.rung)
            return (*args[: self._place], value, *args[self._place + 1 :]), kwargs
        return args, {**kwargs, WRAPPING: Truth(bool(kwargs.get(WRAPPING, self._usual)), walks.rung)}

    def leave(self, walks: Walks) -> None:
        """Take what was kept out of memory that a graph may own, and fill anew at its next run (CUDA graphs)."""
        walks.features = {branch: [h.clone() for h in those] for branch, those in walks.features.items()}
