"""The two kinds of generation. Import them from `modules.processing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from modules import embedded, extra_networks, images, rng, scripts, sd_models, sd_samplers, shared
from modules.processing import StableDiffusionProcessing, opt_f
from modules.shared import state


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """From noise, and where wanted once more at a larger size ("hires")."""

    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""
    hr_cfg: float = 1.0  # Forge's alone

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hr_upscale_to_x = self.hr_upscale_to_y = 0
        self.latent_scale_mode: dict | None = None
        self.hr_checkpoint_info: Any = None
        self.hr_c: Any = None
        self.hr_uc: Any = None

    def init(self, all_prompts: list, all_seeds: list, all_subseeds: list) -> None:
        if not self.enable_hr:
            return
        if self.denoising_strength is None:
            self.denoising_strength = 0.75
        name = self.hr_upscaler or "Latent"
        self.latent_scale_mode = shared.latent_upscale_modes.get(name)
        if self.latent_scale_mode is None and name not in shared.picture_upscalers:
            raise ValueError(f"could not find upscaler named {name}")
        if self.hr_checkpoint_name:
            self.hr_checkpoint_info = sd_models.get_closet_checkpoint_match(self.hr_checkpoint_name)
            self.extra_generation_params["Hires checkpoint"] = self.hr_checkpoint_info.short_title
        if self.hr_resize_x or self.hr_resize_y:
            self.hr_upscale_to_x = self.hr_resize_x or self.hr_resize_y * self.width // self.height
            self.hr_upscale_to_y = self.hr_resize_y or self.hr_resize_x * self.height // self.width
            self.extra_generation_params["Hires resize"] = f"{self.hr_resize_x}x{self.hr_resize_y}"
        else:
            self.hr_upscale_to_x = int(self.width * self.hr_scale)
            self.hr_upscale_to_y = int(self.height * self.hr_scale)
            self.extra_generation_params["Hires upscale"] = self.hr_scale
        if self.hr_second_pass_steps:
            self.extra_generation_params["Hires steps"] = self.hr_second_pass_steps
        self.extra_generation_params["Hires upscaler"] = name
        if not state.processing_has_refined_job_count:
            state.job_count = (self.n_iter if state.job_count == -1 else state.job_count) * 2
            state.processing_has_refined_job_count = True

    def sample(self, conditioning: Any, unconditional_conditioning: Any) -> torch.Tensor:
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        self.before_sampling(x, x, conditioning, unconditional_conditioning)
        samples = self.sampler.sample(self, x, conditioning, unconditional_conditioning, self.image_conditioning_for(x))
        if not self.enable_hr or state.interrupted:
            return samples
        current = shared.sd_model.sd_checkpoint_info
        try:
            if self.hr_checkpoint_info is not None:
                sd_models.reload_model_weights(info=self.hr_checkpoint_info)
            return self._sample_hr_pass(samples)
        finally:
            self.sampler = None
            sd_models.reload_model_weights(info=current)

    def _sample_hr_pass(self, samples: torch.Tensor) -> torch.Tensor:
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name, self.sd_model)
        width, height = self.hr_upscale_to_x, self.hr_upscale_to_y
        if self.latent_scale_mode is not None:
            samples = torch.nn.functional.interpolate(
                samples, size=(height // opt_f, width // opt_f), **self.latent_scale_mode
            )
        else:
            decoded = ((shared.sd_model.decode_first_stage(samples) + 1) / 2).clamp(0, 1)
            pictures = torch.cat(
                [
                    images.to_tensor(images.resize_image(0, images.to_image(one), width, height, self.hr_upscaler))
                    for one in decoded
                ]
            )
            samples = shared.sd_model.encode_first_stage(pictures * 2 - 1)
        state.nextjob()
        self.rng = rng.ImageRNG(samples.shape[1:], self.seeds)
        noise = self.rng.next()
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.extra_network_data)
        self._hr_conds()
        if self.scripts is not None:
            self.scripts.before_hr(self)
        self.before_sampling(samples, noise, self.hr_c, self.hr_uc)
        samples = self.sampler.sample_img2img(
            self,
            samples,
            noise,
            self.hr_c,
            self.hr_uc,
            self.image_conditioning_for(samples),
            steps=self.hr_second_pass_steps or self.steps,
        )
        self.sampler = None
        self.is_hr_pass = False
        return samples

    def _hr_conds(self) -> None:
        steps = self.hr_second_pass_steps or self.steps
        config = sd_samplers.find_sampler_config(self.hr_sampler_name or self.sampler_name)
        prompts = [self.hr_prompt] * len(self.prompts) if self.hr_prompt else self.prompts
        negatives = [self.hr_negative_prompt] * len(self.prompts) if self.hr_negative_prompt else self.negative_prompts
        self.hr_c, self.hr_uc = self.conditioning(
            prompts, negatives, self.hr_upscale_to_x, self.hr_upscale_to_y, config.total_steps(steps), self.hr_cfg
        )

    def setup_conds(self) -> None:
        if self.is_hr_pass:  # the refiner, in the second pass
            self._hr_conds()
        else:
            for _ in range(embedded.table.early_activations if self.enable_hr else 0):
                extra_networks.activate(self, self.extra_network_data)
            super().setup_conds()

    def get_conds(self) -> tuple[Any, Any]:
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else super().get_conds()


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """From a picture, or from a part of it. A mask is always taken as "whole picture", never "only masked"."""

    init_images: list | None = None
    resize_mode: int = 0
    image_cfg_scale: float | None = None
    mask: Any = None
    mask_blur: int = 4
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.image_mask, self.mask = self.mask, None
        self.nmask: Any = None
        self.init_latent: Any = None
        self.mask_for_overlay: Any = None
        if self.denoising_strength is None:
            self.denoising_strength = 0.75

    def init(self, all_prompts: list, all_seeds: list, all_subseeds: list) -> None:
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        self.extra_generation_params["Denoising strength"] = self.denoising_strength
        if self.scripts is not None and "before_process_init_images" in embedded.table.hooks:
            self.scripts.before_process_init_images(self, {"init_images": self.init_images})
        resized = [images.resize_image(0, image.convert("RGB"), self.width, self.height) for image in self.init_images]
        pictures = torch.cat([images.to_tensor(image) for image in resized]).expand(self.batch_size, -1, -1, -1)
        self.init_latent = shared.sd_model.encode_first_stage(pictures * 2 - 1)
        wanted = None
        if self.image_mask is not None:
            mask = self.image_mask.convert("L")
            if self.inpainting_mask_invert:
                mask = images.Image.eval(mask, lambda value: 255 - value)
            self.overlay_images = [resized[0]] * self.batch_size
            self.mask_for_overlay = mask.resize((self.width, self.height))
            wanted = images.mask_tensor(mask, (self.width // opt_f, self.height // opt_f))
            self.nmask = wanted.expand(opt_f // 2, -1, -1).clone()
            self.mask = 1 - self.nmask
            if self.inpainting_fill == 2:
                noise = rng.ImageRNG(self.init_latent.shape[1:], all_seeds[: self.batch_size]).next()
                self.init_latent = self.init_latent * self.mask + noise * self.nmask
            elif self.inpainting_fill == 3:
                self.init_latent = self.init_latent * self.mask
        self.image_conditioning = self.image_conditioning_for(self.init_latent, pictures[:1], wanted)

    def sample(self, conditioning: Any, unconditional_conditioning: Any) -> torch.Tensor:
        x = self.rng.next()
        self.before_sampling(self.init_latent, x, conditioning, unconditional_conditioning)
        samples = self.sampler.sample_img2img(
            self, self.init_latent, x, conditioning, unconditional_conditioning, self.image_conditioning
        )
        if self.mask is None:
            return samples
        blended = samples * self.nmask + self.init_latent * self.mask
        if self.scripts is None:
            return blended
        arguments = scripts.MaskBlendArgs(samples, self.nmask, self.init_latent, self.mask, blended)
        self.scripts.on_mask_blend(self, arguments)
        return arguments.blended_latent
