"""A generation as SD.Next makes it: its hooks in its order around calls of a diffusers pipeline."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from modules import images, rng, script_callbacks, scripts, sd_models, shared
from modules.processing_diffusers import Interrupted, remember, restore_state, run_pass
from modules.processing_parts import Processed, Wishes, create_infotext, fix_seed, get_fixed_seed  # noqa: F401
from modules.sd_model import as_kind
from modules.shared import opts, state

opt_C = 4
opt_f = 8


@dataclass(repr=False)
class StableDiffusionProcessing(Wishes):
    """What SD.Next's generations know besides. `ops`: what was done so far. `state`: what Reprocess asks for, or "";
    every one has a list of pictures to begin with, whether there are any or not.
    """

    state: str = ""
    init_images: list | None = None
    cfg_end: float = 1.0
    refiner_steps: int = 0
    hr_denoising_strength: float | None = None
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_refiner_pass = False
        self.init_images = self.init_images or []
        self.ops: list[str] = []
        self.pass_width, self.pass_height = self.width, self.height

    def init(self) -> None:
        """Prepare for all batches."""

    def first_pass(self, noise: torch.Tensor) -> torch.Tensor:
        """Latents [B, 4, h, w]."""
        raise NotImplementedError

    def decode(self, latents: torch.Tensor) -> list[Any]:
        """As arrays [h, w, 3] of 0 to 255."""
        decoded = ((shared.sd_model.parts.decode_first_stage(latents) + 1) / 2).clamp(0, 1)
        return [(one.permute(1, 2, 0) * 255).round().byte().numpy() for one in decoded]

    def latents(self) -> torch.Tensor:
        """One batch, in all its passes."""
        now, samples = restore_state(self)
        if samples is None:
            shape = (opt_C, self.height // opt_f, self.width // opt_f)
            samples = self.first_pass(rng.ImageRNG(shape, self.seeds).next())
            remember(self, samples)
        return now.hires(samples) if now.enable_hr else samples

    def hires(self, samples: torch.Tensor) -> torch.Tensor:
        """The second pass over a batch's latents, at a larger size."""
        self.ops.append("upscale")
        width, height = (int(side * self.hr_scale) // opt_f for side in (self.width, self.height))
        wanted = shared.latent_upscale_modes.get(self.hr_upscaler or "Latent", {"mode": "nearest-exact"})
        samples = torch.nn.functional.interpolate(samples, size=(height, width), **wanted)
        self.ops.append("hires")
        self.is_hr_pass = True
        strength = self.denoising_strength if self.hr_denoising_strength is None else self.hr_denoising_strength
        noise = torch.zeros_like(samples)  # image to image draws its own
        samples = run_pass(self, self.hr_second_pass_steps or self.steps, noise, samples, strength)
        self.is_hr_pass = False
        return samples


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """From noise, and where wanted once more at a larger size ("hires")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.denoising_strength is None:
            self.denoising_strength = 0.3
        if self.enable_hr:
            self.extra_generation_params["Hires upscale"] = self.hr_scale
            self.extra_generation_params["Hires steps"] = self.hr_second_pass_steps or self.steps

    def first_pass(self, noise: torch.Tensor) -> torch.Tensor:
        self.ops.append("txt2img")
        return run_pass(self, self.steps, noise)


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """From a picture."""

    mask: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None:
            raise NotImplementedError("the embedded SD.Next does not paint in masks")
        if self.denoising_strength is None:
            self.denoising_strength = 0.5

    def init(self) -> None:
        self.ops.append("img2img")

    def first_pass(self, noise: torch.Tensor) -> torch.Tensor:
        self.ops.append("img2img")
        resized = [images.resize_image(0, one.convert("RGB"), self.width, self.height) for one in self.init_images]
        pictures = torch.cat([images.to_tensor(one) for one in resized]).expand(self.batch_size, -1, -1, -1)
        latents = shared.sd_model.parts.encode_first_stage(pictures * 2 - 1)
        return run_pass(self, self.steps, noise, latents, self.denoising_strength)


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Make the pictures. The caller holds the queue's lock and has begun a job. An error gives what there is."""
    _call(p, "before_process")
    script_callbacks.call("before_process", p)
    stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
    try:
        for key, value in p.override_settings.items():
            opts.set(key, value, is_api=True, run_callbacks=False)
        sd_models.reload_model_weights()
        return _process_images_inner(p)
    finally:
        script_callbacks.call("after_process", p)
        shared.sd_model = as_kind(shared.sd_model, diffusers.StableDiffusionPipeline)
        for key, value in stored.items():
            setattr(opts, key, value)


def _process_images_inner(p: StableDiffusionProcessing) -> Processed:
    fix_seed(p)
    p.setup_prompts()
    p.all_seeds = [p.seed + i for i in range(len(p.all_prompts))]
    p.all_subseeds = [max(p.subseed, 0) + i for i in range(len(p.all_prompts))]
    _call(p, "process")
    done: list[Any] = []
    infotexts: list[str] = []
    whole = True
    with torch.no_grad():
        p.init()
        state.job_count = p.n_iter
        for n in range(p.n_iter):
            p.iteration = n
            if state.interrupted:
                break
            whole = _batch(p, n, done, infotexts)
            state.nextjob()
            if not whole:
                break
    result = Processed(p, done, p.all_seeds[0], infotexts[0] if infotexts else "", infotexts)
    if whole:
        _call(p, "postprocess", result)
    return result


def _batch(p: StableDiffusionProcessing, n: int, done: list[Any], infotexts: list[str]) -> bool:
    """One batch; whether it came to its end."""
    part = slice(n * p.batch_size, (n + 1) * p.batch_size)
    p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
    p.seeds, p.subseeds = p.all_seeds[part], p.all_subseeds[part]
    told = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
    _call(p, "before_process_batch", **told)
    _call(p, "process_batch", **told)
    _call(p, "process_images")
    whole = True
    try:
        made = p.decode(p.latents())
    except Exception as error:
        whole, p.is_hr_pass = False, False
        if not isinstance(error, Interrupted):
            traceback.print_exc()
        shape = len(p.prompts), opt_C, p.height // opt_f, p.width // opt_f
        latent = torch.zeros(shape) if state.current_latent is None else state.current_latent
        made = [images.Image.fromarray(one) for one in p.decode(latent)]
    _call(p, "postprocess_batch", images=made, batch_number=n)
    listed = scripts.PostprocessBatchListArgs(made)
    _call(p, "postprocess_batch_list", listed, batch_number=n)
    for i, one in enumerate(listed.images):
        p.batch_index = i
        image = one if isinstance(one, images.Image.Image) else images.Image.fromarray(one)
        if whole:
            arguments = scripts.PostprocessImageArgs(image)
            _call(p, "postprocess_image", arguments)
            image = arguments.image
        infotexts.append(create_infotext(p, p.prompts, p.seeds, i))
        image.info["parameters"] = infotexts[-1]
        done.append(image)
    return whole


def _call(p: StableDiffusionProcessing, hook: str, *own: Any, **kwargs: Any) -> None:
    if p.scripts is not None:
        getattr(p.scripts, hook)(p, *own, **kwargs)
