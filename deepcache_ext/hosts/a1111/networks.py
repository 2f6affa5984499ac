"""LoRA, hypernetworks and FreeU on A1111: they act inside the UNet, with no trace in its arguments.

Facts of the host: its Lora extension keeps the list `loaded_networks` in a top-level module `networks`, and the LyCORIS
extension of before, a copy of it that many still have installed, in `l_networks`; the layers
merge what is on it lazily, in their own forwards, or with `opts.lora_functional` add it there and change no weight at
all. A layer takes its merged weights for good as long as the same four values describe each network. Extensions that
move a multiplier from step to step make it a property, so it is read again at every call.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

MODULES = ("networks", "l_networks")


def loaded_networks(shared: Any) -> Hashable:
    """What is loaded now, and how strong; equal as long as nothing changes. `shared`: the host's module of that name,
    which lists the hypernetworks. Empty where nothing is known of any.
    """
    loras = (lora for name in MODULES for lora in _those(getattr(sys.modules.get(name), "loaded_networks", None)))
    hypernetworks = getattr(shared, "loaded_hypernetworks", None)
    return tuple(map(_lora, loras)), tuple(map(_hypernetwork, _those(hypernetworks)))


def free_u_acts() -> bool | None:
    """Whether the FreeU extension acts at this step. It works between the blocks, from its start to its stop, with no
    trace on the UNet. None where it is not installed, or is not the one that is known.
    """
    try:
        enabled = sys.modules["lib_free_u.global_state"].instance.enable
        return bool(enabled and sys.modules["lib_free_u.unet"].get_schedule_ratio())
    except (KeyError, AttributeError, TypeError):
        return None


def _those(networks: Any) -> Any:
    return networks if isinstance(networks, (list, tuple)) else ()


def _lora(network: Any) -> Hashable:
    names = ("name", "te_multiplier", "unet_multiplier", "dyn_dim")
    # The object too: after a change of its file the same name is another network.
    return (id(network), *(getattr(network, name, None) for name in names))


def _hypernetwork(network: Any) -> Hashable:
    layers = getattr(network, "layers", None) or {}
    multipliers = tuple(getattr(module, "multiplier", None) for pair in layers.values() for module in pair)
    return (id(network), getattr(network, "name", None), multipliers)
