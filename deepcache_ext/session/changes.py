"""Noticing what changed about a UNet in mid-run: blocks exchanged (as some upscaling tricks do), another checkpoint in
the same object, a LoRA merged, injected or added on the fly, forwards put on single layers.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from functools import partial
from itertools import repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from ..unet.support import own_forward
from .online import Online

Parts = tuple[nn.Module | None, ...]


def parts(unet: nn.Module) -> Parts:
    """The UNet's modules down to the layers of its blocks: three levels, without the UNet itself.

    The modules themselves and not their ids, which Python gives to others once these are gone. Costs about 5
    microseconds.
    """
    children = unet._modules.values()
    blocks = [block for child in children if child is not None for block in child._modules.values()]
    layers = [layer for block in blocks if block is not None for layer in block._modules.values()]
    return (*children, *blocks, *layers)


def same_parts(one: Parts, other: Parts) -> bool:
    """Whether these are the very same modules at the same places."""
    return len(one) == len(other) and all(map(is_, one, other))


EACH = 3
"""How many modules of each name are watched (`to_q`, `conv1`, `middle_block`). One would do for what goes by names, as
a LoRA does; a LoRA on some blocks alone shows where one of those is watched. Of SD1.x's 25 blocks it is 3 with one of
each name, 14 with three, 18 with six, and comparing them took 5, 12 and 20 microseconds a call on one CPU core. Chosen
by hand between the two.
"""


VALUES = 24
"""Of how many weights without a counter single values are read."""

COUNTER = attrgetter("_version")


class WeightsWatch:
    """Watches a sample of a UNet's modules and weights, of every name some.

    In-place writes (`copy_`, `load_state_dict`, `+=`) raise a weight's counter; a layer that is wrapped, unwrapped or
    exchanged (an injected LoRA) is another object, and so is a new `nn.Parameter`. Layers of peft are watched too:
    switching, scaling or merging an adapter there changes no counter.

    Weights that were loaded under `torch.inference_mode`, as Forge's are, have no counter: of some of them two values
    each are read (`version` with `values`), which waits for the device once. LoRAs that a host adds on the fly are
    looked for then too, and their strengths read at every call (`online`).

    Moving a module between devices is no change, so an assignment to `.data`, which is how modules are moved, stays
    unseen. So does what is done to single layers outside the sample.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._renewals = 0
        self._take_sample()

    def _take_sample(self) -> None:
        by_name: dict[str, list[tuple[dict[str, Any], nn.Module]]] = {}
        weighted: dict[str, list[nn.Module]] = {}
        adapted = []
        for parent in self._unet.modules():
            for name, child in parent._modules.items():
                if child is None:
                    continue
                by_name.setdefault(name, []).append((parent._modules, child))
                if isinstance(child._parameters.get("weight"), torch.Tensor):
                    weighted.setdefault(name, []).append(child)
            if "merged_adapters" in parent.__dict__:
                adapted.append(parent.__dict__)
        links = [(children, name, child) for name, group in by_name.items() for children, child in _spread(group)]
        self._parents = [children for children, _, _ in links]
        self._names = [name for _, name, _ in links]
        self._children = [child for _, _, child in links]
        layers = [layer for group in weighted.values() for layer in _spread(group)]
        self._owners = [layer._parameters for layer in layers]
        self._weights = [owner["weight"] for owner in self._owners]
        self._online = Online(layers)
        self._uncounted = [weight for weight in self._weights if weight.is_inference() and not weight.is_meta]
        self._adapted = adapted[:: max(1, len(adapted) // 64)]
        self._inside: Inside | None = None
        self._read = b""

    def version(self, values: bool = True) -> tuple[int, int, Hashable, bytes]:
        """Another one when a sampled weight was written to, when a sampled module or weight is another object, and when
        an adapter acts in another way. `values`: read those of weights without a counter anew, and look for LoRAs that
        are added on the fly.
        """
        if not self._is_same():
            self._take_sample()
            self._renewals += 1
        if values:
            self._read = self._values()
            self._online.look()
        acting = tuple(map(_adapters, self._adapted)), self._online.strengths()
        return self._count(), self._renewals, acting, self._read

    def forwards(self, inside: Container[int]) -> Hashable:
        """What runs in those of the sampled modules whose ids are `inside`: their classes, and the code of their own
        forwards, processors and hooks.
        """
        if self._inside is None:
            self._inside = Inside([child for child in self._children if id(child) in inside])
        return self._inside.forwards()

    def _values(self) -> bytes:
        some = self._uncounted[:: -(-len(self._uncounted) // VALUES) or 1]
        # Views of single elements: flattening would copy a weight whose memory is in another order.
        places = [(weight, tuple((size - 1) // part for size in weight.shape)) for weight in some for part in (2, 3)]
        read = [weight[place].float() for weight, place in places if weight.numel()]
        return torch.stack(read).cpu().numpy().tobytes() if read else b""

    def _is_same(self) -> bool:
        if not all(map(is_, map(dict.get, self._parents, self._names), self._children)):
            return False
        now = list(map(dict.get, self._owners, repeat("weight")))
        if all(map(is_, now, self._weights)):
            return True
        for before, weight in zip(self._weights, now, strict=True):
            # accelerate's offloading leaves a new empty parameter behind after each call.
            if weight is not before and not (weight is not None and weight.is_meta and before.is_meta):
                return False
        self._weights = now
        return True

    def _count(self) -> int:
        try:
            return sum(map(COUNTER, self._weights))
        except RuntimeError:  # an inference tensor
            return sum(weight._version for weight in self._weights if not weight.is_inference())


class Inside:
    """A sample of modules, and what was put on them. Asked at each call: where all is as it was, it looks no further
    than at which objects are there, in 10 to 20 microseconds.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._own = [module.__dict__ for module in modules]
        self._hooks = [module.__dict__.get(name, {}) for module in modules for name in HOOKS]
        self._seen: list[Any] = []
        self._known: Hashable = None

    def forwards(self) -> Hashable:
        """See `WeightsWatch.forwards`."""
        seen: list[Any] = list(map(type, self._modules))
        for name in ("forward", "_forward", "processor"):
            seen += map(dict.get, self._own, repeat(name))
        for hooks in filter(None, self._hooks):
            seen += hooks.values()
        if len(seen) != len(self._seen) or not all(map(is_, seen, self._seen)):
            found = [(place, _own_code(module)) for place, module in enumerate(self._modules)]
            self._known = tuple(map(type, self._modules)), tuple(one for one in found if one[1])
            self._seen = seen
        return self._known


HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _own_code(module: nn.Module) -> tuple[Any, ...]:
    """Empty where nobody put anything on this module."""
    own = module.__dict__
    # Hosts put the hooks that move weights up anew: what counts is the forward inside them.
    found = [own_forward(module) if "forward" in own else None, own.get("_forward"), own.get("processor")]
    for hooks in HOOKS:
        found += own.get(hooks, {}).values()
    return tuple(map(_code, found)) if any(one is not None for one in found) else ()


def _code(function: Any) -> Any:
    """The code of a function, whoever closes over it and whatever it closes over; of other things their class."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", type(function))


def _spread(group: list[Any]) -> list[Any]:
    """At most `EACH` of a list, with the first."""
    return group[:: -(-len(group) // EACH)]


def _adapters(layer: dict[str, Any]) -> Hashable:
    """Which adapters of a peft layer act, and how strongly."""
    scaling = layer.get("scaling")
    return (
        layer.get("_disable_adapters"),
        str(layer.get("_active_adapter")),
        tuple(layer["merged_adapters"]),
        tuple(scaling.items()) if isinstance(scaling, dict) else None,
    )
