"""A generation: from the wishes in `p` to pictures, with the scripts' hooks in the host's order."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from modules import (
    devices,
    embedded,
    extra_networks,
    images,
    prompt_parser,
    rng,
    scripts,
    sd_model,
    sd_models,
    sd_samplers,
    sd_unet,
    shared,
)
from modules.shared import opts, state

opt_C = 4
opt_f = 8
VERSION = embedded.table.version


@dataclass(repr=False)
class StableDiffusionProcessing:
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

    def conditioning(
        self, prompts: list, negatives: list, width: int, height: int, steps: int, cfg_scale: float
    ) -> tuple[Any, Any]:
        """cond and uncond, scheduled over `steps` evaluations; uncond is None where the host leaves it out."""
        positive = prompt_parser.SdConditioning(prompts, width, height)
        negative = prompt_parser.SdConditioning(negatives, width, height)
        cond = prompt_parser.get_multicond_learned_conditioning(shared.sd_model, positive, steps)
        if cfg_scale == 1 and not embedded.table.uncond_at_cfg_1:
            return cond, None
        return cond, prompt_parser.get_learned_conditioning(shared.sd_model, negative, steps)

    def setup_conds(self) -> None:
        config = sd_samplers.find_sampler_config(self.sampler_name)
        total = config.total_steps(self.steps) if config else self.steps
        self.step_multiplier = total // self.steps
        self.firstpass_steps = total
        self.c, self.uc = self.conditioning(
            self.prompts, self.negative_prompts, self.width, self.height, total, self.cfg_scale
        )

    def get_conds(self) -> tuple[Any, Any]:
        return self.c, self.uc

    def image_conditioning_for(self, latent: torch.Tensor, source: Any = None, mask: Any = None) -> torch.Tensor:
        """Further channels for an inpainting checkpoint [B, 5, h, w]: mask and masked picture; else a dummy."""
        if not sd_model.takes_masks(shared.sd_model):
            return latent.new_zeros(latent.shape[0], 5, 1, 1)
        height, width = (side * opt_f for side in latent.shape[-2:])
        if source is None:
            source = latent.new_full((1, 3, height, width), 0.5)
        wanted = latent.new_ones(1, 1, *latent.shape[-2:]) if mask is None else mask.expand(1, 1, -1, -1)
        grey = torch.nn.functional.interpolate(wanted, size=(height, width))
        masked = shared.sd_model.encode_first_stage((source * (1 - grey) + 0.5 * grey) * 2 - 1)
        return torch.cat([wanted, masked], 1).expand(latent.shape[0], -1, -1, -1)

    def init(self, all_prompts: list, all_seeds: list, all_subseeds: list) -> None:
        """Prepare for all batches."""

    def sample(self, conditioning: Any, unconditional_conditioning: Any) -> torch.Tensor:
        """One batch of latents."""
        raise NotImplementedError

    def before_sampling(self, x: torch.Tensor, noise: torch.Tensor, c: Any, uc: Any) -> None:
        sd_model.begin_pass(shared.sd_model)
        for _ in range(embedded.table.hires_announcements if self.is_hr_pass else 1):
            self._announce_sampling(x, noise, c, uc)

    def _announce_sampling(self, x: torch.Tensor, noise: torch.Tensor, c: Any, uc: Any) -> None:
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=x, noise=noise, c=c, uc=uc)

    def close(self) -> None:
        self.sampler = self.c = self.uc = None


class Processed:
    """The result."""

    def __init__(
        self, p: StableDiffusionProcessing, images_list: list, seed: int = -1, info: str = "",
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
            "prompt": self.prompt, "all_prompts": self.all_prompts, "negative_prompt": self.negative_prompt,
            "seed": self.seed, "all_seeds": self.all_seeds, **self._wishes,
            "sd_model_name": shared.sd_model.sd_checkpoint_info.name_for_extra,
            "extra_generation_params": self.extra_generation_params,
            "index_of_first_image": self.index_of_first_image, "infotexts": self.infotexts, "version": VERSION,
        }
        return json.dumps(known, default=lambda _: None)


def quote(value: Any) -> str:
    """A value as an infotext can hold it."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


def create_infotext(p: StableDiffusionProcessing, prompts: list, seeds: list, index: int = 0) -> str:
    """The text under a picture and in its file."""
    info = shared.sd_model.sd_checkpoint_info
    params = {
        "Steps": p.steps, "Sampler": p.sampler_name, "CFG scale": p.cfg_scale, "Seed": seeds[index],
        "Size": f"{p.width}x{p.height}", "Model hash": info.shorthash, "Model": info.name_for_extra,
        "Denoising strength": p.denoising_strength, "NGMS": p.s_min_uncond or None,
        **p.extra_generation_params, "Version": VERSION,
    }
    listed = ", ".join(f"{key}: {quote(value)}" for key, value in params.items() if value is not None)
    negative = p.negative_prompts[index]
    return "\n".join([prompts[index], *([f"Negative prompt: {negative}"] if negative else []), listed]).strip()


def fix_seed(p: StableDiffusionProcessing) -> None:
    """A drawn seed where none is asked for."""
    p.seed = int(p.seed) if p.seed is not None and int(p.seed) >= 0 else random.randrange(2**32)


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Make the pictures. The caller holds the queue's lock and has begun a job."""
    if p.scripts is not None:
        p.scripts.before_process(p)
    # A key that the options do not hold yet is not put back afterwards: the host's own behaviour.
    stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
    try:
        if p.override_settings.get("sd_model_checkpoint") not in sd_models.checkpoint_aliases:
            p.override_settings.pop("sd_model_checkpoint", None)
        for key, value in p.override_settings.items():
            opts.set(key, value, is_api=True, run_callbacks=False)
        # Also brings the main checkpoint back after a refiner.
        sd_models.reload_model_weights()
        return _process_images_inner(p)
    finally:
        if p.override_settings_restore_afterwards:
            for key, value in stored.items():
                setattr(opts, key, value)


def _process_images_inner(p: StableDiffusionProcessing) -> Processed:
    if p.refiner_checkpoint not in (None, "", "None", "none"):
        p.refiner_checkpoint_info = sd_models.get_closet_checkpoint_match(p.refiner_checkpoint)
        if p.refiner_checkpoint_info is None:
            raise ValueError(f"Could not find checkpoint with name {p.refiner_checkpoint}")
    fix_seed(p)
    p.setup_prompts()
    p.all_seeds = [p.seed + i for i in range(len(p.all_prompts))]
    p.all_subseeds = [max(p.subseed, 0) + i for i in range(len(p.all_prompts))]
    if p.scripts is not None:
        p.scripts.process(p)
    done: list[Any] = []
    infotexts: list[str] = []
    with torch.no_grad():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        sd_unet.apply_unet()
        if state.job_count == -1:
            state.job_count = p.n_iter
        for n in range(p.n_iter):
            p.iteration = n
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            sd_models.reload_model_weights()
            _batch(p, n, done, infotexts)
            state.nextjob()
    result = Processed(p, done, p.all_seeds[0], infotexts[0] if infotexts else "", infotexts)
    if p.scripts is not None:
        p.scripts.postprocess(p, result)
        result.comments = "".join(f"{comment}\n" for comment in p.comments)
    return result


def _batch(p: StableDiffusionProcessing, n: int, done: list[Any], infotexts: list[str]) -> None:
    part = slice(n * p.batch_size, (n + 1) * p.batch_size)
    p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
    p.seeds, p.subseeds = p.all_seeds[part], p.all_subseeds[part]
    p.rng = rng.ImageRNG((opt_C, p.height // opt_f, p.width // opt_f), p.seeds)
    told = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
    runner = p.scripts
    if runner is not None:
        runner.before_process_batch(p, **told)
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    if runner is not None:
        runner.process_batch(p, **told)
    p.setup_conds()
    if p.n_iter > 1:
        state.job = f"Batch {n + 1} out of {p.n_iter}"

    samples = p.sample(p.c, p.uc)
    if runner is not None:
        arguments = scripts.PostSampleArgs(samples)
        runner.post_sample(p, arguments)
        samples = arguments.samples
    decoded = shared.sd_model.decode_first_stage(samples)
    devices.test_for_nans(decoded, "vae")
    decoded = ((decoded + 1) / 2).clamp(0, 1)
    if runner is not None:
        runner.postprocess_batch(p, images=decoded, batch_number=n)
        listed = scripts.PostprocessBatchListArgs(list(decoded))
        runner.postprocess_batch_list(p, listed, batch_number=n)
        decoded = listed.images
    for i, sample in enumerate(decoded):
        p.batch_index = i
        image = _finish(p, i, images.to_image(sample))
        infotexts.append(create_infotext(p, p.prompts, p.seeds, i))
        image.info["parameters"] = infotexts[-1]
        done.append(image)


def _finish(p: StableDiffusionProcessing, index: int, image: Any) -> Any:
    """The hooks of one picture, and what lay outside an inpainting mask."""
    if p.scripts is None:
        return image
    arguments = scripts.PostprocessImageArgs(image)
    p.scripts.postprocess_image(p, arguments)
    overlay = p.overlay_images[index] if p.overlay_images else None
    mask = scripts.PostProcessMaskOverlayArgs(index, getattr(p, "mask_for_overlay", None), overlay)
    p.scripts.postprocess_maskoverlay(p, mask)
    image = arguments.image
    if mask.overlay_image is not None:
        # Where the mask is white the new picture shows.
        image = images.Image.composite(image, mask.overlay_image, mask.mask_for_overlay.resize(image.size))
    arguments = scripts.PostprocessImageArgs(image)
    p.scripts.postprocess_image_after_composite(p, arguments)
    return arguments.image


# The two kinds live in their own room; extensions look for them here.
from modules.processing_kinds import (  # noqa: E402
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
)

__all__ = [
    "Processed", "StableDiffusionProcessing", "StableDiffusionProcessingImg2Img", "StableDiffusionProcessingTxt2Img",
    "create_infotext", "process_images",
]
