"""`python -m bench.tried`: everything that was tried before the strategies were chosen, failures included.

A bare loop of its own: the demo checkpoint's UNet by hand, k-diffusion's samplers, classifier-free guidance, and for
each evaluation either the whole UNet, the live blocks on an estimated feature, or nothing at all with the output
estimated. It runs on the half of the words that `make evidence` does not report on. Mean PSNR of the decoded pictures
to the uncached ones; speed-up in SD1.5's FLOPs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bench.evidence.metrics import psnr
from bench.evidence.studio import checkpoint_called, pairs_for
from deepcache_ext import predict
from deepcache_ext.strategies import non_uniform, weighted
from demo.webui import checkpoints
from demo.webui.real_parts import external, sampling

Point = tuple[float, torch.Tensor]
"""Log sigma, and the feature or output there."""
Estimate = Callable[[Sequence[Point], float], torch.Tensor]


# Estimators: of the points kept so far (oldest first), at a log sigma ----------------------------------------


def copy(points: Sequence[Point], at: float) -> torch.Tensor:
    return points[-1][1]


def damped(share: float, reach: float = 2.0) -> Estimate:
    """First order in log sigma, so much of the way."""

    def estimate(points: Sequence[Point], at: float) -> torch.Tensor:
        if len(points) < 2:
            return points[-1][1]
        (a, before), (b, last) = points[-2:]
        return last + share * min((at - b) / (b - a), reach) * (last - before)

    return estimate


def trusted(apart: tuple[int, ...], lowest: float = -1.0, believed: float = 0.0, reach: float = 2.0) -> Estimate:
    """First order, as far as it was right before, measured over the dimensions `apart`; `believed`: the weight of a
    prior of 1/2 beside what was measured.
    """

    def estimate(points: Sequence[Point], at: float) -> torch.Tensor:
        if len(points) < 3:
            return damped(0.5, reach)(points, at)
        (z, oldest), (a, before), (b, last) = points[-3:]
        step, came = (before - oldest) * min((b - a) / (a - z), reach), last - before
        power = step.square().sum(apart, keepdim=True).clamp_min(1e-12)
        trust = ((came * step).sum(apart, keepdim=True) / power + believed / 2) / (1 + believed)
        return last + trust.clamp(lowest, 1.0) * min((at - b) / (b - a), reach) * came

    return estimate


def fitted(count: int) -> Estimate:
    """The straight line of least squares through the last `count` points."""

    def estimate(points: Sequence[Point], at: float) -> torch.Tensor:
        used = points[-count:]
        if len(used) < 2:
            return used[-1][1]
        middle = sum(place for place, _ in used) / len(used)
        spread = sum((place - middle) ** 2 for place, _ in used)
        shares = [1 / len(used) + (at - middle) * (place - middle) / spread for place, _ in used]
        return torch.stack([share * value for share, (_, value) in zip(shares, used, strict=True)]).sum(0)

    return estimate


ESTIMATORS: dict[str, Estimate] = {
    "copy": copy, "first order": damped(1.0), "0.7 of it": damped(0.7), "half of it": damped(0.5),
    "line through 3": fitted(3), "trust, a row": trusted((1, 2, 3)), "trust, a channel": trusted((2, 3)),
    "trust, half believed": trusted((2, 3), believed=1.0), "trust, 0 to 1": trusted((2, 3), lowest=0.0),
}


# The loop ----------------------------------------------------------------------------------------------------


@dataclass
class Way:
    """Which evaluations are full, what stands for the rest: `branch` None skips the whole UNet."""

    full: frozenset[int]
    branch: int | None = None
    estimate: Estimate = copy
    points: list[Point] = field(default_factory=list)


class Studio:
    """The demo's checkpoint, and one batch of prompts with their noise."""

    def __init__(self, pairs: int) -> None:
        checkpoint = checkpoint_called("demo-sd1")
        self.unet = checkpoints.make_unet(checkpoint)
        self.unet.load_state_dict(checkpoints.state_dict(checkpoint, self.unet))
        text, code = checkpoints.text_encoder(checkpoint), checkpoints.picture_code(checkpoint)
        assert text is not None and code is not None
        self._code = code
        chosen = pairs_for(checkpoint, pairs, tuned=True)
        conds = [text.encode(pair.prompt) for pair in chosen]
        self._context = torch.stack([*conds, *[text.encode("")] * len(chosen)])
        side = int(checkpoint.trained["size"]) // 8
        self._seeds = [pair.seed for pair in chosen]
        self._noise = torch.stack([self._drawn(seed, (4, side, side)) for seed in self._seeds])
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0).float()
        self.schedule = external.DiscreteSchedule(((1 - alphas) / alphas).sqrt(), quantize=False)

    @staticmethod
    def _drawn(seed: int, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def sigmas(self, sampler: str, steps: int) -> torch.Tensor:
        if sampler.endswith("Karras"):
            return sampling.get_sigmas_karras(steps, float(self.schedule.sigma_min), float(self.schedule.sigma_max))
        return self.schedule.get_sigmas(steps)

    def run(self, sampler: str, steps: int, guidance: float, way: Way | None = None) -> torch.Tensor:
        """Decoded pictures [B, 3, h, w] in 0..1."""
        sigmas, count = self.sigmas(sampler, steps), 0

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            nonlocal count
            scale = (sigma**2 + 1).sqrt().view(-1, 1, 1, 1)
            inputs = torch.cat([x / scale] * 2)
            out = self._call(inputs, self.schedule.sigma_to_t(torch.cat([sigma] * 2)), float(sigma[0]), count, way)
            count += 1
            cond, uncond = out.chunk(2)
            v = uncond + guidance * (cond - uncond)
            return x / scale**2 - v * sigma.view(-1, 1, 1, 1) / scale

        x, more = self._noise * sigmas[0], {}
        if sampler == "Euler a":
            streams = [torch.Generator().manual_seed(seed + 10**6) for seed in self._seeds]
            more["noise_sampler"] = lambda *_: torch.stack([torch.randn(x.shape[1:], generator=g) for g in streams])
        function = {
            "Euler": sampling.sample_euler, "Euler a": sampling.sample_euler_ancestral,
            "DPM++ 2M Karras": sampling.sample_dpmpp_2m,
        }[sampler]
        latent = function(denoise, x, sigmas, disable=True, **more)
        return (self._code.decode(latent) + 1) / 2

    def _call(self, x: torch.Tensor, t: torch.Tensor, sigma: float, index: int, way: Way | None) -> torch.Tensor:
        if way is None:
            return self.unet(x, t, context=self._context)
        at = math.log(sigma)
        if index in way.full or not way.points:
            out, feature = self.by_hand(x, t, way.branch)
            way.points = [*way.points, (at, out if feature is None else feature)][-4:]
            return out
        estimate = way.estimate(way.points, at)
        return estimate if way.branch is None else self.by_hand(x, t, way.branch, estimate)[0]

    def by_hand(
        self, x: torch.Tensor, t: torch.Tensor, branch: int | None, feature: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The UNet in full, and its feature at `branch`; or with `feature` the live blocks alone."""
        from ldm.modules.diffusionmodules.util import timestep_embedding

        unet, kept, skips, h = self.unet, None, [], x
        emb = unet.time_embed(timestep_embedding(t, unet.model_channels, repeat_only=False))
        count = len(unet.output_blocks)
        live = count if feature is None or branch is None else branch + 1
        for block in list(unet.input_blocks)[:live]:
            h = block(h, emb, self._context)
            skips.append(h)
        h = unet.middle_block(h, emb, self._context) if feature is None else feature
        for place, block in enumerate(unet.output_blocks):
            if place < count - live:
                continue
            if branch is not None and place == count - 1 - branch:
                kept = h
            h = block(torch.cat([h, skips.pop()], 1), emb, self._context)
        return unet.out(h), kept


def full_sets(studio: Studio, sampler: str, steps: int, count: int) -> dict[str, frozenset[int]]:
    """Ways to spread so many full evaluations over a run."""
    sigmas = [float(sigma) for sigma in studio.sigmas(sampler, steps)[:-1]]
    interval = steps / count
    dense = sorted({round((steps - 1) * (k / (count - 1)) ** 1.6) for k in range(count)})
    return {
        "even": frozenset(int(k * interval) for k in range(count)),
        "dense early": frozenset(dense),
        "dense late": frozenset({0, *(steps - 1 - k for k in dense[:-1])}),
        "the paper's": frozenset(non_uniform(steps, max(1, round(interval)), round(0.3 * steps), 1.4)),
        "weighted": frozenset(weighted(sigmas, count, fresh_noise=sampler == "Euler a")),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tried", description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", default="Euler,DPM++ 2M Karras,Euler a")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--full", default="18,14,10", help="numbers of full evaluations")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    studio, steps = Studio(options.pairs), options.steps
    print("| sampler | speed-up | full evaluations | in between | PSNR, dB |\n|---|---|---|---|---|")
    for sampler in options.samplers.split(","):
        reference = studio.run(sampler, steps, options.guidance)

        def line(way: Way, spread: str, name: str, sampler: str = sampler, reference: torch.Tensor = reference) -> None:
            found = psnr(studio.run(sampler, steps, options.guidance, way), reference).mean()
            share = 0.0 if way.branch is None else predict.share(way.branch)
            speed = predict.speed_up(steps, len(way.full), share)
            print(f"| {sampler} | {speed:.2f}x | {len(way.full)}, {spread} | {name} | {float(found):.1f} |", flush=True)

        for count in map(int, options.full.split(",")):
            sets = full_sets(studio, sampler, steps, count)
            for spread, chosen in sets.items():
                for name in ("copy", "trust, a channel"):
                    line(Way(chosen, 0, ESTIMATORS[name]), spread, f"branch 0, {name}")
            for name in [one for one in ESTIMATORS if one not in ("copy", "trust, a channel")]:
                line(Way(sets["weighted"], 0, ESTIMATORS[name]), "weighted", f"branch 0, {name}")
            for name in ("copy", "0.7 of it", "half of it", "trust, a channel"):
                line(Way(sets["weighted"], None, ESTIMATORS[name]), "weighted", f"skipped, {name}")
            line(Way(sets["weighted"], 2, ESTIMATORS["trust, a channel"]), "weighted", "branch 2, trust, a channel")


if __name__ == "__main__":
    main()
