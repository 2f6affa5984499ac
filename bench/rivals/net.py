"""A laboratory network as rivals see it: in parts, for some of the pictures, and with a count of what was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench import unets
from bench.laboratory import studio


@dataclass(frozen=True)
class Call:
    """What the blocks are given for n pictures, with the texts and without them: x [2n, c, h, w], the embedding of
    the timestep [2n, e] and the texts [2n, tokens, width].
    """

    x: torch.Tensor
    emb: torch.Tensor
    context: torch.Tensor

    def of(self, rows: torch.Tensor) -> Call:
        return Call(self.x[rows], self.emb[rows], self.context[rows])


class Net:
    """The UNet of a studio at one guidance. `given`: its texts, [2 * count, ...] each. `depth`: output blocks."""

    def __init__(
        self, unet: Any, given: Mapping[str, torch.Tensor], guidance: float, prediction: str, depth: int
    ) -> None:
        self.unet, self.guidance, self.prediction, self.depth = unet, guidance, prediction, depth
        self._given = given
        self.count = len(given["context"]) // 2

    @classmethod
    def of(cls, made: studio.Studio, guidance: float) -> Net:
        return cls(made.model.unet, made.given, guidance, made.network.prediction, made.depth)

    def rows(self, pictures: torch.Tensor) -> torch.Tensor:
        """Of those pictures (a mask [count]) their rows in a call: [2n]."""
        chosen = pictures.nonzero().flatten()
        return torch.cat([chosen, chosen + self.count])

    def call(self, x: torch.Tensor, t: torch.Tensor) -> Call:
        """All pictures, x [count, c, h, w]."""
        both = torch.cat([x, x])
        emb = unets.embedding(self.unet, {"timesteps": t.expand(len(both)), **self._given})
        return Call(both, emb, self._given["context"])

    def lead(self, call: Call, blocks: int) -> list[torch.Tensor]:
        """What comes out of each of the first input blocks."""
        found: list[torch.Tensor] = []
        for block in self.unet.input_blocks[:blocks]:
            found.append(block(found[-1] if found else call.x, call.emb, call.context))
        return found

    def rest(self, call: Call, led: list[torch.Tensor]) -> torch.Tensor:
        """What goes into the last layer, after the first input blocks gave `led`."""
        skips, h = list(led), led[-1]
        for block in self.unet.input_blocks[len(led) :]:
            h = block(h, call.emb, call.context)
            skips.append(h)
        h = self.unet.middle_block(h, call.emb, call.context)
        for block in self.unet.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), call.emb, call.context)
        return h

    def hidden(self, call: Call) -> torch.Tensor:
        """What goes into the last layer, all of it run."""
        return self.rest(call, self.lead(call, 1))

    def last(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the UNet says, [2n, c, h, w]."""
        return self.unet.out(hidden)

    def alone(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the UNet says without the texts, [count, c, h, w]: half a call."""
        empty = {name: tensor[self.count :] for name, tensor in self._given.items()}
        return self.unet(x, t.expand(len(x)), **empty)

    def noise(self, said: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The guided noise in x, after what the UNet says with the texts and without."""
        return self.unguided(studio.guided(said, self.guidance), x, sigma)

    def unguided(self, said: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return studio.noise(said, x, sigma, self.prediction)


class Rival:
    """One way, for one run: a denoiser (see bench/laboratory/samplers.py) that counts what it runs.

    `spent`: in full evaluations of the UNet, mean over the pictures. Each picture of a batch is decided on for itself.
    """

    def __init__(self, net: Net, steps: int) -> None:
        self.net, self.steps = net, steps
        self.k, self.spent = -1, 0.0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        self.k += 1
        return self.noise(x, t, sigma)

    def noise(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        """The guided noise at evaluation `self.k`."""
        raise NotImplementedError

    @property
    def speed_up(self) -> float:
        """Of the run that is over."""
        return (self.k + 1) / self.spent
