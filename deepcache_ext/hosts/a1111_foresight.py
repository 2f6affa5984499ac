"""AUTOMATIC1111: the passes that a page's controls or an API's request ask for, before any of them runs.

Facts of the host: a sampler can be made for a loaded checkpoint at any time and tells its schedule for any `p` and
number of steps; the first pass runs all of it, img2img and hires passes run its end (`setup_img2img_steps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from modules import sd_samplers, shared

from ..foresight import PassAhead
from .a1111_schedule import adds_noise, counts_timesteps, schedule_of, sigma_of, spread

try:
    from modules.sd_samplers_common import setup_img2img_steps
except ImportError:
    setup_img2img_steps = None
try:
    from modules.sd_models import model_data
except ImportError:  # an older host: its model is a plain attribute
    model_data = None


@dataclass(frozen=True)
class Request:
    """What is asked for, by the names of the host's API. `denoising_strength` counts in img2img and hires passes."""

    steps: int
    sampler_name: str = "Euler"
    scheduler: str | None = None
    img2img: bool = False
    denoising_strength: float = 0.75
    enable_hr: bool = False
    hr_second_pass_steps: int = 0
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None


def loaded_model() -> Any:
    """The checkpoint, or None where none is loaded; never loads one."""
    return shared.sd_model if model_data is None else model_data.sd_model


def passes_ahead(request: Request) -> list[PassAhead]:
    """The passes of one picture, in their order. Without a loaded checkpoint only their numbers of steps are known.

    Raises `ValueError` for a sampler that the host does not have.
    """
    passes = [_pass_ahead(request, hires=False)]
    if request.enable_hr and not request.img2img:
        passes.append(_pass_ahead(request, hires=True))
    return passes


def _pass_ahead(request: Request, hires: bool) -> PassAhead:
    model = loaded_model()
    p = SimpleNamespace(
        steps=request.steps, denoising_strength=request.denoising_strength, is_hr_pass=hires, sd_model=model,
        sampler_name=request.sampler_name, scheduler=request.scheduler, extra_generation_params={},
        sampler_noise_scheduler_override=None, hr_second_pass_steps=request.hr_second_pass_steps,
        hr_sampler_name=request.hr_sampler_name, hr_scheduler=request.hr_scheduler or request.scheduler,
    )
    if hasattr(sd_samplers, "fix_p_invalid_sampler_and_scheduler"):
        sd_samplers.fix_p_invalid_sampler_and_scheduler(p)
    if hires and request.hr_sampler_name:
        p.sampler_name = request.hr_sampler_name
    config = sd_samplers.find_sampler_config(p.sampler_name)
    if config is None:
        raise ValueError(f"the host has no sampler {p.sampler_name!r}")
    steps, last, cut = request.steps, None, hires or request.img2img
    if cut:
        own = (request.hr_second_pass_steps or request.steps) if hires else None
        steps, last = setup_img2img_steps(p, own)
    total = config.total_steps(steps if last is None else last + 1)
    blocks = getattr(getattr(getattr(model, "model", None), "diffusion_model", None), "output_blocks", None)
    if blocks is None or steps < 1:
        return PassAhead(hires, total)
    try:
        p.sampler = sd_samplers.create_sampler(p.sampler_name, model)
        _as_configured(p.sampler)
        sigmas = _sigmas(p, model, steps, last, total)
        return PassAhead(hires, total, sigmas, len(blocks), adds_noise(p))
    except Exception:  # a sampler of another extension: the run cannot tell its noise levels either
        return PassAhead(hires, total, None, len(blocks))


def _sigmas(p: Any, model: Any, steps: int, last: int | None, total: int) -> tuple[float, ...] | None:
    by_timesteps = counts_timesteps(p.sampler.model_wrap_cfg)
    level = sigma_of(model, by_timesteps)
    sigmas = [level(value) for value in schedule_of(p.sampler, p, steps, by_timesteps)]
    if not sigmas or any(sigma is None for sigma in sigmas):
        return None
    start = 0
    if last is not None:  # timestep samplers leave out the highest of the `last + 1`
        start = len(sigmas) - last + 1 if by_timesteps else len(sigmas) - last - 1
    if not 0 <= start < len(sigmas):
        return None
    found = spread(np.log([sigma for sigma in sigmas if sigma is not None]), start, total)
    return None if found is None else tuple(found)


def _as_configured(sampler: Any) -> None:
    """A sampler learns its eta from the host's options when a run begins; this one never runs."""
    option = getattr(sampler, "eta_option_field", None)
    if option is not None and getattr(sampler, "eta", None) is None:
        sampler.eta = getattr(shared.opts, option, 0.0)
