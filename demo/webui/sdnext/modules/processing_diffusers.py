"""One pass: a call of the pipeline, with the host's counters and its wish to stop."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from modules import sd_model, sd_samplers, shared
from modules.shared import state


class Interrupted(Exception):
    """Raised inside the pipeline's loop: nothing of the pass is kept but the last latent."""


last_p: Any = None
"""Of the latest run that was no Reprocess."""
_last_latents: torch.Tensor | None = None


def remember(p: Any, latents: torch.Tensor) -> None:
    """What a first pass made, for Reprocess."""
    global last_p, _last_latents
    if not p.state:
        last_p, _last_latents = p, latents


def restore_state(p: Any) -> tuple[Any, torch.Tensor | None]:
    """With whose p this run goes on, and from which latents; None where it makes its own. No hook tells of it."""
    if p.state != "reprocess_refine" or type(last_p) is not type(p) or _last_latents is None:
        return p, None
    last_p.state, last_p.enable_hr, last_p.init_images = p.state, True, None
    return last_p, _last_latents


def run_pass(
    p: Any, steps: int, noise: torch.Tensor, image: torch.Tensor | None = None, strength: float = 1.0
) -> torch.Tensor:
    """Latents [B, 4, h, w] from `noise` of that shape, or from the latents `image` with as much noise as `strength`
    says; as many evaluations as `steps` asks for then.
    """
    kind = diffusers.StableDiffusionPipeline if image is None else diffusers.StableDiffusionImg2ImgPipeline
    shared.sd_model = pipe = sd_model.as_kind(shared.sd_model, kind)
    sd_samplers.create_sampler(p.sampler_name, pipe)
    cond, uncond = sd_model.embeddings(pipe, p.prompts, p.negative_prompts)
    given: dict[str, Any] = {"height": p.pass_height, "width": p.pass_width, "latents": noise}
    if image is not None:
        steps = int(steps // strength + 1)
        given = {"image": image, "strength": strength}
    state.sampling_step = state.sampling_steps = 0
    made = pipe(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond if p.cfg_scale > 1 else None,
        num_inference_steps=steps,
        guidance_scale=p.cfg_scale,
        generator=[torch.Generator().manual_seed(int(seed)) for seed in p.seeds],
        output_type="latent",
        callback_on_step_end=_step_end(p),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        **given,
    )
    return made.images


def _step_end(p: Any) -> Any:
    def step_end(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        state.sampling_step, state.sampling_steps = step + 1, pipe.num_timesteps
        state.current_latent = given["latents"]
        if state.interrupted or state.skipped:
            raise Interrupted
        if 0 < p.cfg_end < 1 and (step + 1) / pipe.num_timesteps > p.cfg_end and pipe.guidance_scale > 1:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    return step_end
