"""Noticing what changed about a UNet in mid-run: blocks exchanged (as some upscaling tricks do), another checkpoint in
the same object, a LoRA merged, injected or added on the fly, forwards put on single layers.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from ..unet.neighbours import ASKING, FORWARDS, LIBRARIES, around, methods_of
from ..unet.support import own_forward, plain_function
from .online import Online
from .values import Values

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
"""How many modules of each role are watched (`attn1.to_q`, `net.2`, `conv1`). One would do for what goes by names, as a
LoRA does. Chosen by hand: comparing three, and a weight of each block, took 25 microseconds a call on one CPU core.
"""

COUNTER = attrgetter("_version")


class WeightsWatch:
    """Watches a sample of a UNet's modules and weights, of every name some.

    In-place writes (`copy_`, `load_state_dict`, `+=`) raise a weight's counter; a layer that is wrapped, unwrapped or
    exchanged (an injected LoRA) is another object, and so is a new `nn.Parameter`. Layers of peft are watched too:
    switching, scaling or merging an adapter there changes no counter.

    Weights that were loaded under `torch.inference_mode`, as Forge's are, have no counter, and writes through `.data`
    raise none: for these, single values are read (`values`). LoRAs that a host adds on the fly are looked for at the
    first call of an evaluation, and their strengths read at every call (`online`).

    Moving a module between devices is no change. What is done to single layers outside the sample stays unseen.
    Of the middle block, at which many aim, there is a sample of its own.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._renewals = 0
        self._take_sample()

    def _take_sample(self) -> None:
        by_name: dict[tuple[bool, str], list[tuple[str, dict[str, Any], nn.Module]]] = {}
        weighted: dict[tuple[bool, str], list[nn.Module]] = {}
        roles, middle = {self._unet: ""}, set(_middle(self._unet))
        adapted = []
        for parent in self._unet.modules():
            for name, child in parent._modules.items():
                if child is None:
                    continue
                # `attn1.to_q`, `net.2`: what is aimed at goes by more than the last part of a name.
                role = f"{roles[parent]}.{name}" if name.isdigit() or not roles[parent].isdigit() else name
                roles[child] = name if not name.isdigit() else role.rpartition(".")[2]
                by_name.setdefault((child in middle, role), []).append((name, parent._modules, child))
                if _watched(child):
                    weighted.setdefault((child in middle, role), []).append(child)
            if "merged_adapters" in parent.__dict__:
                adapted.append(parent.__dict__)
        links = [link for group in by_name.values() for link in _spread(group)]
        self._parents = [children for _, children, _ in links]
        self._names = [name for name, _, _ in links]
        self._children = [child for _, _, child in links]
        layers = [layer for group in weighted.values() for layer in _spread(group)]
        layers = list(dict.fromkeys([*layers, *_one_of_each_block(self._unet)]))
        held = [(layer._parameters, name) for layer in layers for name in _watched(layer)]
        self._owners, self._held = [owner for owner, _ in held], [name for _, name in held]
        self._weights = [owner[name] for owner, name in held]
        self._online = Online(layers)
        self.values = Values(self._weights)
        self._adapted = adapted[:: max(1, len(adapted) // 64)]
        self._inside: Inside | None = None

    def version(self, look: bool = True) -> tuple[int, int, Hashable]:
        """Another one when a sampled weight was written to, when a sampled module or weight is another object, and when
        an adapter acts in another way. `look`: for LoRAs that are added on the fly.
        """
        if not self._is_same():
            self._take_sample()
            self._renewals += 1
        if look:
            self._online.look()
        acting = tuple(map(_adapters, self._adapted)), self._online.strengths()
        return self._count(), self._renewals, acting

    def forwards(self, inside: Container[int]) -> Hashable:
        """What runs in those of the sampled modules, and of the blocks and their layers, whose ids are `inside`: their
        classes and these' forwards, the code of their own forwards, processors and hooks, and their switches.
        """
        if self._inside is None:
            some = dict.fromkeys([*parts(self._unet), *self._children])
            self._inside = Inside([module for module in some if module is not None and id(module) in inside])
        return self._inside.forwards()

    def _is_same(self) -> bool:
        if not all(map(is_, map(dict.get, self._parents, self._names), self._children)):
            return False
        now = list(map(dict.get, self._owners, self._held))
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
    """Some modules, and what was put on them. Asked at each call: where all is as it was, it looks no further than at
    which objects are there, in 10 to 20 microseconds.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._own = [module.__dict__ for module in modules]
        self._hooks = [module.__dict__.get(name, {}) for module in modules for name in HOOKS]
        self._put_on: list[tuple[dict[str, Any], str]] = []
        self._switches: list[tuple[dict[str, Any], str]] = []
        self._methods: list[tuple[Mapping[str, Any], str]] = []
        self._size = -1
        self._seen: list[Any] = []
        self._known: Hashable = None

    def forwards(self) -> Hashable:
        """See `WeightsWatch.forwards`."""
        size = sum(map(len, self._own))  # it grows with whatever is put on a module that had none
        if size != self._size:
            self._put_on = [(own, name) for own in self._own for name in OWN if name in own]
            self._switches = [(own, name) for own in self._own for name, one in own.items() if _is_switch(name, one)]
            self._methods = self._methods_now()
        seen: list[Any] = list(map(type, self._modules))
        seen += [own.get(name) for own, name in self._put_on]
        seen += [own.get(name) for own, name in self._switches]
        for hooks in filter(None, self._hooks):
            seen += hooks.values()
        seen += [methods.get(name) for methods, name in self._methods]
        seen.append(nn.functional.scaled_dot_product_attention)
        if size != self._size or len(seen) != len(self._seen) or not all(map(is_, seen, self._seen)):
            found = [(place, _own_code(module)) for place, module in enumerate(self._modules)]
            methods = tuple(_code(methods.get(name)) for methods, name in self._methods)
            switches = tuple(str(own.get(name)) for own, name in self._switches)
            kinds, torchs = tuple(map(type, self._modules)), nn.functional.scaled_dot_product_attention
            self._known = kinds, tuple(one for one in found if one[1]), methods, switches, torchs
            self._seen, self._size = seen, size
        return self._known

    def _methods_now(self) -> list[tuple[Mapping[str, Any], str]]:
        """Where the classes of modules and of their processors have what runs in a call."""
        kinds = dict.fromkeys([*map(type, self._modules), *(type(own.get("processor")) for own in self._own)])
        found = {(base, name): None for kind in kinds for name, base, _ in methods_of(kind) if name in ASKING}
        return [(vars(base), name) for base, name in found]


def _is_switch(name: str, value: Any) -> bool:
    """Whether it is a flag or a number on a module, which forwards and hooks read and others turn in mid-run:
    attention's scale, the weight of a residual, diffusers' GLIGEN, Incantations' SEG.
    """
    return name in TURNED or (isinstance(value, (bool, float)) and name not in TORCHS)


TURNED = frozenset(("padding_mode", "s1", "s2", "b1", "b2"))
"""Turned too: the padding of pictures without seams is a word, diffusers' FreeU is None while it is off."""

TORCHS = frozenset(("training", "affine", "elementwise_affine", "eps", "inplace", "p", "transposed"))
"""Of torch's own layers, which nobody turns: they would be most of what is looked at."""

OWN = (*FORWARDS, "processor")

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _own_code(module: nn.Module) -> tuple[Any, ...]:
    """Empty where nobody put anything on this module."""
    own = module.__dict__
    # Hosts put the hooks that move weights up anew: what counts is the forward inside them.
    found = [own_forward(module) if "forward" in own else None, own.get("_forward"), own.get("processor")]
    for hooks in HOOKS:
        found += own.get(hooks, {}).values()
    others = [name for name in around(module) if not LIBRARIES.match(name)] if "forward" in own else []
    return (*map(_code, found), *others) if others or any(one is not None for one in found) else ()


def _code(function: Any) -> Any:
    """The code of a function, whoever closes over it and whatever it closes over; of other things their class."""
    function = plain_function(function)
    return getattr(function, "__code__", type(function))


def _middle(unet: nn.Module) -> list[nn.Module]:
    """All modules of the middle block, whatever its name."""
    blocks = (unet._modules.get("middle_block"), unet._modules.get("mid_block"))
    return [module for block in blocks if block is not None for module in block.modules()]


def _one_of_each_block(unet: nn.Module) -> Iterator[nn.Module]:
    """The layer that has a weight in the middle of each block: what is done to one block alone (a LoRA whose strengths
    go by blocks) shows there.
    """
    for child in unet._modules.values():
        for block in () if child is None else child._modules.values():
            weighted = [] if block is None else [one for one in block.modules() if _watched(one)]
            yield from weighted[len(weighted) // 2 :][:1]


def _watched(module: nn.Module) -> list[str]:
    """The names of a module's own parameters that are watched: its weight, or, where a library keeps that in parts
    (`weight_norm`, torch's parametrizations), all that are there.
    """
    named = [name for name, one in module._parameters.items() if isinstance(one, torch.Tensor)]
    return ["weight"] if "weight" in named else [name for name in named if name != "bias"]


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
