"""Numbers that lie on a device, asked for early and read together: the host waits for the device once for all."""

from __future__ import annotations

import torch


class Answers:
    """Questions whose answers a device works out. The first that is read brings all those of its device that were asked
    before, in one vector.
    """

    def __init__(self) -> None:
        self._open: list[Answer] = []

    def about(self, numbers: torch.Tensor) -> Answer:
        """`numbers`: a vector or a single one, of any type; in float32 from here on, since not every device joins
        tensors of several types.
        """
        answer = Answer(self, numbers.reshape(-1).float())
        self._open.append(answer)
        return answer

    def read(self, device: torch.device) -> None:
        """Wait for that device."""
        here = [answer for answer in self._open if answer.numbers.device == device]
        self._open = [answer for answer in self._open if answer.numbers.device != device]
        vectors = [answer.numbers for answer in here]
        told = (torch.cat(vectors) if len(vectors) > 1 else vectors[0]).tolist()
        for answer in here:
            answer.told, told = told[: len(answer.numbers)], told[len(answer.numbers) :]


class Answer:
    """The numbers of a vector, once they are asked for: of truths 0 and 1."""

    def __init__(self, among: Answers, numbers: torch.Tensor) -> None:
        self._among, self.numbers = among, numbers
        self.told: list[float] | None = None

    def __call__(self) -> list[float]:
        if self.told is None:
            self._among.read(self.numbers.device)
        assert self.told is not None
        return self.told
