"""Noticing that a model's weights were changed in place: another checkpoint in the same object, a merged LoRA."""

from __future__ import annotations

from operator import attrgetter, itemgetter

import torch
from torch import nn

SAMPLED = 64
COUNTER, WEIGHT = attrgetter("_version"), itemgetter("weight")


class WeightsWatch:
    """Adds up the version counters of weights spread over the UNet.

    In-place writes (`copy_`, `load_state_dict`, `+=`) raise a counter; moving a module between devices does not.
    A checkpoint swap writes to all weights, so a sample sees it. Cost: about 5 microseconds a look.
    """

    def __init__(self, unet: nn.Module) -> None:
        leaves = [m for m in unet.modules() if isinstance(m._parameters.get("weight"), torch.Tensor)]
        step = max(1, len(leaves) // SAMPLED)
        self._owners = [module._parameters for module in leaves[::step]]

    def version(self) -> int:
        """A number that grows when a sampled weight is written to; inference tensors have no counter."""
        try:
            return sum(map(COUNTER, map(WEIGHT, self._owners)))
        except (RuntimeError, KeyError, AttributeError):  # an inference tensor, or a weight that is no longer there
            weights = [owner.get("weight") for owner in self._owners]
            return sum(w._version for w in weights if w is not None and not w.is_inference())
