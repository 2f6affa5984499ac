"""AUTOMATIC1111: the passes that a page's controls or an API's request ask for, before any of them runs.

Facts of the host: a sampler can be made for a loaded checkpoint at any time and tells its schedule for any `p` and
number of steps; the first pass runs all of it, img2img and hires passes run its end (`setup_img2img_steps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from modules import shared

from ...plan.importance import Nature
from ...plan.preview import PassAhead
from ...settings.fields import SettingsError
from ...unet.ldm import numbers_per_place
from ..checkpoint import checkpoint_of
from .schedule import adds_noise, counts_timesteps, is_unipc, replaces_noise, schedule_of, sigma_of, spread

try:
    from modules import devices
except ImportError:
    devices = None
try:
    from modules import sd_samplers
    from modules.sd_samplers_common import setup_img2img_steps
except ImportError:  # a host that makes its samplers in another way: nothing is foreseen
    sd_samplers = setup_img2img_steps = None
try:
    from modules.sd_models import model_data
except ImportError:  # an older host: its model is a plain attribute
    model_data = None


PIXELS = 8
"""A side of a place of the latent."""


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
    width: int = 512
    height: int = 512
    batch_size: int = 1
    hr_scale: float = 2.0
    hr_resize_x: int = 0
    hr_resize_y: int = 0

    def size(self, hires: bool) -> tuple[float, float]:
        """Width and height of a pass's pictures, in pixels."""
        if not hires:
            return self.width, self.height
        x, y = self.hr_resize_x, self.hr_resize_y
        if not x and not y:
            return self.width * self.hr_scale, self.height * self.hr_scale
        return x or y * self.width / self.height, y or x * self.height / self.width


WHOLE = {
    "steps": (1, 150),
    "hr_second_pass_steps": (0, 150),
    "width": (1, 16384),
    "height": (1, 16384),
    "batch_size": (1, 1024),
    "hr_resize_x": (0, 16384),
    "hr_resize_y": (0, 16384),
}
LIMITS = {**WHOLE, "denoising_strength": (0, 1), "hr_scale": (1, 16)}
"""The ranges of the host's own sliders, or what is sure to be a mistake where its API takes more."""


def foresee(values: Mapping[str, Any]) -> list[PassAhead]:
    """`passes_ahead` of plain values by the names of `Request`; others are ignored, absent ones at their default.

    Raises `SettingsError` for a value that the host would not take either.
    """
    if sd_samplers is None or setup_img2img_steps is None:
        return []
    known = {one.name for one in fields(Request)}
    given = {name: value for name, value in values.items() if name in known and value is not None}
    for name, (low, high) in LIMITS.items():
        value, whole = given.get(name, low), name in WHOLE
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if not number or not low <= value <= high or (whole and value != int(value)):
            raise SettingsError(name, value, f"a {'whole ' if whole else ''}number from {low} to {high}")
        if whole and name in given:
            given[name] = int(value)
    for name in ("enable_hr", "img2img"):
        if not isinstance(given.get(name, False), bool):
            raise SettingsError(name, given[name], "true or false")
    for name in ("sampler_name", "hr_sampler_name"):
        if name in given:
            given[name] = _known_sampler(name, given[name])
    return passes_ahead(Request(**{"steps": 50, **given}))


def _known_sampler(field: str, name: Any) -> str:
    """The sampler's own name; older names that hold a schedule's are left to the host."""
    known = getattr(sd_samplers, "samplers_map", {})
    found = known.get(str(name).lower())
    if found is not None:
        return found
    if any(str(name).lower().startswith(f"{one} ") for one in known):
        return str(name)
    raise SettingsError(field, name, "one of " + ", ".join(dict.fromkeys(known.values())))


def loaded_model() -> Any:
    """The checkpoint, or None where none is loaded; never loads one."""
    return shared.sd_model if model_data is None else model_data.sd_model


def branches() -> int:
    """How many the loaded checkpoint's UNet has; 0 where none is loaded."""
    return len(_output_blocks(loaded_model()) or ())


def _unet(model: Any) -> Any:
    forge = getattr(getattr(model, "forge_objects", None), "unet", None)  # Forge and its kin: a patcher's model
    return getattr(getattr(model if forge is None else forge, "model", None), "diffusion_model", None)


def loaded_unet() -> Any:
    """The loaded checkpoint's UNet, or None."""
    return _unet(loaded_model())


def _output_blocks(model: Any) -> Any:
    return getattr(_unet(model), "output_blocks", None)


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
        steps=request.steps,
        denoising_strength=request.denoising_strength,
        is_hr_pass=hires,
        sd_model=model,
        sampler_name=request.sampler_name,
        scheduler=request.scheduler or "Automatic",
        extra_generation_params={},
        sampler_noise_scheduler_override=None,
        hr_second_pass_steps=request.hr_second_pass_steps,
        hr_sampler_name=request.hr_sampler_name,
    )
    if sd_samplers.find_sampler_config(p.sampler_name) is None:  # an older name, that of a sampler and a schedule
        getattr(sd_samplers, "fix_p_invalid_sampler_and_scheduler", lambda _: None)(p)
    p.hr_scheduler = request.hr_scheduler or p.scheduler
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
    blocks = _output_blocks(model)
    kept = _feature_bytes(model, request, hires)
    if blocks is None or steps < 1:
        return PassAhead(hires, total, early=True)
    try:
        p.sampler = sd_samplers.create_sampler(p.sampler_name, model)
        _as_configured(p.sampler)
        sigmas = _sigmas(p, model, steps, last, total)
        nature = Nature(adds_noise(p), replaces_noise(p))
        named = (*checkpoint_of(model), p.sampler_name)
        return PassAhead(hires, total, sigmas, len(blocks), nature, *named, feature_bytes=kept)
    except Exception:  # a sampler of another extension
        return PassAhead(hires, total, None, len(blocks), early=True, feature_bytes=kept)


def _feature_bytes(model: Any, request: Request, hires: bool) -> tuple[int, ...]:
    """By branch, for all rows of a pass, with and without the prompt (even where CFG 1 leaves half of them out);
    prompts of unequal length, tiles and regions keep the same in parts.
    """
    unet, (width, height) = _unet(model), request.size(hires)
    rows, places = 2 * request.batch_size, (width // PIXELS) * (height // PIXELS)
    # The host sets the type when it loads a checkpoint.
    size = torch.empty(0, dtype=getattr(devices, "dtype_unet", torch.float16)).element_size()
    return tuple(int(rows * places * numbers * size) for numbers in numbers_per_place(unet))


def _sigmas(p: Any, model: Any, steps: int, last: int | None, total: int) -> tuple[float, ...] | None:
    by_timesteps = counts_timesteps(p.sampler.model_wrap_cfg)
    level = sigma_of(model, by_timesteps)
    sigmas = [level(value) for value in schedule_of(p.sampler, p, steps, last, by_timesteps)]
    if not sigmas or any(sigma is None for sigma in sigmas):
        return None
    start = 0
    if last is not None and not is_unipc(p.sampler):  # timestep samplers leave out the highest of the `last + 1`
        start = len(sigmas) - last + 1 if by_timesteps else len(sigmas) - last - 1
    if not 0 <= start < len(sigmas):
        return None
    found = spread(np.log([sigma for sigma in sigmas if sigma is not None]), start, total)
    return None if found is None else tuple(found)


def _as_configured(sampler: Any) -> None:
    """A sampler learns its eta and its churn from the host's options when a run begins; this one never runs."""
    option = getattr(sampler, "eta_option_field", None)
    if option is not None and getattr(sampler, "eta", None) is None:
        sampler.eta = getattr(shared.opts, option, 0.0)
    for name in ("s_churn", "s_tmin", "s_tmax"):
        value = getattr(shared.opts, name, None)
        if value:
            setattr(sampler, name, value)
