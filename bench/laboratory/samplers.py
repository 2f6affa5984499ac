"""Samplers as the WebUIs run them: k-diffusion's own functions, and diffusers' schedulers for what it has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from demo.webui.real_parts import external, sampling
from train.learn import alphas_cumprod


class Denoiser(Protocol):
    def __call__(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        """The guided noise in x [B, c, h, w], which is scaled to size 1, at timestep t and noise level sigma."""


LEVELS = ((1 - alphas_cumprod()) / alphas_cumprod()).sqrt()
"""Sigma of each of the 1000 timesteps."""

SCHEDULE = external.DiscreteSchedule(LEVELS, quantize=False)

_DIFFUSERS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Sampler:
    """`fresh_noise`: it adds noise in the course of a run, and fewer steps give another picture."""

    name: str
    fresh_noise: bool
    sigmas: Callable[[int], list[float]]
    """The noise level of each evaluation of so many steps."""
    run: Callable[[Denoiser, torch.Tensor, int, Sequence[int]], torch.Tensor]
    """Latents from noise [B, c, h, w] of size 1, steps, and a seed for each picture's fresh noise."""


def _levels(kind: str, steps: int) -> torch.Tensor:
    """[steps + 1], falling, the last one zero."""
    if kind == "uniform":
        return SCHEDULE.get_sigmas(steps)
    made = {"karras": sampling.get_sigmas_karras, "exponential": sampling.get_sigmas_exponential}[kind]
    return made(steps, float(LEVELS[0]), float(LEVELS[-1]))


def _k_diffusion(name: str, function: Callable[..., torch.Tensor], kind: str, fresh_noise: bool = False) -> Sampler:
    def run(denoiser: Denoiser, noise: torch.Tensor, steps: int, seeds: Sequence[int]) -> torch.Tensor:
        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            level = float(sigma[0])
            return x - sigma.view(-1, 1, 1, 1) * denoiser(
                x / (level**2 + 1) ** 0.5, SCHEDULE.sigma_to_t(sigma[:1]), level
            )

        levels, more = _levels(kind, steps), {}
        if fresh_noise:
            streams = [torch.Generator().manual_seed(seed + 10**6) for seed in seeds]
            more["noise_sampler"] = lambda *_: torch.stack(
                [torch.randn(noise.shape[1:], generator=stream) for stream in streams]
            )
        return function(model, noise * levels[0], levels, disable=True, **more)

    return Sampler(name, fresh_noise, lambda steps: [float(s) for s in _levels(kind, steps)[:-1]], run)


def _diffusers(name: str, scheduler: str, **options: Any) -> Sampler:
    def made(steps: int) -> Any:
        import diffusers

        found = getattr(diffusers, scheduler)(**_DIFFUSERS, **options)
        found.set_timesteps(steps)
        return found

    def run(denoiser: Denoiser, noise: torch.Tensor, steps: int, seeds: Sequence[int]) -> torch.Tensor:
        scheduler, x = made(steps), noise
        for t in scheduler.timesteps:
            said = denoiser(x, t.float().view(1), float(LEVELS[int(t)]))
            x = scheduler.step(said, t, x, return_dict=False)[0]
        return x

    return Sampler(name, False, lambda steps: [float(LEVELS[int(t)]) for t in made(steps).timesteps], run)


SAMPLERS = {
    one.name: one
    for one in (
        _k_diffusion("Euler", sampling.sample_euler, "uniform"),
        _k_diffusion("DPM++ 2M Karras", sampling.sample_dpmpp_2m, "karras"),
        _k_diffusion("Euler a", sampling.sample_euler_ancestral, "uniform", fresh_noise=True),
        _k_diffusion("DPM++ 2M SDE", sampling.sample_dpmpp_2m_sde, "exponential", fresh_noise=True),
        _diffusers("UniPC", "UniPCMultistepScheduler"),
        _diffusers("DDIM", "DDIMScheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )
}
"""The schedules are those the WebUIs choose by themselves."""
