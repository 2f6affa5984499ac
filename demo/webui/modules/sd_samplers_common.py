"""What all samplers share: the run itself, its counters, and the refiner's swap."""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from modules import embedded, extra_networks, sd_models, shared
from modules.shared import opts, state
from tqdm import tqdm

CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


class InterruptedException(BaseException):
    """The user wants to stop. No `Exception`: nothing on its way may catch it."""


class SamplerData(namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])):
    """One entry of the list of samplers."""

    def total_steps(self, steps: int) -> int:
        """Evaluations that the host expects for so many steps."""
        return steps * 2 if self.options.get("second_order") else steps


def setup_img2img_steps(p: Any, steps: int | None = None) -> tuple[int, int]:
    """Steps of the whole schedule, and how many of its last ones (less one) will be run."""
    if opts.img2img_fix_steps or steps is not None:
        requested = steps or p.steps
        whole = int(requested / min(p.denoising_strength, 0.999)) if p.denoising_strength > 0 else 0
        return whole, requested - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)


def apply_refiner(denoiser: Any, sigma: torch.Tensor) -> bool:
    """Swap to the refiner's checkpoint once its share of the noise levels is reached; whether it did."""
    p = denoiser.p
    info = p.refiner_checkpoint_info
    if info is None or shared.sd_model.sd_checkpoint_info is info:
        return False
    by_steps = embedded.table.refiner_by_steps
    if by_steps or opts.refiner_switch_by_sample_steps:
        done = denoiser.step / denoiser.total_steps
    elif hasattr(denoiser.inner_model, "sigmas"):
        done = (999 - int(torch.argmin(torch.abs(denoiser.inner_model.sigmas - sigma.max())))) / 1000
    else:  # a timestep sampler
        done = (999 - int(sigma.max())) / 1000
    if p.refiner_switch_at is not None and done < p.refiner_switch_at:
        return False
    p.extra_generation_params["Refiner"] = info.short_title
    p.extra_generation_params["Refiner switch at"] = p.refiner_switch_at
    sd_models.reload_model_weights(info=info)
    if by_steps:
        extra_networks.activate(p, p.extra_network_data)
    p.setup_conds()
    denoiser.update_inner_model()
    return True


class Sampler:
    """Runs one sampling function. Subclasses know how its noise levels are named."""

    eta_option_field = "eta_ancestral"

    def __init__(self, func: Callable[..., torch.Tensor], denoiser: Any) -> None:
        self.func = func
        self.config: SamplerData | None = None  # set by sd_samplers.create_sampler
        self.last_latent: Any = None
        self.sampler_extra_args: dict[str, Any] = {}
        self.model_wrap_cfg = denoiser(self)
        self.p: Any = None
        self.eta: float | None = None
        self.s_churn = self.s_tmin = 0.0
        self.s_tmax, self.s_noise = float("inf"), 1.0

    def callback_state(self, info: dict[str, Any]) -> None:
        """A step is done: number `i`. (Hence the counter lags one evaluation behind.)"""
        state.sampling_step = info["i"]
        self.bar.update()

    def launch_sampling(self, steps: int, func: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        state.sampling_steps = steps
        state.sampling_step = 0
        with tqdm(total=steps, disable=not getattr(shared.cmd_opts, "show_steps", False)) as self.bar:
            try:
                return func()
            except InterruptedException:
                return self.last_latent

    def run(
        self,
        p: Any,
        x: torch.Tensor,
        conds: tuple[Any, Any, Any],
        steps: int,
        noise_levels: dict[str, Any],
        init_latent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sample from x [B, 4, h, w]; `conds`: cond, uncond, image cond; `noise_levels` by the function's names."""
        self.p = p
        denoiser = self.model_wrap_cfg
        denoiser.p, denoiser.step = p, 0
        denoiser.mask, denoiser.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        denoiser.init_latent = init_latent
        self.last_latent = x if init_latent is None else init_latent
        wanted = inspect.signature(self.func).parameters
        self.eta = p.eta if p.eta is not None else getattr(opts, self.eta_option_field)
        offered = {"eta": self.eta, "noise_sampler": self.noise_sampler(p, x, noise_levels), **noise_levels}
        for name in CHURN:  # of the options, where they say otherwise than k-diffusion
            value = getattr(opts, name, None)
            if value and name in wanted:
                offered[name] = value
                setattr(self, name, value)
        if self.config.options.get("solver_type"):
            offered["solver_type"] = self.config.options["solver_type"]
        self.sampler_extra_args = {
            "cond": conds[0],
            "uncond": conds[1],
            "image_cond": conds[2],
            "cond_scale": p.cfg_scale,
            "s_min_uncond": p.s_min_uncond,
        }
        result = self.launch_sampling(
            steps,
            lambda: self.func(
                denoiser,
                x,
                extra_args=self.sampler_extra_args,
                callback=self.callback_state,
                disable=True,  # k-diffusion's own bar; ours is the same for all samplers
                **{name: value for name, value in offered.items() if name in wanted},
            ),
        )
        if denoiser.padded_cond_uncond:
            p.extra_generation_params["Pad conds"] = True
        return result

    def noise_sampler(self, p: Any, x: torch.Tensor, noise_levels: dict[str, Any]) -> Callable[..., torch.Tensor]:
        """Fresh noise by picture, so that a batch gives the same pictures as one by one."""
        return lambda *_: p.rng.next()
