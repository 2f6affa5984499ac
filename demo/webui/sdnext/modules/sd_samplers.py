"""The list of samplers: diffusers' schedulers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
from modules.sd_model import NOISE_LEVELS


@dataclass(frozen=True)
class SamplerData:
    """One entry of the list. `options`: what its scheduler is made with."""

    name: str
    scheduler: type
    aliases: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def total_steps(self, steps: int) -> int:
        return steps


all_samplers = [
    SamplerData("Euler", diffusers.EulerDiscreteScheduler, options={"timestep_spacing": "linspace"}),
    SamplerData("Euler a", diffusers.EulerAncestralDiscreteScheduler, options={"timestep_spacing": "linspace"}),
    SamplerData("DPM++ 2M", diffusers.DPMSolverMultistepScheduler, options={"timestep_spacing": "linspace"}),
    SamplerData("UniPC", diffusers.UniPCMultistepScheduler, options={"timestep_spacing": "linspace"}),
    SamplerData(
        "DDIM",
        diffusers.DDIMScheduler,
        options={
            "timestep_spacing": "leading",
            "clip_sample": False,
            "set_alpha_to_one": False,
        },
    ),
    SamplerData("Heun", diffusers.HeunDiscreteScheduler, options={"timestep_spacing": "linspace"}),
    SamplerData("KDPM2", diffusers.KDPM2DiscreteScheduler, options={"timestep_spacing": "linspace"}),
    SamplerData("LMS", diffusers.LMSDiscreteScheduler, options={"timestep_spacing": "linspace"}),
]
all_samplers_map = {sampler.name: sampler for sampler in all_samplers}
samplers_map = {sampler.name.lower(): sampler.name for sampler in all_samplers}
schedulers = ("Automatic",)


def visible_sampler_names() -> list[str]:
    return [sampler.name for sampler in all_samplers]


def find_sampler_config(name: str | None) -> SamplerData | None:
    return all_samplers_map.get(name) if name is not None else all_samplers[0]


def create_sampler(name: str, pipe: Any) -> Any:
    """Give the pipeline a fresh scheduler of this name."""
    config = find_sampler_config(name)
    if config is None:
        raise ValueError(f"bad sampler name: {name}")
    prediction = "v_prediction" if pipe.parts.parameterization == "v" else "epsilon"
    wanted = {**NOISE_LEVELS, **config.options, "prediction_type": prediction}
    pipe.scheduler = config.scheduler(**wanted)
    return pipe.scheduler


def fix_p_invalid_sampler_and_scheduler(p: Any) -> None:
    """Names that hold a schedule's too are not known here."""
