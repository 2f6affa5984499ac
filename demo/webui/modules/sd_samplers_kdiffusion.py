"""Samplers over noise levels: the real k-diffusion functions, Restart and LCM."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from modules import sd_samplers_common, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser

from demo.webui.real_parts import external, sampling


@torch.no_grad()
def sample_restart(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict,
    callback: Any,
    disable: bool,
    noise_sampler: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Heun's method that goes back up in noise near the end and down once more (Xu and others, 2023).

    Below 20 steps there is no way back; from 36 on there are two.
    """
    steps, legs = len(sigmas) - 1, []
    if steps >= 20:
        times = 2 if steps >= 36 else 1
        again = steps // 4 if steps >= 36 else 9
        sigmas = sampling.get_sigmas_karras(steps - again * times, sigmas[-2].item(), sigmas[0].item())
        low = int((sigmas - 0.1).abs().argmin())
        high = int((sigmas - 2.0).abs().argmin())
        down = sampling.get_sigmas_karras(again + 1, sigmas[low].item(), sigmas[high].item())[:-1]
        legs = [sigmas[: low + 1], *[down] * times, sigmas[low:]]
    else:
        legs = [sigmas]
    ones, number, last = x.new_ones(len(x)), 0, None
    for leg in legs:
        if last is not None and leg[0] > last:
            x = x + noise_sampler() * (leg[0] ** 2 - last**2) ** 0.5
        for old, new in pairwise(leg):
            denoised = model(x, old * ones, **extra_args)
            slope = sampling.to_d(x, old, denoised)
            callback({"x": x, "i": number, "sigma": new, "sigma_hat": old, "denoised": denoised})
            ahead = x + slope * (new - old)
            if new > 0:
                slope_ahead = sampling.to_d(ahead, new, model(ahead, new * ones, **extra_args))
                ahead = x + (slope + slope_ahead) / 2 * (new - old)
            x, last, number = ahead, new, number + 1
    return x


@torch.no_grad()
def sample_lcm(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict,
    callback: Any,
    disable: bool,
    noise_sampler: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Denoise wholly, then add the noise of the next level."""
    for i, (now, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, now * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": now, "sigma_hat": now, "denoised": denoised})
        x = denoised + following * noise_sampler() if following > 0 else denoised
    return x


class LCMDenoiser(external.DiscreteEpsDDPMDenoiser):
    """Knows every 20th timestep only: 19, 39, ... 999, those that LCMs were trained on."""

    skip = 20

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.alphas_cumprod[self.skip - 1 :: self.skip], quantize=True)

    def get_eps(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.inner_model.apply_model(*args, **kwargs)

    def sigma_to_t(self, sigma: torch.Tensor, quantize: bool | None = None) -> torch.Tensor:
        return super().sigma_to_t(sigma, True) * self.skip + self.skip - 1

    def t_to_sigma(self, t: torch.Tensor) -> torch.Tensor:
        return super().t_to_sigma(((t - self.skip + 1) / self.skip).clamp(0, len(self.sigmas) - 1))

    def get_sigmas(self, n: int | None = None) -> torch.Tensor:
        t = torch.linspace(len(self.sigmas) * self.skip - 1, self.skip - 1, n)
        return sampling.append_zero(self.t_to_sigma(t))

    def forward(self, input: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The consistency model's output, c_skip x + c_out x0, with sigma_data 0.5 (Luo and others, 2023)."""

        def wide(values: torch.Tensor) -> torch.Tensor:
            return values.view(-1, 1, 1, 1)

        t = self.sigma_to_t(sigma)
        c_out, c_in = self.get_scalings(sigma)
        x0 = input + self.get_eps(input * wide(c_in), t, **kwargs) * wide(c_out)
        scaled = wide(t.float()) * 10
        return x0 * scaled / (scaled**2 + 0.25) ** 0.5 + input * 0.25 / (scaled**2 + 0.25)


class CFGDenoiserKDiffusion(CFGDenoiser):
    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = external.CompVisDenoiser(shared.sd_model)
        return self.model_wrap


class CFGDenoiserLCM(CFGDenoiser):
    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = LCMDenoiser(shared.sd_model)
        return self.model_wrap


class KDiffusionSampler(sd_samplers_common.Sampler):
    """Samplers whose `model` takes x as data plus sigma times noise."""

    @property
    def _wrap(self) -> Any:
        return self.model_wrap_cfg.inner_model

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        """[steps + 1], falling, the last one zero."""
        options = self.config.options
        drop = bool(options.get("discard_next_to_last_sigma"))
        name = (p.scheduler or "Automatic").lower()
        if name == "automatic":
            name = options.get("scheduler", "uniform")
        elif not p.is_hr_pass:
            p.extra_generation_params["Schedule type"] = p.scheduler
        made = getattr(sampling, f"get_sigmas_{name}", None)
        if made is None:
            sigmas = self._wrap.get_sigmas(steps + drop)
        else:
            sigmas = made(steps + drop, self._wrap.sigmas[0].item(), self._wrap.sigmas[-1].item())
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if drop else sigmas

    def sample(self, p: Any, x: torch.Tensor, cond: Any, uncond: Any, image_conditioning: torch.Tensor) -> torch.Tensor:
        """From pure noise x [B, 4, h, w] of size 1."""
        sigmas = self.get_sigmas(p, p.steps)
        levels = {
            "sigmas": sigmas,
            "n": len(sigmas) - 1,
            "sigma_min": self._wrap.sigmas[0].item(),
            "sigma_max": self._wrap.sigmas[-1].item(),
        }
        return self.run(p, x * sigmas[0], (cond, uncond, image_conditioning), p.steps, levels)

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
        """From a latent x with noise put on it."""
        whole, last = sd_samplers_common.setup_img2img_steps(p, steps)
        sigmas = self.get_sigmas(p, whole)[whole - last - 1 :]
        levels = {
            "sigmas": sigmas,
            "n": len(sigmas) - 1,
            "sigma_min": sigmas[-2].item(),
            "sigma_max": sigmas[0].item(),
        }
        conds = (cond, uncond, image_conditioning)
        return self.run(p, x + noise * sigmas[0], conds, last + 1, levels, init_latent=x)

    def noise_sampler(self, p: Any, x: torch.Tensor, noise_levels: dict[str, Any]) -> Callable[..., torch.Tensor]:
        if not self.config.options.get("brownian_noise"):
            return super().noise_sampler(p, x, noise_levels)
        sigmas = noise_levels["sigmas"]
        return sampling.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=list(p.seeds))


_SDE = {"brownian_noise": True, "scheduler": "exponential"}
_SECOND = {"second_order": True, "scheduler": "karras"}
_DPM2 = {**_SECOND, "discard_next_to_last_sigma": True}

samplers_data = [
    sd_samplers_common.SamplerData(
        name, lambda func=func, denoiser=denoiser: KDiffusionSampler(func, denoiser), [alias], options
    )
    for name, func, alias, options, denoiser in (
        ("DPM++ 2M", sampling.sample_dpmpp_2m, "k_dpmpp_2m", {"scheduler": "karras"}, CFGDenoiserKDiffusion),
        (
            "DPM++ SDE",
            sampling.sample_dpmpp_sde,
            "k_dpmpp_sde",
            {**_SECOND, "brownian_noise": True},
            CFGDenoiserKDiffusion,
        ),
        ("DPM++ 2M SDE", sampling.sample_dpmpp_2m_sde, "k_dpmpp_2m_sde", _SDE, CFGDenoiserKDiffusion),
        (
            "DPM++ 2M SDE Heun",
            sampling.sample_dpmpp_2m_sde,
            "k_dpmpp_2m_sde_heun",
            {**_SDE, "solver_type": "heun"},
            CFGDenoiserKDiffusion,
        ),
        ("DPM++ 2S a", sampling.sample_dpmpp_2s_ancestral, "k_dpmpp_2s_a", _SECOND, CFGDenoiserKDiffusion),
        (
            "DPM++ 3M SDE",
            sampling.sample_dpmpp_3m_sde,
            "k_dpmpp_3m_sde",
            {**_SDE, "discard_next_to_last_sigma": True},
            CFGDenoiserKDiffusion,
        ),
        ("Euler a", sampling.sample_euler_ancestral, "k_euler_a", {}, CFGDenoiserKDiffusion),
        ("Euler", sampling.sample_euler, "k_euler", {}, CFGDenoiserKDiffusion),
        ("LMS", sampling.sample_lms, "k_lms", {}, CFGDenoiserKDiffusion),
        ("Heun", sampling.sample_heun, "k_heun", {"second_order": True}, CFGDenoiserKDiffusion),
        ("DPM2", sampling.sample_dpm_2, "k_dpm_2", _DPM2, CFGDenoiserKDiffusion),
        ("DPM2 a", sampling.sample_dpm_2_ancestral, "k_dpm_2_a", _DPM2, CFGDenoiserKDiffusion),
        ("DPM fast", sampling.sample_dpm_fast, "k_dpm_fast", {}, CFGDenoiserKDiffusion),
        ("DPM adaptive", sampling.sample_dpm_adaptive, "k_dpm_ad", {}, CFGDenoiserKDiffusion),
        ("Restart", sample_restart, "restart", _SECOND, CFGDenoiserKDiffusion),
        ("LCM", sample_lcm, "k_lcm", {}, CFGDenoiserLCM),
    )
]
