"""What each call should have given, said naively and without the extension: imports nothing of it.

Two things are written out by hand: the forwards of ldm and sgm U-Nets (whole, or their outer blocks alone on
a given feature), and the rule when a feature that was kept may stand in. The rule knows what each call holds
because the replay made the calls; it never looks into tensors.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .models import MIDDLE, Control

# The forwards -----------------------------------------------------------------------------


@dataclass
class Walk:
    """What one forward gave. `features`: by branch, the input of output block n-1-branch, skip apart."""

    output: torch.Tensor
    features: dict[int, torch.Tensor]


def time_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(start=0, end=half, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def joined(h: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    if h.shape[-2:] != skip.shape[-2:]:
        h = nn.functional.interpolate(h, skip.shape[-2:], mode="nearest")
    return torch.cat([h, skip], dim=1)


def walk(
    unet: Any,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    y: torch.Tensor | None,
    *,
    branches: Iterable[int] = (),
    control: Control | None = None,
    branch: int = -1,
    feature: torch.Tensor | None = None,
) -> Walk:
    """The whole U-Net, or just what `branch` runs, on `feature`; keeping features for `branches`."""
    emb = unet.time_embed(time_embedding(timesteps, unet.model_channels))
    if y is not None:
        emb = emb + unet.label_emb(y)
    below, above = list(unet.input_blocks), list(unet.output_blocks)
    count = len(above)
    kept: dict[int, torch.Tensor] = {}
    h, skips = x, []
    for block in below if feature is None else below[: branch + 1]:
        h = block(h, emb, context)
        skips.append(h)
    if feature is None:
        h = unet.middle_block(h, emb, context)
        first = 0
    else:
        h = feature
        first = count - 1 - branch
    for place in range(first, count):
        if count - 1 - place in branches:
            kept[count - 1 - place] = h.clone()
        if place == 0 and control is not None:
            h = h + control.residual(MIDDLE, count, h)
        skip = skips.pop()
        if control is not None:
            skip = skip + control.residual(count - 1 - place, count, skip)
        h = above[place](joined(h, skip), emb, context)
    return Walk(unet.out(h), kept)


@dataclass
class Answer:
    """One call: its output, and what each of its walks kept. Mostly one walk; reference_only makes two."""

    output: torch.Tensor
    features: list[dict[int, torch.Tensor]]


def answer(
    unet: Any,
    arguments: dict[str, Any],
    *,
    control: Control | None,
    branches: Iterable[int] = (),
    branch: int = -1,
    features: Sequence[torch.Tensor] | None = None,
) -> Answer:
    """A call in full, or the outer blocks of `branch` alone on `features`, one for each walk; keeps for `branches`."""
    given = iter(features) if features is not None else None

    def one(control: Control | None, arguments: dict[str, Any]) -> Walk:
        feature = next(given) if given is not None else None
        return walk(unet, **arguments, branches=branches, control=control, branch=branch, feature=feature)

    arguments = {"y": None, **arguments}
    kept = []
    for inner in control.inner if control is not None else ():
        extra = one(None, {"y": None, **inner})
        kept.append(extra.features)
        arguments["x"] = arguments["x"] + 0.1 * extra.output
    whole = one(control, arguments)
    return Answer(whole.output, [*kept, whole.features])


# The rule -----------------------------------------------------------------------------

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, 0)
"""Stable Diffusion's noise schedule."""

PLANNED = "planned"
UNSEEN = "not seen before in this pass"
STALE = "not seen since the plan's last full evaluation"
CHANGED = "its prompt changed"
WEIGHTS = "the weights changed"
FORWARD = "the forward changed"


Making = tuple[Hashable, Hashable, Hashable]
"""Conditioning, weights and forward: what a feature was made with besides its call's x. All must agree."""


@dataclass(frozen=True)
class Kept:
    index: int
    sigma: float
    features: list[torch.Tensor]


@dataclass(frozen=True)
class Verdict:
    """`features`: what a cached call runs on, or None for a full call; `why` is it full. `exact`: these very
    tensors, not sums of others.
    """

    features: list[torch.Tensor] | None
    why: str = ""
    exact: bool = True


def noise_level(announced: float, timesteps: bool) -> float:
    """As k-diffusion counts it; timestep samplers announce a timestep."""
    if not timesteps:
        return announced
    alpha = float(ALPHAS_CUMPROD[round(announced)])
    return math.sqrt((1 - alpha) / alpha)


class Rule:
    """Uniform 1:N over the evaluations of a pass. A full call keeps its features; a later call of the same
    part and making may use one if it was kept at or after the plan's last full evaluation. With two branches every
    second full evaluation runs the deeper one instead, on the feature of the full one before, and keeps the other's.
    """

    def __init__(self, interval: int, estimator: str, branches: tuple[int, ...] = (0,)) -> None:
        self.interval, self.estimator, self.branches = interval, estimator, branches
        self.begin_pass("")

    def begin_pass(self, sampler: str) -> None:
        self.index, self.sigma = -1, 0.0
        self.memory: dict[Hashable, tuple[Making, dict[int, list[Kept]]]] = {}
        # `auto` is played at an interval that is too wide to forecast for any recording's number of steps.
        self.looks_back = self.estimator == "forecast"

    def begin_evaluation(self, sigma: float) -> None:
        self.index += 1
        self.sigma = sigma

    @property
    def branch(self) -> int | None:
        """What is to run now; None for all."""
        if self.index % self.interval:
            return self.branches[0]
        return self.branches[-1] if self.index % (len(self.branches) * self.interval) else None

    def verdict(self, part: Hashable, making: Making) -> Verdict:
        branch = self.branch
        if branch is None:
            return Verdict(None, PLANNED)
        if part not in self.memory:
            return Verdict(None, UNSEEN)
        made, by_branch = self.memory[part]
        for was, now, why in zip(made, making, (CHANGED, WEIGHTS, FORWARD), strict=True):
            if was != now:
                return Verdict(None, why)
        # The deeper branch goes on from full evaluations alone.
        among = len(self.branches) if branch == self.branches[-1] else 1
        if by_branch[branch][-1].index < self.index - self.index % (among * self.interval):
            return Verdict(None, STALE)
        return self._estimate(by_branch[branch])

    def remember(self, part: Hashable, making: Making, features: list[dict[int, torch.Tensor]]) -> None:
        """After a full call, or one that renewed the shallower feature: what each walk had by branch."""
        made, before = self.memory.get(part, (making, {}))
        kept = {**before} if made == making else {}
        for branch in self.branches:
            if branch in features[0]:
                now = Kept(self.index, self.sigma, [of_walk[branch] for of_walk in features])
                kept[branch] = [*kept.get(branch, []), now][-3:]
        self.memory[part] = (making, kept)

    def _estimate(self, kept: list[Kept]) -> Verdict:
        last = kept[-1]
        if not self.looks_back or len(kept) < 2:
            return Verdict(last.features)
        before = kept[-2]
        r = self._ratio(before.sigma, last.sigma, self.sigma)
        if r == 0:
            return Verdict(last.features)
        oldest = kept[-3] if len(kept) > 2 else None
        past = self._ratio(oldest.sigma, before.sigma, last.sigma) if oldest else 0.0
        estimated = []
        for i, (h, h_before) in enumerate(zip(last.features, before.features, strict=True)):
            trust: Any = 1.0
            if r > 0:  # beyond the last full call: as far as the forecast of h, made before it, was right
                trust = 0.5
                if oldest and past > 0:
                    step = past * (h_before - oldest.features[i])
                    found = ((h - h_before) * step).sum((2, 3), keepdim=True) / step.square().sum((2, 3), keepdim=True)
                    trust = found.clamp(-1, 1)
            estimated.append(h + r * trust * (h - h_before))
        return Verdict(estimated, exact=False)

    @staticmethod
    def _ratio(before: float, last: float, now: float) -> float:
        """In log sigma, in units of the way from `before` to `last`."""
        span = math.log(last) - math.log(before)
        return min(max((math.log(now) - math.log(last)) / span, -1.0), 2.0) if abs(span) >= 1e-6 else 0.0
