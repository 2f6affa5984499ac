"""The list of samplers."""

from __future__ import annotations

from typing import Any

from modules import sd_samplers_kdiffusion, sd_samplers_timesteps
from modules.sd_samplers_common import SamplerData

all_samplers: list[SamplerData] = [*sd_samplers_kdiffusion.samplers_data, *sd_samplers_timesteps.samplers_data]
all_samplers_map = {sampler.name: sampler for sampler in all_samplers}
samplers_map = {name.lower(): s.name for s in all_samplers for name in (s.name, *s.aliases)}
schedulers = ("Automatic", "Uniform", "Karras", "Exponential", "Polyexponential")


def visible_sampler_names() -> list[str]:
    return [sampler.name for sampler in all_samplers]


def find_sampler_config(name: str | None) -> SamplerData | None:
    return all_samplers_map.get(name) if name is not None else all_samplers[0]


def create_sampler(name: str, model: Any) -> Any:
    """A fresh sampler for one pass."""
    config = find_sampler_config(name)
    if config is None:
        raise ValueError(f"bad sampler name: {name}")
    sampler = config.constructor()
    sampler.config = config
    return sampler


def fix_p_invalid_sampler_and_scheduler(p: Any) -> None:
    """Old names such as "DPM++ 2M Karras": sampler and schedule in one."""
    for scheduler in schedulers:
        if p.sampler_name not in all_samplers_map and p.sampler_name.endswith(f" {scheduler}"):
            p.sampler_name, p.scheduler = p.sampler_name.removesuffix(f" {scheduler}"), scheduler
