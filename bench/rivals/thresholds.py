"""Residuals that are reused while a cheap signal stays near: First Block Cache and TeaCache.

Published for transformers; their ports to UNets are measured here as well.

- First Block Cache (ParaAttention; on UNets WaveSpeed and sd-webui-teacache): the first input blocks run always, up to
  the first with residual and attention layers. While what that block adds is near to what it added at the last full
  evaluation, what all others added then is added again.
- TeaCache (arXiv 2411.19108): the signal is the first block's input, modulated by the timestep, here the first layers
  of the first residual block with the embedding added. Its changes from one evaluation to the next are made into
  changes of what the UNet says by a polynomial of order 4, fitted beforehand, and added up. Published coefficients are
  of other networks: here they are fitted to uncached runs of other pictures. First and last evaluation are full.
- As Forge's extension has them (sd-forge-blockcache): the whole UNet is the residual, output less input. First Block
  Cache looks at the first convolution, TeaCache at the input itself; changes are added up as they are. The first and
  the last evaluation are full.

Left out: limits on how many in a row are reused, which are off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from . import spent
from .net import Call, Net, Rival
from .spent import Shares


def drift(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """How far each picture's signal moved, relative and by absolute values: [n] of two [2n, ...]."""
    moved, size = (tensor.abs().unflatten(0, (2, -1)).transpose(0, 1).flatten(1) for tensor in (now - before, before))
    return moved.mean(1) / size.mean(1)


@dataclass(frozen=True)
class Kind:
    """One of these ways. `look`: from a call the signal, and what the residual is added to, after `led` input blocks.
    `share`: what looking and adding costs. `adds_up`: whether changes from one evaluation to the next are added up,
    else the signal is compared with that of the last full one. `whole`: the residual holds the last layer as well.
    `ends`: the last evaluation is full, too. `order`: of the polynomial that changes go through; 0: none.
    """

    look: Callable[[Net, Call], tuple[torch.Tensor, torch.Tensor]]
    share: Callable[[Shares], float]
    adds_up: bool = True
    whole: bool = False
    ends: bool = True
    order: int = 0


def _first_block(net: Net, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    stem, block = net.lead(call, 2)
    return block - stem, block


def _modulated(net: Net, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    (stem,) = net.lead(call, 1)
    layers = net.unet.input_blocks[1][0]
    return layers.in_layers(stem) + layers.emb_layers(call.emb)[..., None, None], stem


KINDS = {
    "First Block Cache": Kind(_first_block, lambda s: s.led + s.last, adds_up=False, ends=False),
    "TeaCache": Kind(_modulated, lambda s: s.stem + s.modulated + s.last, order=4),
    "First Block Cache (Forge)": Kind(lambda net, call: (net.lead(call, 1)[0], call.x), lambda s: s.stem, whole=True),
    "TeaCache (Forge)": Kind(lambda net, call: (call.x, call.x), lambda s: 0.0, whole=True),
}


@dataclass
class Changes:
    """Of uncached runs: how far the signal and what the UNet says moved from one evaluation to the next."""

    signal: list[float] = field(default_factory=list)
    said: list[float] = field(default_factory=list)

    def polynomial(self, order: int) -> Sequence[float]:
        return [float(c) for c in np.polyfit(self.signal, self.said, order)]


class Reusing(Rival):
    """`threshold`: a picture's residual is reused below it. `polynomial`: coefficients, highest order first.
    `changes`: where to note what moves in full evaluations.
    """

    def __init__(
        self,
        net: Net,
        steps: int,
        kind: Kind,
        threshold: float,
        polynomial: Sequence[float] = (1.0, 0.0),
        changes: Changes | None = None,
    ) -> None:
        super().__init__(net, steps)
        self.kind, self.threshold, self.polynomial, self.changes = kind, threshold, polynomial, changes
        self.share = kind.share(spent.of(net.depth))
        self.signal = self.residual = self.said = torch.empty(0)
        self.moved = torch.zeros(net.count)

    def noise(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        call = self.net.call(x, t)
        signal, base = self.kind.look(self.net, call)
        full = self.full(signal)
        rows, kept = self.net.rows(full), self.net.rows(~full)
        if self.k == 0:
            self.signal, self.residual = signal.clone(), torch.zeros_like(base)
        said = torch.empty_like(call.x)
        if len(rows):
            said[rows], self.residual[rows] = self.run(call.of(rows), base[rows])
        if len(kept):
            hidden = base[kept] + self.residual[kept]
            said[kept] = hidden if self.kind.whole else self.net.last(hidden)
        if self.changes is not None and self.k:
            self.changes.signal += drift(signal, self.signal).tolist()
            self.changes.said += drift(said, self.said).tolist()
        renewed = torch.cat([full, full]) | self.kind.adds_up
        self.signal[renewed], self.said = signal[renewed], said
        self.moved[full] = 0
        self.spent += float(full.double().mean() + (~full).double().mean() * self.share)
        return self.net.noise(said, x, sigma)

    def full(self, signal: torch.Tensor) -> torch.Tensor:
        """Which pictures run in full: [count]."""
        if self.k == 0 or (self.kind.ends and self.k == self.steps - 1):
            return torch.ones(self.net.count, dtype=torch.bool)
        change = drift(signal, self.signal)
        change = sum((c * change**i for i, c in enumerate(reversed(self.polynomial))), torch.zeros_like(change))
        self.moved = self.moved + change if self.kind.adds_up else change
        return self.moved >= self.threshold

    def run(self, call: Call, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the UNet says in full, and the residual over `base`."""
        hidden = self.net.hidden(call)
        said = self.net.last(hidden)
        return said, (said if self.kind.whole else hidden) - base
