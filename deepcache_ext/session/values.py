"""Noticing what leaves no trace on a weight: writes through `.data`, another tensor put there, inference tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..unet.answers import Answer, Answers

VALUES = 48
"""Of how many weights a single value is read, at most. A LoRA and its like change all values of a weight, so that one
of each weight will do. Chosen by hand: to join 39 took 5 microseconds on one CPU core, with nothing else at work.
"""

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Kinds of tensors that keep their values themselves."""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What numbers of so many bytes are read as."""


class Values:
    """Single values of some weights, as they were at the last full call and as they are now. They are compared where
    the weights are.

    Moving a weight between devices changes no value. Weights that a library packs, or keeps elsewhere, are left out.
    """

    def __init__(self, weights: Sequence[torch.Tensor | None]) -> None:
        dense = [weight for weight in weights if weight is not None and type(weight) in PLAIN and weight.numel()]
        self._weights = dense[:: -(-len(dense) // VALUES) or 1]
        self._places: list[int] = []
        self._views: list[list[torch.Tensor]] = []
        self._kept: list[torch.Tensor] | None = None
        self._differ: list[Answer] = []
        self._told = False

    def remember(self) -> None:
        """From now on these are the values. Never waits for the device."""
        self._kept = self._now()

    def ask(self, answers: Answers) -> None:
        """Begin to find out whether they are others than remembered. Waits for a device only after a move."""
        self._told, self._differ = False, []
        now = self._now() if self._kept is not None else None
        if now is None or self._kept is None:
            return
        if [one.device for one in now] != [one.device for one in self._kept]:
            self._told = not torch.equal(_on_cpu(now), _on_cpu(self._kept))
        else:
            self._differ = [answers.about((one != other).any()) for one, other in zip(now, self._kept, strict=True)]

    def changed(self) -> bool:
        """Whether they are others, by when it was last asked."""
        self._told = self._told or any(any(answer()) for answer in self._differ)
        return self._told

    def _now(self) -> list[torch.Tensor] | None:
        """By device and type, the values; None where there are none to be read."""
        try:
            places = [weight.data_ptr() for weight in self._weights]
            if places != self._places or not self._views:
                self._places, self._views = places, self._seen()
            with torch.no_grad():
                return [torch.cat(views) for views in self._views] or None
        except (RuntimeError, NotImplementedError):  # no memory of its own: offloaded, or a library's
            self._places, self._views = [], []
            return None

    def _seen(self) -> list[list[torch.Tensor]]:
        """Views of single elements: flattening would copy a weight whose memory is in another order."""
        found: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for weight in [weight for weight in self._weights if not weight.is_meta]:
            # A vector of one: to stack single numbers takes twice as long.
            one = weight.detach()[tuple((size - 1) // 2 for size in weight.shape)].unsqueeze(0)
            # Their bits: 8-bit floats cannot be joined everywhere, nor can those that autocast does not cast.
            one = one.view(BITS[one.element_size()]) if one.element_size() in BITS else one
            found.setdefault((one.device, one.dtype), []).append(one)
        return list(found.values())


def _on_cpu(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([one.cpu().long() for one in values])
