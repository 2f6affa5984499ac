"""How far the picture under a sampler may have moved since the evaluation before: what moved further is another one.

A latent at noise level sigma is x = x0 + sigma n, of a picture x0 and noise n, both of about unit variance, so its
length is about sqrt(1 + sigma^2). A sampler's step to sigma' adds (sigma' - sigma) d, where d, the noise that the UNet
has told, is about of unit variance too, and longer with strong guidance: that turns the latent by
atan(|sigma' - sigma| |d| / sqrt(1 + sigma^2)) at most. Samplers with fresh noise turn it further by as much as they
add, at a right angle to that. A latent that was rolled, mirrored, or exchanged for another picture or another window of
it turns by up to a right angle at once, since its noise lies elsewhere. Angles do not care how a host scales its
latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..plan.estimators import Moment
from ..unet.answers import Answers

GUIDED = 15.0
"""So long may d be, the overshoot of multistep samplers included. On trained networks (the laboratory's; six samplers,
20 steps, guidance 7) it needed to be 0.6 to 1.0, from another picture (img2img) 2.3, with LMS 7.6. On one that knew
its 40 pictures by heart, in real hosts: 12 in img2img that draws something else (DPM++ 3M SDE, PLMS), 14 where a full
step of a third-order sampler follows cached ones. Whoever moves the latents is noticed early in the run, where noise
is most of them: there the angle is nearly a right one, whatever this is.
"""

FRESH = 1.5
"""So many times may the noise be that is added. Some samplers ask below the end of a step, and add the noise of the
whole step there: DPM fast, DPM adaptive. How much of the angle all samplers of the hosts use: research/motion.md.
"""

ROUNDING = 0.02
"""Radians that are allowed in any case: half precision, and a second-order sampler's corrections at one level."""

EXCHANGED = 0.5
"""A row that lies so many times nearer to what another one was than to what it was itself has changed places with it.
In untouched runs of six samplers on two of the laboratory's networks no row came nearer than 0.74.
"""

ROWS = 64
"""Of more rows than that no pairs are compared: their number grows by the square. Chosen by hand."""

LONG, PIECES = 1 << 14, 64
"""From so many numbers on rows are compared in so many pieces: CUDA has one block of 256 threads for a pair of rows,
however long they are, and a latent of 25 frames would keep two of its many processors busy for milliseconds. Shorter
sums are also rounded less. Chosen by hand; UNets' latents can be divided so.
"""

UNKNOWN = 1.0
"""Radians that are allowed where a noise level is not known. Two pictures' noise lies 1.57 apart."""


@dataclass(frozen=True)
class _Seen:
    """A latent that went by: its rows scaled to length 1, (rows, n), and the angle that its step allowed."""

    rows: torch.Tensor
    moment: Moment
    allowed: float


class Motion:
    """Follows the latents of one pass. `fresh_noise`: the sampler adds noise in the course of it; `all_fresh`: it
    replaces all of it at every step, as LCM does: then the noise tells nothing, and little is noticed.
    """

    def __init__(self, fresh_noise: bool = True, all_fresh: bool = False) -> None:
        self._fresh, self._all_fresh = fresh_noise, all_fresh
        self._seen: dict[torch.Size, _Seen] = {}

    def ask(self, latent: torch.Tensor, moment: Moment, answers: Answers, matters: bool = True) -> Callable[[], bool]:
        """Whether this latent, (rows, ...), may be what the last one of its shape became, to be read later. True for
        the first latent of its shape, and where the answer does not matter.
        """
        # In float32: a half-precision sum of squares has no room. A copy, since the sampler writes on.
        rows = latent.detach().flatten(1).float()
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-20)
        last = self._seen.get(latent.shape)
        step = 0.0 if last is None else self._step(last.moment, moment)
        # A step of two evaluations goes there and back: what the step before allowed is allowed once more.
        allowed = step if last is None else max(step, last.allowed)
        self._seen[latent.shape] = _Seen(rows, moment, step)
        if last is None or not matters:
            return lambda: True
        if last.rows.device != rows.device:
            return lambda: False
        if len(rows) > ROWS:
            apart = torch.linalg.vector_norm(rows - last.rows, dim=1)
        else:
            # Where pictures are alike, the angle alone does not tell that a row came from another one.
            pairs = _distances(rows, last.rows)
            apart = torch.cat([pairs.diagonal(), pairs.amin(dim=1)]) if len(rows) > 1 else pairs
        told = answers.about(apart)
        return lambda: self._follows(told(), len(rows), allowed)

    def _follows(self, told: list[float], rows: int, allowed: float) -> bool:
        """`told`: how far each row lies from what it was, and, where pairs were compared, from the nearest of all."""
        own, nearest_of = told[:rows], told[rows:]
        if any(mine > ROUNDING and one < EXCHANGED * mine for mine, one in zip(own, nearest_of, strict=False)):
            return False
        return self._is_within(2 * math.asin(min(max(own) / 2, 1.0)), allowed + ROUNDING)

    def _is_within(self, turned: float, allowed: float) -> bool:
        """Both in radians."""
        return turned <= allowed

    def _step(self, before: Moment, now: Moment) -> float:
        """Radians that the sampler may turn a latent by between the two."""
        if before.log_sigma is None or now.log_sigma is None or before.sigma is None or now.sigma is None:
            return UNKNOWN
        turned = math.atan(GUIDED * abs(now.sigma - before.sigma) / math.sqrt(1 + before.sigma**2))
        if self._all_fresh:
            return turned + math.acos(1 / math.sqrt((1 + before.sigma**2) * (1 + now.sigma**2)))
        if not self._fresh:
            return turned
        return math.acos(math.cos(turned) * math.cos(FRESH * self._added(before.sigma, now.sigma)))

    @staticmethod
    def _added(before: float, now: float) -> float:
        """Radians that noise turns a latent by which goes from one level to the other: of an ancestral step down,
        sigma'^2 (1 - sigma'^2 / sigma^2) (k-diffusion's `get_ancestral_step`; an SDE's with eta = 1 is the same), or,
        where the level rises, what brings it there.
        """
        variance = now**2 * (1 - now**2 / before**2) if now <= before else now**2 - before**2
        return math.atan(math.sqrt(max(variance, 0.0)) / math.sqrt(1 + now**2))


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Between each row of one (rows, n) matrix and each of another, (rows, rows). Not by products of matrices, which
    autocast and TF32 would round.
    """
    count = math.gcd(one.shape[1], PIECES) if one.shape[1] >= LONG else 1
    if count == 1:
        return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    here, there = (rows.unflatten(1, (count, -1)).transpose(0, 1) for rows in (one, other))
    return torch.linalg.vector_norm(torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist"), dim=0)
