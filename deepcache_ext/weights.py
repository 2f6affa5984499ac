"""Noticing that a model's weights were changed in place: another checkpoint in the same object, a merged LoRA."""

from __future__ import annotations

import torch
from torch import nn

SAMPLED = 64


class WeightsWatch:
    """Adds up the version counters of weights spread over the UNet.

    In-place writes (`copy_`, `load_state_dict`, `+=`) raise a counter; moving a module between devices does not.
    A checkpoint swap writes to all weights, so a sample sees it. Cost: about 20 microseconds a look.
    """

    def __init__(self, unet: nn.Module) -> None:
        leaves = [m for m in unet.modules() if isinstance(m._parameters.get("weight"), torch.Tensor)]
        step = max(1, len(leaves) // SAMPLED)
        self._owners = [module._parameters for module in leaves[::step]]

    def version(self) -> int:
        """A number that grows when a sampled weight is written to; inference tensors have no counter."""
        total = 0
        for owner in self._owners:
            weight = owner.get("weight")
            if weight is not None and not weight.is_inference():
                total += weight._version
        return total
