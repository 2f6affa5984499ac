"""Noticing that a model's weights were changed in place: another checkpoint in the same object, a merged LoRA."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import nn

SAMPLED = 64
COUNTER, WEIGHT = attrgetter("_version"), itemgetter("weight")


class WeightsWatch:
    """Adds up the version counters of weights spread over the UNet.

    In-place writes (`copy_`, `load_state_dict`, `+=`) raise a counter; moving a module between devices does not.
    A checkpoint swap writes to all weights, so a sample sees it. Cost: about 5 microseconds a look. Layers of peft
    (LoRA and its kin) are watched too: switching, scaling or merging an adapter there changes no counter.
    """

    def __init__(self, unet: nn.Module) -> None:
        leaves = [m for m in unet.modules() if isinstance(m._parameters.get("weight"), torch.Tensor)]
        self._owners = [module._parameters for module in _sample(leaves)]
        self._adapted = [m.__dict__ for m in _sample([m for m in unet.modules() if "merged_adapters" in m.__dict__])]

    def version(self) -> tuple[int, Hashable]:
        """Grows when a sampled weight is written to (inference tensors have no counter), and differs when an adapter
        acts in another way.
        """
        return self._count(), tuple(map(_adapters, self._adapted))

    def _count(self) -> int:
        try:
            return sum(map(COUNTER, map(WEIGHT, self._owners)))
        except (RuntimeError, KeyError, AttributeError):  # an inference tensor, or a weight that is no longer there
            weights = [owner.get("weight") for owner in self._owners]
            return sum(w._version for w in weights if w is not None and not w.is_inference())


def _sample(modules: list[nn.Module]) -> list[nn.Module]:
    return modules[:: max(1, len(modules) // SAMPLED)]


def _adapters(layer: dict[str, Any]) -> Hashable:
    """Which adapters of a peft layer act, and how strongly."""
    scaling = layer.get("scaling")
    return (
        layer.get("_disable_adapters"), str(layer.get("_active_adapter")), tuple(layer["merged_adapters"]),
        tuple(scaling.items()) if isinstance(scaling, dict) else None,
    )
