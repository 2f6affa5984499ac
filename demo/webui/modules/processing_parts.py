"""What is wanted of a generation, and what came out: the same on every host."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import embedded, shared
from modules.shared import opts

VERSION = embedded.table.version


@dataclass(repr=False)
class Wishes:
    """What is wanted, and what is known of it so far. Sizes in pixels."""

    sd_model: Any = None
    prompt: Any = ""
    negative_prompt: Any = ""
    styles: list | None = None
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    denoising_strength: float | None = None
    eta: float | None = None
    s_min_uncond: float | None = None
    tiling: bool = False
    extra_generation_params: dict = field(default_factory=dict)
    override_settings: dict = field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    outpath_grids: str = str(Path(__file__).parents[2] / "out" / "grids")

    def __post_init__(self) -> None:
        self.scripts_value: Any = None
        self.script_args_value: Any = None
        self.scripts_setup_complete = False
        self.is_api = False
        self.is_hr_pass = False
        self.iteration = self.batch_index = 0
        self.sampler: Any = None
        self.rng: Any = None
        self.comments: dict[str, int] = {}
        self.refiner_checkpoint_info: Any = None
        self.c: Any = None
        self.uc: Any = None
        self.step_multiplier = 1
        self.firstpass_steps: int | None = None
        self.paste_to = self.color_corrections = self.overlay_images = None
        self.extra_network_data: dict = {}
        for name in ("prompts", "negative_prompts", "seeds", "subseeds"):
            setattr(self, name, None)
            setattr(self, f"all_{name}", None)
        if self.s_min_uncond is None:
            self.s_min_uncond = opts.s_min_uncond

    @property
    def sd_model(self) -> Any:  # noqa: F811 - the constructor takes one, as the host's does
        return shared.sd_model

    @sd_model.setter
    def sd_model(self, value: Any) -> None:
        """The loaded checkpoint is the host's to choose."""

    @property
    def scripts(self) -> Any:
        return self.scripts_value

    @scripts.setter
    def scripts(self, value: Any) -> None:
        self.scripts_value = value
        self._setup_scripts_once()

    @property
    def script_args(self) -> Any:
        return self.script_args_value

    @script_args.setter
    def script_args(self, value: Any) -> None:
        self.script_args_value = value
        self._setup_scripts_once()

    def _setup_scripts_once(self) -> None:
        if self.scripts_value and self.script_args_value and not self.scripts_setup_complete:
            self.scripts_setup_complete = True
            self.scripts_value.setup_scrips(self, is_ui=not self.is_api)

    def comment(self, text: str) -> None:
        """A line below the picture, on the page only."""
        self.comments[text] = 1

    def setup_prompts(self) -> None:
        def as_list(value: Any) -> list[str]:
            return value if isinstance(value, list) else [value] * (self.batch_size * self.n_iter)

        self.all_prompts, self.all_negative_prompts = as_list(self.prompt), as_list(self.negative_prompt)

    def close(self) -> None:
        self.sampler = self.c = self.uc = None


class Processed:
    """The result."""

    def __init__(
        self,
        p: Wishes,
        images_list: list,
        seed: int = -1,
        info: str = "",
        infotexts: list[str] | None = None,
    ) -> None:
        self.images, self.prompt, self.negative_prompt = images_list, p.prompt, p.negative_prompt
        self.seed, self.info, self.infotexts = seed, info, infotexts or [info]
        self.all_prompts, self.all_seeds = p.all_prompts, p.all_seeds
        self.extra_generation_params = p.extra_generation_params
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.index_of_first_image = 0
        self._wishes = {
            name: getattr(p, name)
            for name in ("width", "height", "sampler_name", "cfg_scale", "steps", "batch_size", "denoising_strength")
        }

    def js(self) -> str:
        """What the API gives as `info`."""
        known = {
            "prompt": self.prompt,
            "all_prompts": self.all_prompts,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "all_seeds": self.all_seeds,
            **self._wishes,
            "sd_model_name": shared.sd_model.sd_checkpoint_info.name_for_extra,
            "extra_generation_params": self.extra_generation_params,
            "index_of_first_image": self.index_of_first_image,
            "infotexts": self.infotexts,
            "version": VERSION,
        }
        return json.dumps(known, default=lambda _: None)


def quote(value: Any) -> str:
    """A value as an infotext can hold it."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


def create_infotext(p: Wishes, prompts: list, seeds: list, index: int = 0) -> str:
    """The text under a picture and in its file."""
    info = shared.sd_model.sd_checkpoint_info
    params = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        "CFG scale": p.cfg_scale,
        "Seed": seeds[index],
        "Size": f"{p.width}x{p.height}",
        "Model hash": info.shorthash,
        "Model": info.name_for_extra,
        "Denoising strength": p.denoising_strength,
        "NGMS": p.s_min_uncond or None,
        **p.extra_generation_params,
        "Version": VERSION,
    }
    listed = ", ".join(f"{key}: {quote(value)}" for key, value in params.items() if value is not None)
    negative = p.negative_prompts[index]
    return "\n".join([prompts[index], *([f"Negative prompt: {negative}"] if negative else []), listed]).strip()


def get_fixed_seed(seed: Any) -> Any:
    """A drawn seed where none is asked for; a list, as some scripts set it, stays."""
    if isinstance(seed, list):
        return seed
    return int(seed) if seed is not None and int(seed) >= 0 else random.randrange(2**32)


def fix_seed(p: Wishes) -> None:
    p.seed = get_fixed_seed(p.seed)
