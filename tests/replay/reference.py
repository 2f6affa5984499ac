"""What each call should have given, said naively and without the extension: imports nothing of it.

Two things are written out by hand: the forwards of ldm and sgm UNets (whole, or their outer blocks alone on
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
    """The whole UNet, or just what `branch` runs, on `feature`; keeping features for `branches`."""
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
RAISED = "an exception came before it"
WALKS = "it goes over the ladder another number of times"
TOGETHER = "another call of the evaluation ran in full"


Making = tuple[Hashable, Hashable, Hashable]
"""Conditioning, weights and forward: what a feature was made with besides its call's x. All must agree."""


@dataclass(frozen=True)
class Kept:
    """`exact`: of a full call, or of one on features that were exact themselves."""

    index: int
    sigma: float | None
    features: list[torch.Tensor]
    exact: bool = True


@dataclass(frozen=True)
class Verdict:
    """`features`: what a cached call runs on, or None for a full call; `why` is it full. `exact`: these very
    tensors, not sums of others.
    """

    features: list[torch.Tensor] | None
    why: str = ""
    exact: bool = True


def noise_level(announced: float, timesteps: bool) -> float | None:
    """As k-diffusion counts it; timestep samplers announce a timestep. None for what is no level or not in the
    schedule.
    """
    if not timesteps:
        return announced if announced > 0 else None
    if not 0 <= announced <= len(ALPHAS_CUMPROD) - 1:
        return None
    alpha = float(ALPHAS_CUMPROD[round(announced)])
    return math.sqrt((1 - alpha) / alpha)


FRESH_NOISE = {"DPM adaptive", "DPM fast", "DPM++ SDE", "Euler a", "LCM", "Restart"}
"""The recorded samplers that add noise in the course of a run: `auto` copies branch 0's feature with them."""
ALL_FRESH = {"LCM"}
"""Of these, what replaces all noise: `auto` copies with it."""

AUTO_GAP, AUTO_STEPS = 1.1, 3.4
"""How far apart full evaluations may lie, in log sigma or, where levels are unknown, in evaluations, for `auto` to
forecast (docs/strategies.md)."""


class Rule:
    """Uniform 1:N over the evaluations of a pass. A full call keeps its features; a later call of the same
    part and making may use one if it was kept at or after the plan's last full evaluation. With two branches every
    second full evaluation runs the deeper one instead, on the feature of the full one before, and keeps the other's.
    Where a call of an evaluation is full against the plan, those after it are too; where those before it were not, the
    next evaluation's are.
    """

    def __init__(self, interval: int, estimator: str, branches: tuple[int, ...] = (0,)) -> None:
        self.interval, self.estimator, self.branches = interval, estimator, branches
        self.begin_pass("")

    def begin_pass(self, sampler: str) -> None:
        self.copies = sampler in ALL_FRESH or (sampler in FRESH_NOISE and not any(self.branches))
        self.index, self.sigma, self.settles = -1, None, False
        self.memory: dict[Hashable, tuple[Making, dict[int, list[Kept]]]] = {}
        self.broken = self.together = False
        self.ran: list[bool] = []

    def begin_evaluation(self, sigma: float | None, total: int, levels: Sequence[float] = ()) -> None:
        """`total`: how many the host announces; `levels`: of all of them, where it tells them at the beginning."""
        self.index += 1
        self.sigma, self.broken = sigma, False
        self.together, self.ran = len(set(self.ran)) > 1, []
        if self.index == 0:
            automatic = self.estimator == "auto" and not self.copies and self._near(total, levels)
            self.looks_back = self.estimator == "forecast" or automatic

    def _near(self, total: int, levels: Sequence[float]) -> bool:
        known = bool(levels) and min(levels) > 0
        renewals = -(-(len(levels) if known else total) // self.interval)
        if known:
            return math.log(max(levels) / min(levels)) / renewals <= AUTO_GAP
        return total / AUTO_STEPS <= renewals

    def called(self, full: bool) -> None:
        """A call of the evaluation has run."""
        self.ran.append(full)

    def drop(self) -> None:
        """After an exception: nothing that was kept is used, and nothing is kept until the next evaluation."""
        self.memory.clear()
        self.broken = True

    @property
    def branch(self) -> int | None:
        """What is to run now; None for all."""
        if self.index % self.interval:
            return self.branches[0]
        return self.branches[-1] if self.index % (len(self.branches) * self.interval) else None

    def verdict(self, part: Hashable, making: Making, walks: int) -> Verdict:
        """As `_alone`, but for what ran before it."""
        if self.together and self.branch is not None:
            return Verdict(None, RAISED if self.broken else TOGETHER)
        found = self._alone(part, making, walks)
        self.together = self.together or (found.features is None and self.branch is not None)
        return found

    def _alone(self, part: Hashable, making: Making, walks: int) -> Verdict:
        """On a call that goes over the ladder so many times. Where that is another number than before it shows too
        late: the call is made again, whole, and all that was kept is forgotten.
        """
        branch = self.branch
        if branch is None:
            return Verdict(None, PLANNED)
        if self.broken:
            return Verdict(None, RAISED)
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
        if len(by_branch[branch][-1].features) != walks:
            self.memory.clear()
            return Verdict(None, WALKS)
        return self._estimate(by_branch[branch])

    def remember(
        self, part: Hashable, making: Making, features: list[dict[int, torch.Tensor]], exact: bool = True
    ) -> None:
        """After a full call, or one that renewed the shallower feature: what each walk had by branch."""
        if self.broken:
            return
        made, before = self.memory.get(part, (making, {}))
        same = made == making and all(len(those[-1].features) == len(features) for those in before.values())
        kept = {**before} if same else {}
        for branch in self.branches:
            if branch in features[0]:
                now = Kept(self.index, self.sigma, [of_walk[branch] for of_walk in features], exact)
                kept[branch] = [*kept.get(branch, []), now][-4:]
        self.memory[part] = (making, kept)

    def _estimate(self, kept: list[Kept]) -> Verdict:
        last, now = kept[-1], Kept(self.index, self.sigma, [])
        estimated = self._line(kept, now) if self.looks_back else None
        is_next = now.index == last.index + 1 and len(kept) > 1 and last.index - kept[-2].index > 1
        if self.looks_back and self.settles and is_next:
            # By a fifth of what the cached evaluations before the last full one went by and should not have.
            went_by = self._line(kept[:-1], last) or kept[-2].features
            found = zip(estimated or last.features, last.features, went_by, strict=True)
            estimated = [h + 0.2 * (right - wrong) for h, right, wrong in found]
        if estimated is None:
            return Verdict(last.features, exact=last.exact)
        return Verdict(estimated, exact=False)

    def _line(self, kept: list[Kept], now: Kept) -> list[torch.Tensor] | None:
        """The features that go on from the last ones as those went; None for the last ones themselves."""
        if len(kept) < 2:
            return None
        last, before = kept[-1], kept[-2]
        r = self._ratio(before, last, now)
        if r == 0:
            return None
        oldest = kept[-3] if len(kept) > 2 else None
        past = self._ratio(oldest, before, last) if oldest else 0.0
        estimated = []
        for i, (h, h_before) in enumerate(zip(last.features, before.features, strict=True)):
            trust: Any = 1.0
            if r > 0:  # beyond the last full call: as far as the forecast of h, made before it, was right
                trust = 0.5
                if oldest and past > 0:
                    step = past * (h_before - oldest.features[i])
                    length = step.square().sum((2, 3), keepdim=True).clamp_min(1e-12)
                    trust = (((h - h_before) * step).sum((2, 3), keepdim=True) / length).clamp(-1, 1)
            estimated.append(h + r * trust * (h - h_before))
        return estimated

    @staticmethod
    def _ratio(before: Kept, last: Kept, now: Kept) -> float:
        """In log sigma, or in evaluations where a sigma is unknown; in units of the way from `before` to `last`."""
        sigmas = [one.sigma for one in (before, last, now)]
        places = [float(one.index) for one in (before, last, now)]
        if None not in sigmas:
            places = [math.log(sigma) for sigma in sigmas if sigma is not None]
        span = places[1] - places[0]
        return min(max((places[2] - places[1]) / span, -1.0), 2.0) if abs(span) >= 1e-6 else 0.0
