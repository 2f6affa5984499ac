"""One network's pictures, uncached and with a plan, from the extension's own session."""

from __future__ import annotations

import torch

from bench.likeness import psnr
from deepcache_ext.plan.estimators import Estimator
from deepcache_ext.plan.importance import Nature
from deepcache_ext.plan.plan import Plan
from deepcache_ext.session.session import Session
from train.laboratory import model
from train.laboratory.networks import Network
from train.learn import fast_attention, fused_attention

from .samplers import SAMPLERS, Denoiser

FIRST_SEED = 1000


def guided(said: torch.Tensor, guidance: float) -> torch.Tensor:
    """[B, c, h, w] of what a UNet says with the texts and without them, [2B, c, h, w]."""
    asked, empty = said.chunk(2)
    return empty + guidance * (asked - empty)


def noise(said: torch.Tensor, x: torch.Tensor, sigma: float, prediction: str) -> torch.Tensor:
    """The noise in x, which is scaled to size 1, after a UNet that predicts it or v."""
    return said if prediction == "eps" else (said + sigma * x) / (sigma**2 + 1) ** 0.5


class NotAsPlanned(RuntimeError):
    """The session ran something else than its plan."""


class Studio:
    """A network of the laboratory and `count` of its texts, each with a seed of its own from `first` on; one batch."""

    def __init__(self, network: Network, count: int = 8, first: int = FIRST_SEED) -> None:
        self.network = network
        self.model, self.code, card = model.load(network)
        self.depth = int(card["output_blocks"])
        self.count = count
        self._texts, self._shape = card["texts"], (card["channels"], card["size"], card["size"])
        self.given, self._noise, self._seeds = self.others(first, count)
        self._references: dict[tuple[str, int, float], torch.Tensor] = {}

    def others(self, first: int, count: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]:
        """Of so many pictures from seed `first` on: what the UNet is given with texts and without, noise, and seeds."""
        texts = [self._texts[(first - FIRST_SEED + k) % len(self._texts)] for k in range(count)]
        numbers = torch.cat([self.model.text.numbers(text)[:1] for text in texts + [""] * count])
        seeds = [first + k for k in range(count)]
        drawn = [torch.randn(self._shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return self.model.given(numbers), torch.stack(drawn), seeds

    def nature(self, sampler: str) -> Nature:
        return Nature(SAMPLERS[sampler].fresh_noise)

    @torch.no_grad()
    @fused_attention()
    def run(
        self, sampler: str, steps: int, guidance: float, plan: Plan | None = None, estimator: Estimator | None = None
    ) -> torch.Tensor:
        """Pictures [count, colours, h, w] in 0..1; without a plan uncached. Raises NotAsPlanned."""
        unet, session = self.model.unet, None
        if plan is not None:
            assert estimator is not None
            # The attention that trains and draws here keeps nothing.
            session = Session(plan, estimator, nature=self.nature(sampler), trusted=[fast_attention.__module__])
            session.attach(unet)

        def denoiser(x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
            both = torch.cat([x, x])
            if session is not None:
                session.tick(lambda: both, sigma)
            said = unet(both, t.expand(len(both)), **self.given)
            return noise(guided(said, guidance), x, sigma, self.network.prediction)

        try:
            pictures = self.drawn(sampler, steps, denoiser)
        finally:
            report = session.close() if session is not None else None
        if report is not None and plan is not None:
            planned = sum(plan.branch_at(k) is None for k in range(report.evaluations))
            if report.off or report.full_evaluations != planned:
                raise NotAsPlanned(f"{report.full_evaluations} evaluations were full, not {planned}; {report.lines()}")
        return pictures

    @torch.no_grad()
    @fused_attention()
    def drawn(self, sampler: str, steps: int, denoiser: Denoiser) -> torch.Tensor:
        """Pictures [count, colours, h, w] in 0..1 that the sampler draws with that denoiser from the studio's noise."""
        return self.code.decode(SAMPLERS[sampler].run(denoiser, self._noise, steps, self._seeds))

    def reference(self, sampler: str, steps: int, guidance: float) -> torch.Tensor:
        """Uncached pictures, made once."""
        key = (sampler, steps, guidance)
        if key not in self._references:
            self._references[key] = self.run(*key)
        return self._references[key]

    def forget(self) -> None:
        """Free the uncached pictures."""
        self._references.clear()

    def likeness(
        self, sampler: str, steps: int, guidance: float, plan: Plan | None, estimator: Estimator | None, fewer: int = 0
    ) -> list[float]:
        """PSNR in dB of each picture to the uncached one; of the plan's, or of uncached ones of `fewer` steps."""
        if fewer:
            made = self.reference(sampler, fewer, guidance)
        else:
            made = self.run(sampler, steps, guidance, plan, estimator)
        return [round(float(value), 2) for value in psnr(made, self.reference(sampler, steps, guidance))]
