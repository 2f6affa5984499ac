"""Samplers over timesteps: DDIM, PLMS, UniPC. Their `model` gives the noise, and its `sigma` is a timestep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from modules import sd_samplers_common, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser


def _previous(alphas: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Cumulated alphas of the timestep before each; before the first: that of timestep 0."""
    return alphas[torch.nn.functional.pad(timesteps[:-1], (1, 0))]


@torch.no_grad()
def ddim(
    model: Any,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    extra_args: dict,
    callback: Any,
    disable: bool,
    noise_sampler: Callable[..., torch.Tensor],
    eta: float = 0.0,
) -> torch.Tensor:
    """Song and others, 2020. As in the host the lowest timestep only ends the last step: one evaluation fewer."""
    cumulated = model.inner_model.inner_model.alphas_cumprod
    alphas, before = cumulated[timesteps], _previous(cumulated, timesteps)
    for i, k in enumerate(range(len(timesteps) - 1, 0, -1)):
        eps = model(x, timesteps[k].float() * x.new_ones(len(x)), **extra_args)
        sigma = eta * ((1 - before[k]) / (1 - alphas[k]) * (1 - alphas[k] / before[k])).sqrt()
        x0 = (x - (1 - alphas[k]).sqrt() * eps) / alphas[k].sqrt()
        x = before[k].sqrt() * x0 + (1 - before[k] - sigma**2).sqrt() * eps + sigma * noise_sampler()
        callback({"x": x, "i": i, "sigma": 0, "sigma_hat": 0, "denoised": x0})
    return x


@torch.no_grad()
def plms(
    model: Any, x: torch.Tensor, timesteps: torch.Tensor, extra_args: dict, callback: Any, disable: bool
) -> torch.Tensor:
    """Liu and others, 2022: Adams-Bashforth of up to order 4; the first step evaluates twice."""
    cumulated = model.inner_model.inner_model.alphas_cumprod
    alphas, before = cumulated[timesteps], _previous(cumulated, timesteps)
    ones = x.new_ones(len(x))
    weights = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    kept: list[torch.Tensor] = []

    def step(eps: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        x0 = (x - (1 - alphas[k]).sqrt() * eps) / alphas[k].sqrt()
        return before[k].sqrt() * x0 + (1 - before[k]).sqrt() * eps, x0

    for i, k in enumerate(range(len(timesteps) - 1, 0, -1)):
        kept.insert(0, model(x, timesteps[k].float() * ones, **extra_args))
        del kept[4:]
        if len(kept) == 1:
            ahead, _ = step(kept[0], k)
            eps = (kept[0] + model(ahead, timesteps[k - 1].float() * ones, **extra_args)) / 2
        else:
            eps = sum(weight * old for weight, old in zip(weights[len(kept)], kept, strict=True))
        x, x0 = step(eps, k)
        callback({"x": x, "i": i, "sigma": 0, "sigma_hat": 0, "denoised": x0})
    return x


@torch.no_grad()
def unipc(
    model: Any,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    extra_args: dict,
    callback: Any,
    disable: bool,
    is_img2img: bool = False,
) -> torch.Tensor:
    """Zhao and others, 2023: predicts data, variant B(h) = h, order 3, from time 1 to 1/1000: by equal steps of time,
    or of log(alpha / sigma) where the option `uni_pc_skip_type` says logSNR.
    """
    log_alphas = model.inner_model.inner_model.alphas_cumprod.double().log() / 2
    steps, order = len(timesteps), 3
    start = (int(timesteps[-1]) + 1) / 1000 if is_img2img else 1.0
    times = [(start + (1 / 1000 - start) * i / steps) * 1000 - 1 for i in range(steps + 1)]

    def level(t: float) -> tuple[float, float, float]:
        """alpha, sigma and half the log of their squared ratio at a fractional timestep."""
        low = min(max(math.floor(t), 0), 998)
        log_alpha = float(log_alphas[low] + (t - low) * (log_alphas[low + 1] - log_alphas[low]))
        alpha, sigma = math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))
        return alpha, sigma, log_alpha - math.log(sigma)

    def data(x: torch.Tensor, i: int) -> torch.Tensor:
        alpha, sigma, _ = level(times[i])
        return (x - sigma * model(x, times[i] * x.new_ones(len(x)), **extra_args)) / alpha

    if getattr(shared.opts, "uni_pc_skip_type", "time_uniform") == "logSNR":
        times = _evenly_by_half([level(float(t))[2] for t in range(1000)], level(times[0])[2], steps)
    known = [data(x, 0)]  # the latest first
    for i in range(1, steps + 1):
        p = min(order, i, steps + 1 - i)
        sigma_0, lambda_0 = level(times[i - 1])[1:]
        alpha, sigma, lambda_1 = level(times[i])
        h = lambda_1 - lambda_0
        ratios = [(level(times[i - 1 - k])[2] - lambda_0) / h for k in range(1, p)] + [1.0]
        slopes = [(known[k] - known[0]) / ratios[k - 1] for k in range(1, p)]
        powers = torch.tensor([[ratio**k for ratio in ratios] for k in range(p)], dtype=torch.float64)
        phi, factorial, right = math.expm1(-h) / -h - 1, 1, []
        for k in range(1, p + 1):
            right.append(phi * factorial / -h)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        rights = torch.tensor(right, dtype=torch.float64)
        base = sigma / sigma_0 * x - alpha * math.expm1(-h) * known[0]

        def corrected(weights: list[float], slopes: list, base: torch.Tensor = base, f: float = alpha * h) -> Any:
            return base + f * sum((w * s for w, s in zip(weights, slopes, strict=True)), torch.zeros_like(base))

        predictor = [0.5] if p == 2 else torch.linalg.solve(powers[:-1, :-1], rights[:-1]).tolist() if p > 2 else []
        ahead = corrected(predictor, slopes)
        if i < steps:
            new = data(ahead, i)
            corrector = [0.5] if p == 1 else torch.linalg.solve(powers, rights).tolist()
            x = corrected(corrector, [*slopes, new - known[0]])
            known = [new, *known[: order - 1]]
        else:
            x = ahead
        callback({"x": x, "i": i - 1, "sigma": 0, "sigma_hat": 0, "denoised": known[0]})
    return x


def _evenly_by_half(halves: list[float], first: float, steps: int) -> list[float]:
    """Timesteps from that with `first` to 0, evenly in log(alpha / sigma), which `halves` has by timestep."""
    return [_inverse(halves, first + (halves[0] - first) * i / steps) for i in range(steps + 1)]


def _inverse(falling: list[float], value: float) -> float:
    """Where between the numbers of a falling list a value stands."""
    above = max((i for i, one in enumerate(falling) if one >= value), default=0)
    if above == len(falling) - 1:
        return float(above)
    return above + (falling[above] - value) / (falling[above] - falling[above + 1])


class NoiseOf(torch.nn.Module):
    """The checkpoint as a function of timesteps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner_model = model

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.inner_model.apply_model(x, timesteps, **kwargs)


class CFGDenoiserTimesteps(CFGDenoiser):
    mask_before_denoising = True

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = NoiseOf(shared.sd_model)
        return self.model_wrap

    def pred_x0(self, x: torch.Tensor, out: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        alpha = shared.sd_model.alphas_cumprod[sigma.long()].view(-1, 1, 1, 1)
        return (x - (1 - alpha).sqrt() * out) / alpha.sqrt()


class CompVisSampler(sd_samplers_common.Sampler):
    eta_option_field = "eta_ddim"

    def get_timesteps(self, p: Any, steps: int) -> torch.Tensor:
        """Rising, from 1; without rest 1000 / steps of them apart."""
        return (torch.arange(0, 1000, 1000 // steps) + 1).clamp(0, 999)

    def sample(self, p: Any, x: torch.Tensor, cond: Any, uncond: Any, image_conditioning: torch.Tensor) -> torch.Tensor:
        levels = {"timesteps": self.get_timesteps(p, p.steps)}
        return self.run(p, x, (cond, uncond, image_conditioning), p.steps, levels)

    def sample_img2img(
        self,
        p: Any,
        x: torch.Tensor,
        noise: torch.Tensor,
        cond: Any,
        uncond: Any,
        image_conditioning: torch.Tensor,
        steps: int | None = None,
    ) -> torch.Tensor:
        whole, last = sd_samplers_common.setup_img2img_steps(p, steps)
        timesteps = self.get_timesteps(p, whole)
        alpha = shared.sd_model.alphas_cumprod[timesteps[last]]
        noisy = x * alpha.sqrt() + noise * (1 - alpha).sqrt()
        levels = {"timesteps": timesteps[:last], "is_img2img": True}
        conds = (cond, uncond, image_conditioning)
        return self.run(p, noisy, conds, last + 1, levels, init_latent=x)


samplers_data = [
    sd_samplers_common.SamplerData(
        name, lambda func=func: CompVisSampler(func, CFGDenoiserTimesteps), [name.lower()], {}
    )
    for name, func in (("DDIM", ddim), ("PLMS", plms), ("UniPC", unipc))
]
