"""Other people's code inside a UNet: what we cannot see into we do not skip.

A cached call leaves blocks out. Whoever lives in one of them and counts calls, stores something or reads what a block
gave would go wrong without a word: in this picture, and some in every later one. So before a pass skips anything, all
modules that it would skip are looked at: their own forwards, their classes, hooks, attention processors. What is the
network library's is harmless; whatever else is found must stand in the table of `known`, or the pass runs in full.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from .known import Answer, known
from .support import CACHES, defined_in, inside, plain_function, registered

LIBRARIES = re.compile(
    r"(torch|torchao|torchvision|ldm|sgm|k_diffusion|backend|ldm_patched\.(?!contrib)|transformers|accelerate|peft"
    r"|bitsandbytes|optimum\.quanto|xformers|triton|einops|nunchaku|sdnq|imaginairy)(\.|:|$|(?<=\.))"
    r"|diffusers\.(models|loaders|quantizers|utils|hooks\.(hooks|layerwise_casting|group_offloading))(\.|:|$)"
)
"""Modules whose code makes up networks: it keeps nothing from one call for another. diffusers' pipelines are not among
them, since their processors and hooks store attention (SAG, LEDITS++, Attend-and-Excite), nor reForge's nodes.
"""

FORWARDS = ("forward", "_forward")
"""Names of methods that extensions put on single modules; ldm's transformers have both."""

RUNS = frozenset({"forward", "__call__", "_call_impl", "_wrapped_call_impl"})
"""Of the methods that every module has, those that run in a call."""

ASKING = frozenset({*FORWARDS, "__call__"})
"""Methods that are asked which functions they go by."""

CASTING = frozenset(
    {
        "layerwise_casting",
        "peft_autocast_disable",
        "group_offloading",
        "layer_execution_tracker",
        "lazy_prefetch_group_offloading",
    }
)
"""Of diffusers' own registry of hooks: those that only move or cast weights."""


@dataclass(frozen=True)
class Foreign:
    """What lives in the skipped part. `unknown`: names of modules of code that must see every layer, or that the table
    does not have, as a user should see them; `counting`: of those that count the layers of a whole evaluation.
    """

    unknown: tuple[str, ...] = ()
    counting: tuple[str, ...] = ()


def look(
    skipped: Iterable[nn.Module],
    home: Collection[str],
    trusted: Collection[str] = (),
    in_part: Iterable[nn.Module] = (),
) -> Foreign:
    """Look at all modules in the `skipped` blocks, and at those that run `in_part`, though not at what is in these:
    what they are given and give differs from a full call's. `home`: as `home_of` tells. `trusted`: names that the user
    calls harmless.
    """
    methods: dict[type, frozenset[str]] = {}
    found: dict[str, None] = dict.fromkeys(map(origin, _everywhere()))
    for one in chain(in_part, *(block.modules() for block in skipped)):
        kind = type(one)
        if kind not in methods:
            methods[kind] = WATCHED.union(name for name, _, _ in methods_of(kind))
            found.update(dict.fromkeys(_of_class(kind, home)))
        own = one.__dict__
        if own.get("_forward_hooks") or own.get("_forward_pre_hooks") or not own.keys().isdisjoint(methods[kind]):
            found.update(dict.fromkeys(_of_instance(one, methods[kind], home)))
    names = [name for name in found if not LIBRARIES.match(name)]
    answers = {name: known(name) for name in names if _shown(name) not in trusted}
    return Foreign(
        tuple(dict.fromkeys(_shown(name) for name, answer in answers.items() if answer in REFUSED)),
        tuple(dict.fromkeys(_shown(name) for name, answer in answers.items() if answer is Answer.COUNTS_LAYERS)),
    )


REFUSED = (None, Answer.NEEDS_ALL)

ATTACHED = frozenset({"processor", "_diffusers_hook", "_hf_hook"})
"""What libraries hang on a module, and ask."""

WATCHED = ATTACHED.union(FORWARDS)


WRAPPING = frozenset({"contextlib", "functools", "warnings", "typing_extensions"})
"""Python's own modules that wrap functions in others: context managers, warnings of what is deprecated."""


def origin(function: Any) -> str:
    """Where the code of a function, a method, a partial or a callable object stands: `module:qualified name`. The
    module is that of the code's own globals, which `functools.wraps` and `__module__` do not disguise. Of what Python's
    own wrappers (`contextlib.contextmanager`) made of a function, it is the function's.
    """
    function = plain_function(function)
    while defined_in(function) in WRAPPING and hasattr(function, "__wrapped__"):
        function = plain_function(function.__wrapped__)
    module = defined_in(function)
    if module is not None:
        return f"{module}:{getattr(function, '__qualname__', '?')}"
    kind = function if isinstance(function, type) else type(function)
    if kind.__module__ == "builtins":  # a built-in function or method
        return f"{getattr(function, '__module__', None) or 'builtins'}:{getattr(function, '__qualname__', '?')}"
    return f"{kind.__module__}:{kind.__qualname__}"


def home_of(unet: nn.Module) -> frozenset[str]:
    """The packages whose classes count as the UNet's own library: those of its class and its bases, for a UNet of a
    program's own; none where it is built on a library's UNet (HiDiffusion puts its own class on one of diffusers').
    """
    kinds = [kind for kind in type(unet).__mro__ if kind.__module__.partition(".")[0] not in ("torch", "builtins")]
    if any(LIBRARIES.match(f"{kind.__module__}:") for kind in kinds):
        return frozenset()
    return frozenset(kind.__module__.partition(".")[0] for kind in kinds)


def class_forward(kind: type, home: Collection[str]) -> str | None:
    """Whose code runs as this class's forward, where that is not the code of the library that the class belongs to."""
    forwards = [(base, value) for name, base, value in methods_of(kind) if name == "forward"]
    return _elsewhere(*forwards[0], home) if forwards else None


def methods_of(kind: type) -> Iterator[tuple[str, type, Any]]:
    """The methods of a class that run in a call: name, the class that has it, and what stands there, each class before
    its bases. Of those that every module has, only a few do; torch's own are looked at once, by `_everywhere`.
    """
    for base in kind.__mro__:
        for name, value in () if base in (nn.Module, object) else vars(base).items():
            plain = isinstance(value, FunctionType) or (name in FORWARDS and callable(value))
            if plain and (name in RUNS or name not in vars(nn.Module)):
                yield name, base, value


def _elsewhere(base: type, method: Any, home: Collection[str]) -> str | None:
    """Where a method's code stands, where that is not in the library of its class."""
    name, package = origin(method), base.__module__.partition(".")[0]
    same = name.partition(":")[0].partition(".")[0] == package
    return None if same or LIBRARIES.match(name) or _is_home(name, home) else name


def _asked_for(method: Any) -> Iterator[str]:
    """The functions of its own module that a method asks for by name: others exchange them there. What the library
    itself brought there from elsewhere in Python is no neighbour.
    """
    names, own = getattr(getattr(method, "__code__", None), "co_names", ()), getattr(method, "__globals__", {})
    found = (origin(own[name]) for name in names if isinstance(own.get(name), FunctionType))
    yield from (name for name in found if name.partition(":")[0].partition(".")[0] not in sys.stdlib_module_names)


def cache_above(wrapper: Any) -> str | None:
    """The name of a wrapper around a UNet's calls that is known to leave some out: Spectrum's, whoever ships it (Forge
    Neo's `lib_spectrum.forecaster`, the extensions' `spectrum_core.forecaster`, `spectrum_reforge.py`), and caches'.
    """
    if wrapper is None:
        return None
    name = origin(wrapper)
    tells = (_shown(name), name.rpartition(".")[2])
    return next((part for part in tells if SKIPPING.search(part) or CACHES.search(part)), None)


SKIPPING = re.compile("spectrum", re.IGNORECASE)


def names_of_functions(value: Any) -> Iterator[str]:
    """The origins of all functions in nested lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        for item in value:
            yield from names_of_functions(item)
    elif callable(value):
        yield origin(value)


def unknown_names(names: Iterable[str], trusted: Collection[str] = ()) -> list[str]:
    """Of origins, those that neither a library nor the table nor the user vouches for, as a user should see them."""
    return [
        _shown(name)
        for name in dict.fromkeys(names)
        if not LIBRARIES.match(name) and _shown(name) not in trusted and known(name) is not Answer.HARMLESS
    ]


def _of_class(kind: type, home: Collection[str]) -> Iterator[str]:
    whole = f"{kind.__module__}:{kind.__qualname__}"
    if not LIBRARIES.match(whole) and not _is_home(whole, home):
        yield whole
    for name, base, method in methods_of(kind):
        own = _elsewhere(base, method, home)
        if own is not None:
            yield own
        elif name in ASKING:
            yield from (asked for asked in _asked_for(method) if not _is_home(asked, home))


def _of_instance(one: nn.Module, methods: frozenset[str], home: Collection[str]) -> Iterator[str]:
    own = one.__dict__
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        yield from map(origin, own.get(hooks, {}).values())
    for name in own.keys() & methods - ATTACHED:
        forward = inside(own[name])
        plain = getattr(forward, "__self__", None) is one and getattr(forward, "__func__", None) is getattr(
            type(one), name, None
        )
        if callable(forward) and not plain:
            regions = getattr(_closed_over(forward), "enable_rp_latent", False)
            yield origin(forward) + (" with regions" if regions else "")
    processor = own.get("processor")
    if processor is not None:
        yield from _of_class(type(processor), home)
    yield from around(one)


def around(one: nn.Module) -> Iterator[str]:
    """Whose hooks accelerate and diffusers have put around a module's forward, but for those that only move weights:
    they see, and may change, what it is given and gives, and diffusers' may run instead of it.
    """
    if "_hf_hook" in one.__dict__:
        hook: Any = one.__dict__["_hf_hook"]
        chained = getattr(hook, "hooks", None)  # accelerate's SequentialHook
        yield from map(origin, map(type, chained if isinstance(chained, (list, tuple)) else [hook]))
    for name, hook in registered(one).items():
        if name not in CASTING:
            code = origin(type(hook))
            yield code if known(code) is Answer.HARMLESS else f"diffusers hook {name}:{type(hook).__qualname__}"


def in_part(unet: nn.Module, inside: Collection[int]) -> list[nn.Module]:
    """The modules of a UNet, without itself, that run while some below them, whose ids are `inside`, do not."""
    above = [module for module in unet.modules() if module is not unet and id(module) not in inside]
    return [module for module in above if any(id(below) in inside for below in module.modules())]


def _closed_over(function: Any) -> Any:
    """What a function knows as `self` from around it: of many extensions the script."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(function, "__closure__", None) or (), strict=False))
    try:
        return cells["self"].cell_contents
    except (KeyError, ValueError):  # none, or not yet filled
        return None


def _everywhere() -> list[Callable[..., Any]]:
    """What runs in the calls of all modules of this Python: hooks, torch's own methods, and its attention, which others
    exchange for faster ones, and some to look at it.
    """
    hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    torchs = [vars(nn.Module)[name] for name in RUNS if name in vars(nn.Module)]  # 2.0 has not all of them
    return [
        *(hook for those in hooks for hook in those.values()),
        *torchs,
        nn.functional.scaled_dot_product_attention,
    ]


def _is_home(name: str, home: Collection[str]) -> bool:
    return name.partition(":")[0].partition(".")[0] in home


def _shown(name: str) -> str:
    """The module's name; of a program's main module the function's too."""
    module = name.partition(":")[0]
    return name if module == "__main__" else module
