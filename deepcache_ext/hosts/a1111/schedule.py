"""AUTOMATIC1111's noise levels: of the evaluation at hand, and of all those to come in a pass.

Facts of the host: a sampler object makes its schedule anew from `p` and a number of steps, sigmas for k-diffusion's
samplers, timesteps for others; img2img and hires passes run the end of a longer one. Asking again changes nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from modules import shared

from ...plan.noise import MATCH, adds_noise_by_name, replaces_noise_by_name, sigma_at

try:
    from modules.sd_samplers_common import setup_img2img_steps
except ImportError:
    setup_img2img_steps = None

UNIPC_POWERS = {"time_uniform": 1, "time_quadratic": 2}
"""Of the host's option `uni_pc_skip_type`: the power of a timestep whose roots lie evenly."""


def noise_level(params: Any, p: Any) -> float | None:
    """The evaluation's sigma, as k-diffusion counts it. A1111's timestep samplers hand over a timestep instead; in
    Forge and its kin their denoiser (`classic_ddim_eps_estimation`) has made a sigma of it before it asks us.
    """
    by_timesteps = counts_timesteps(params.denoiser)
    by_timesteps = by_timesteps and not getattr(params.denoiser, "classic_ddim_eps_estimation", False)
    return sigma_of(_model_of(p), by_timesteps)(float(params.sigma.flatten()[0]))


def noise_levels(params: Any, p: Any, total: int) -> list[float] | None:
    """The sigmas of the pass's evaluations, the one at hand first; None where they cannot be told for sure.

    `total`: how many the host announces, about. Where a step has two evaluations, the second ones are taken to lie
    between the levels, in the middle of their logarithms.
    """
    try:
        schedule = _schedule(params, p)
        level = sigma_of(_model_of(p), counts_timesteps(params.denoiser))
    except Exception:  # a sampler of another extension, a host of another version
        return None
    first = noise_level(params, p)
    sigmas = [level(value) for value in schedule]
    if first is None or not sigmas or any(sigma is None for sigma in sigmas):
        return None
    logs = np.log([sigma for sigma in sigmas if sigma is not None])
    start = int(np.argmin(np.abs(logs - math.log(first))))
    if abs(math.log(first) - logs[start]) > MATCH:
        return None
    return spread(logs, start, total)


def _churn(sampler: Any, sigma: float, steps: int) -> float:
    """By how much k-diffusion raises a level before it asks, in a pass of so many steps, where the host sets `s_churn`
    (Karras et al. 2022, algorithm 2).
    """
    churn = getattr(sampler, "s_churn", 0) or 0
    function = getattr(sampler, "func", None)
    if not churn or not callable(function) or "s_churn" not in inspect.signature(function).parameters:
        return 1.0
    low, high = getattr(sampler, "s_tmin", 0) or 0, getattr(sampler, "s_tmax", 0) or math.inf
    return 1.0 + min(churn / steps, math.sqrt(2) - 1) if low <= sigma <= high else 1.0


def spread(logs: np.ndarray, start: int, total: int) -> list[float] | None:
    """Sigmas of the evaluations of a pass that runs a schedule (logarithms of its sigmas) from `start` on; None where
    `total`, the announced number, fits neither one evaluation a step nor two.
    """
    steps = len(logs) - start
    for count in (steps, 2 * steps - 1):
        if count > 0 and abs(count - total) <= 2:  # DDIM in img2img makes two fewer than announced
            between = np.interp(np.linspace(start, len(logs) - 1, count), np.arange(len(logs)), logs)
            return [float(value) for value in np.exp(between)]
    return None


def adds_noise(p: Any) -> bool:
    """Whether the sampler of the pass at hand adds fresh noise in the course of it.

    The host hands its `eta` to every sampler function that takes one (ancestral and SDE samplers, but DPM fast, DPM
    adaptive and DDIM too); others are known by name.
    """
    sampler = getattr(p, "sampler", None)
    function = getattr(sampler, "func", None)
    parameters = inspect.signature(function).parameters if callable(function) else {}
    if "s_churn" in parameters and (getattr(sampler, "s_churn", 0) or 0) > 0:
        return True
    if "eta" in parameters:
        eta = getattr(sampler, "eta", None)
        return bool((parameters["eta"].default if eta is None else eta) > 0)
    return adds_noise_by_name(_name_of(p))


def replaces_noise(p: Any) -> bool:
    """Whether the sampler of the pass at hand replaces all noise at every step, as LCM does."""
    return replaces_noise_by_name(_name_of(p))


def _name_of(p: Any) -> str:
    """The sampler's own name: in a hires pass with another sampler, p still has the first one's."""
    config = getattr(getattr(p, "sampler", None), "config", None)
    return str(getattr(config, "name", "") or getattr(p, "sampler_name", ""))


def _schedule(params: Any, p: Any) -> Sequence[float]:
    """Sigmas or timesteps of the whole schedule that this pass runs, or runs the end of; without the last zero."""
    sampler, hires = p.sampler, bool(getattr(p, "is_hr_pass", False))
    steps = (getattr(p, "hr_second_pass_steps", 0) or p.steps) if hires else p.steps
    last = None
    if getattr(params.denoiser, "init_latent", None) is not None:
        steps, last = setup_img2img_steps(p, steps if hires else None)
    return schedule_of(sampler, p, steps, last, counts_timesteps(params.denoiser))


def schedule_of(sampler: Any, p: Any, steps: int, last: int | None, by_timesteps: bool) -> list[float]:
    """Sigmas or timesteps of a whole schedule, falling, without the last one, where a pass ends (0, but for KL
    Optimal). `last`: how many of its steps a pass runs that begins with a picture, less one. UniPC's are those of that
    pass alone.
    """
    if not by_timesteps:
        own = steps if last is None else last + 1
        sigmas = _numbers(sampler.get_sigmas(p, steps))[:-1]
        return [sigma * _churn(sampler, sigma, own) for sigma in sigmas if sigma > 0]
    timesteps = _numbers(sampler.get_timesteps(p, steps))
    return _unipc(timesteps[:last], last is not None, _model_of(p)) if is_unipc(sampler) else timesteps[:0:-1]


def _numbers(values: Any) -> list[float]:
    """Of a tensor at once: each reading may wait for a device."""
    return [float(value) for value in (values.tolist() if isinstance(values, torch.Tensor) else values)]


def is_unipc(sampler: Any) -> bool:
    return getattr(getattr(sampler, "func", None), "__name__", "") == "unipc"


def _unipc(run: Sequence[float], begins_with_picture: bool, model: Any) -> list[float]:
    """UniPC takes no more from the host's timesteps than their number and, with a picture, where it begins. It ends at
    timestep 0.
    """
    begin, count = run[-1] if begins_with_picture else 999.0, len(run) + 1
    skip = getattr(shared.opts, "uni_pc_skip_type", "time_uniform")
    if skip == "logSNR":  # evenly in log(alpha / sigma)
        kept = np.asarray(model.alphas_cumprod.detach().cpu(), dtype=np.float64)
        halves, places = np.log(kept / (1 - kept)) / 2, np.arange(len(kept))
        between = np.linspace(np.interp(begin, places, halves), halves[0], count)[:-1]
        return [float(t) for t in np.interp(between, halves[::-1], places[::-1])]
    power = UNIPC_POWERS[skip]
    roots = np.linspace((begin + 1) ** (1 / power), 1.0, count)[:-1]
    return [float(root**power) - 1 for root in roots]


def counts_timesteps(denoiser: Any) -> bool:
    """Whether a sampler hands its denoiser timesteps rather than sigmas."""
    return type(denoiser).__name__ == "CFGDenoiserTimesteps"


def _model_of(p: Any) -> Any:
    return getattr(p, "sd_model", None) or shared.sd_model


def sigma_of(model: Any, by_timesteps: bool) -> Callable[[float], float | None]:
    """From a sigma, or from one of a model's timesteps, to a sigma; None for what is out of range."""
    if not by_timesteps:
        return lambda value: value if 0 < value < math.inf else None
    return lambda value: sigma_at(getattr(model, "alphas_cumprod", None), value)
