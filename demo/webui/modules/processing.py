"""A generation: from the wishes in `p` to pictures, with the scripts' hooks in the host's order."""

from __future__ import annotations

from dataclasses import dataclass
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
from modules.processing_parts import Processed, Wishes, create_infotext, fix_seed, get_fixed_seed
from modules.shared import opts, state

opt_C = 4
opt_f = 8


@dataclass(repr=False)
class StableDiffusionProcessing(Wishes):
    """A generation by the host's own samplers."""

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
    "Processed",
    "StableDiffusionProcessing",
    "StableDiffusionProcessingImg2Img",
    "StableDiffusionProcessingTxt2Img",
    "create_infotext",
    "get_fixed_seed",
    "process_images",
]
