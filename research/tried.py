"""`python -m research.tried`: everything that was tried before the strategies were chosen, failures included.

A bare loop of its own: the demo checkpoint's UNet by hand, k-diffusion's samplers, classifier-free guidance, and for
each evaluation either the whole UNet, the live blocks on an estimated feature, or nothing at all with the output
estimated. It runs on the half of the words that `make evidence` does not report on. Mean PSNR of the decoded pictures
to the uncached ones; speed-up in SD1.5's FLOPs.
"""

from __future__ import annotations

import argparse
import copy as copy_module
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d

from bench.evidence.metrics import psnr
from bench.evidence.studio import checkpoint_called, pairs_for
from bench.tables import markdown, row
from deepcache_ext.plan import cost
from deepcache_ext.plan.importance import Nature, weighted
from deepcache_ext.plan.strategies import non_uniform
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


def apart_by_frequency(estimate: Estimate) -> Estimate:
    """What is smooth over 3 by 3 places estimated apart from the rest."""

    def both(points: Sequence[Point], at: float) -> torch.Tensor:
        smooth = [(z, avg_pool2d(value, 3, 1, 1, count_include_pad=False)) for z, value in points]
        rest = [(z, value - low) for (z, value), (_, low) in zip(points, smooth, strict=True)]
        return estimate(smooth, at) + estimate(rest, at)

    return both


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
    "copy": copy,
    "first order": damped(1.0),
    "0.7 of it": damped(0.7),
    "half of it": damped(0.5),
    "line through 3": fitted(3),
    "trust, a row": trusted((1, 2, 3)),
    "trust, a channel": trusted((2, 3)),
    "trust, half believed": trusted((2, 3), believed=1.0),
    "trust, 0 to 1": trusted((2, 3), lowest=0.0),
    "trust, all rows together": trusted((0, 2, 3)),
    "trust, smooth and rest": apart_by_frequency(trusted((2, 3))),
}


# The loop ----------------------------------------------------------------------------------------------------


@dataclass
class Way:
    """Which evaluations are full, what stands for the rest: `branch` None skips the whole UNet.

    `deeper`: evaluations that run a deeper branch instead, and so renew what is kept for `branch`. `threshold`: full
    whenever the input has moved by more than this since the last full one, relative to its own size; `full` is then
    what is full in any case. `ran`: the branch of each evaluation that was run, -1 for full.
    """

    full: frozenset[int]
    branch: int | None = None
    estimate: Estimate = copy
    deeper: Mapping[int, int] = field(default_factory=dict)
    threshold: float = math.inf
    points: dict[int | None, list[Point]] = field(default_factory=dict)
    ran: list[int | None] = field(default_factory=list)
    _input: torch.Tensor | None = None

    def is_full(self, index: int, x: torch.Tensor) -> bool:
        moved = 0.0
        if self._input is not None and self.threshold < math.inf:
            moved = float((x - self._input).norm() / self._input.norm())
        if index in self.full or self._input is None or moved > self.threshold:
            self._input = x
            return True
        return False

    def keep(self, at: float, features: Mapping[int | None, torch.Tensor]) -> None:
        for branch, feature in features.items():
            self.points[branch] = [*self.points.get(branch, []), (at, feature)][-4:]

    @property
    def cost(self) -> float:
        """Of the evaluations that were run, in full calls."""
        shares = {None: 0.0, -1: 1.0}
        return sum(shares[branch] if branch in shares else cost.share(branch) for branch in self.ran)


class Studio:
    """The demo's checkpoint, or the one in `folder` that `python -m train` wrote, and one batch of prompts with their
    noise.
    """

    def __init__(self, pairs: int, folder: Path | None = None) -> None:
        checkpoint = checkpoint_called("demo-sd1") if folder is None else _only_one(folder)
        self.prediction = str(checkpoint.trained["prediction"])
        self.unet = checkpoints.make_unet(checkpoint)
        self.unet.load_state_dict(checkpoints.state_dict(checkpoint, self.unet))
        text, code = checkpoints.text_encoder(checkpoint), checkpoints.autoencoder(checkpoint)
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

    def picked(self, which: Sequence[int]) -> Studio:
        """The same with some of the pictures alone."""
        some, count = copy_module.copy(self), len(self._seeds)
        some._seeds = [self._seeds[k] for k in which]
        some._noise = self._noise[list(which)]
        some._context = self._context[[*which, *(count + k for k in which)]]
        return some

    def of_one_prompt(self, which: Sequence[int]) -> Studio:
        """The seeds of some of the pictures, with the first one's prompt."""
        some, count = self.picked(which), len(self._seeds)
        some._context = self._context[[*[0] * len(which), *[count] * len(which)]]
        return some

    @property
    def count(self) -> int:
        return len(self._seeds)

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
            said = (uncond + guidance * (cond - uncond)) * sigma.view(-1, 1, 1, 1)
            return x - said if self.prediction == "eps" else x / scale**2 - said / scale

        x, more = self._noise * sigmas[0], {}
        if sampler == "Euler a":
            streams = [torch.Generator().manual_seed(seed + 10**6) for seed in self._seeds]
            more["noise_sampler"] = lambda *_: torch.stack([torch.randn(x.shape[1:], generator=g) for g in streams])
        function = {
            "Euler": sampling.sample_euler,
            "Euler a": sampling.sample_euler_ancestral,
            "DPM++ 2M Karras": sampling.sample_dpmpp_2m,
        }[sampler]
        latent = function(denoise, x, sigmas, disable=True, **more)
        return (self._code.decode(latent) + 1) / 2

    def _call(self, x: torch.Tensor, t: torch.Tensor, sigma: float, index: int, way: Way | None) -> torch.Tensor:
        if way is None:
            return self.unet(x, t, context=self._context)
        at, wanted = math.log(sigma), {way.branch, *way.deeper.values()}
        if way.is_full(index, x):
            out, features = self.by_hand(x, t, wanted)
            way.keep(at, features)
            way.ran.append(-1)
            return out
        branch = way.deeper.get(index, way.branch)
        way.ran.append(branch)
        estimate = way.estimate(way.points[branch], at)
        if branch is None:
            return estimate
        shallower = {one for one in wanted if one is not None and one < branch}
        out, features = self.by_hand(x, t, shallower, branch, estimate)
        way.keep(at, features)
        return out

    def by_hand(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        wanted: Collection[int | None],
        branch: int | None = None,
        feature: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[int | None, torch.Tensor]]:
        """The UNet in full, or with `feature` the live blocks of `branch` alone; and what it has at the `wanted`
        branches (None: its output).
        """
        from ldm.modules.diffusionmodules.util import timestep_embedding

        unet, kept, skips, h = self.unet, {}, [], x
        emb = unet.time_embed(timestep_embedding(t, unet.model_channels, repeat_only=False))
        count = len(unet.output_blocks)
        live = count if branch is None else branch + 1
        for block in list(unet.input_blocks)[:live]:
            h = block(h, emb, self._context)
            skips.append(h)
        h = unet.middle_block(h, emb, self._context) if feature is None else feature
        for place in range(count - live, count):
            if count - 1 - place in wanted:
                kept[count - 1 - place] = h
            h = unet.output_blocks[place](torch.cat([h, skips.pop()], 1), emb, self._context)
        out = unet.out(h)
        return out, {**kept, **({None: out} if None in wanted else {})}


def _only_one(folder: Path) -> checkpoints.Checkpoint:
    (weights,) = folder.glob("*.safetensors")
    return checkpoints.available(folder)[weights.stem]


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
        "weighted": frozenset(weighted(sigmas, count, nature=Nature(sampler == "Euler a", studio.prediction))),
    }


def questions(program: str, what: str) -> argparse.ArgumentParser:
    """What all programs of this folder are asked by."""
    parser = argparse.ArgumentParser(prog=f"python -m research.{program}", description=what.splitlines()[0])
    parser.add_argument("--samplers", default="Euler,DPM++ 2M Karras,Euler a")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=5.0)
    return parser


def begin() -> None:
    """One thread, no gradients: for a whole program."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = questions("tried", __doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--full", default="18,14,10", help="numbers of full evaluations")
    options = parser.parse_args(argv)
    begin()
    studio, steps = Studio(options.pairs), options.steps
    print("\n".join(markdown(("sampler", "speed-up", "full evaluations", "in between", "PSNR, dB"))))
    for sampler in options.samplers.split(","):
        reference = studio.run(sampler, steps, options.guidance)

        def line(way: Way, spread: str, name: str, sampler: str = sampler, reference: torch.Tensor = reference) -> None:
            found = psnr(studio.run(sampler, steps, options.guidance, way), reference).mean()
            cells = (f"{steps / way.cost:.2f}x", f"{len(way.full)}, {spread}", name, f"{float(found):.1f}")
            print(row((sampler, *cells)), flush=True)

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
