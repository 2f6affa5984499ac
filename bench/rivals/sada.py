"""SADA's step rule (arXiv 2507.17135): skip the next evaluation where the path of the latent bends back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from train.learn import alphas_cumprod

from .net import Net, Rival

BETAS = 1 - alphas_cumprod() / torch.cat([torch.ones(1), alphas_cumprod()[:-1]])
"""Of each of the 1000 timesteps: how fast noise comes in."""

BEHIND = (0.625, 0.75, -0.375)
"""How the last three slopes count in the latent that is expected next: the paper's Adams-Moulton form, newest first."""

MOST = 4
"""So many evaluations are skipped in a row at most."""


@dataclass(frozen=True)
class Rule:
    """Defaults are for 50 steps there, as shares of a run here. `begin`, `end`: where evaluations may be skipped.
    `least`: the greatest cosine between how far the latent came from where it was expected and how its slope bends, at
    which the next one is skipped; published: 0, the sign alone. `later`: from here on, in whole fours, only every
    fourth one is full and the picture behind the noise is interpolated; 1: never.
    """

    begin: float = 0.2
    end: float = 0.94
    least: float = 0.0
    later: float = 1.0


def with_interpolation(steps: int) -> Rule:
    """The published defaults: from step 24 of 50 on. Four known points are needed first, so not before step 12."""
    return Rule(later=max(round(0.48 * steps / 4) * 4, 12) / steps)


def interpolated(places: Sequence[int], values: Sequence[torch.Tensor], at: int) -> torch.Tensor:
    """Lagrange's polynomial through the values."""
    found = torch.zeros_like(values[0])
    for i, value in enumerate(values):
        weight = 1.0
        for j, place in enumerate(places):
            if j != i:
                weight *= (at - place) / (places[i] - place)
        found = found + weight * value
    return found


class Sada(Rival):
    """Decided for each picture. Slopes are dx/dt over timesteps, of the latent scaled to size 1, and steps of uneven
    length count by their length; the published code takes all as even, and one timestep long.

    Left out: the pruning of tokens where an evaluation is full. On samplers that add noise there is no such path, and
    the paper says nothing of them.
    """

    def __init__(self, net: Net, steps: int, rule: Rule) -> None:
        super().__init__(net, steps)
        self.rule = rule
        self.skips = torch.zeros(net.count, dtype=torch.bool)
        self.in_a_row = torch.zeros(net.count)
        self.slopes: list[torch.Tensor] = []
        self.before: tuple[torch.Tensor, float] | None = None  # x and its timestep
        self.eps = torch.empty(0)
        self.nodes: list[tuple[int, torch.Tensor]] = []

    def noise(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        expected = self.expected(float(t))
        skips = self.skipped(x, expected)
        full = ~skips
        self.in_a_row = torch.where(skips, self.in_a_row + 1, torch.zeros_like(self.in_a_row))
        if self.k == 0:
            self.eps = torch.zeros_like(x)
        if full.any():
            call, rows = self.net.call(x, t), self.net.rows(full)
            said = self.net.last(self.net.hidden(call.of(rows)))
            self.eps[full] = self.net.noise(said, x[full], sigma)
        self.spent += float(full.double().mean())
        told = self.eps.clone()
        if skips.any() and expected is not None:
            told[skips] = self.instead(x, expected, sigma)[skips]
        self.remember(x, t, sigma, told)
        return told

    def expected(self, t: float) -> torch.Tensor | None:
        """The latent at this evaluation, from the last one's and three slopes; None before there are three."""
        if len(self.slopes) < 3 or self.before is None:
            return None
        x, then = self.before
        bent = sum((share * slope for share, slope in zip(BEHIND, reversed(self.slopes), strict=True)), torch.zeros(1))
        return x - (then - t) * bent

    def skipped(self, x: torch.Tensor, expected: torch.Tensor | None) -> torch.Tensor:
        """Which pictures skip this evaluation: [count]; decided, as published, at the end of the one before."""
        last, never = self.k - 1, torch.zeros(self.net.count, dtype=torch.bool)
        if expected is None or not int(self.rule.begin * self.steps) <= last < int(self.rule.end * self.steps):
            return never
        if self.interpolates(last):
            return never if last % 4 == 0 else ~never & (self.in_a_row < MOST)
        first, second, third = self.slopes
        bend, off = (third - 2 * second + first).flatten(1), (x - expected).flatten(1)
        cosine = torch.nn.functional.cosine_similarity(off, bend, dim=1)
        return (cosine <= self.rule.least) & (self.in_a_row < MOST)

    def interpolates(self, k: int) -> bool:
        return k >= round(self.rule.later * self.steps)

    def instead(self, x: torch.Tensor, expected: torch.Tensor, sigma: float) -> torch.Tensor:
        """The noise in x, so that the picture behind it is the interpolated one, or that of the expected latent with
        the noise that was known last.
        """
        size = (sigma**2 + 1) ** 0.5
        if self.interpolates(self.k - 1):
            places, values = zip(*self.nodes, strict=True)
            return (x * size - interpolated(places, values, self.k)) / sigma
        return self.eps + (x - expected) * size / sigma

    def remember(self, x: torch.Tensor, t: torch.Tensor, sigma: float, told: torch.Tensor) -> None:
        beta = float(BETAS[min(max(round(float(t)), 0), 999)])
        part = sigma / (sigma**2 + 1) ** 0.5
        # As published: the noise that the UNet said last, also where another one was told.
        self.slopes = [*self.slopes, 0.5 * beta * (self.eps / part - x)][-3:]
        self.before = (x, float(t))
        if self.k % 4 == 1:
            self.nodes = [*self.nodes, (self.k, x * (sigma**2 + 1) ** 0.5 - sigma * told)][-4:]
