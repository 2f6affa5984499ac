"""One evaluation as Forge does it: noise levels everywhere, uncond first, the UNet told by its options who is who."""

from __future__ import annotations

import math
from typing import Any

import torch
from modules import devices, prompt_parser, sd_samplers_common
from modules import script_callbacks as callbacks
from modules.sd_samplers_cfg_parts import Denoiser
from modules.shared import opts, state

COND, UNCOND = 0, 1


class CFGDenoiser(Denoiser):
    @property
    def classic_ddim_eps_estimation(self) -> bool:
        """The host's own name for a sampler of timesteps, whose levels are handed over as noise levels."""
        return bool(self.mask_before_denoising)

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        uncond: Any,
        cond: Any,
        cond_scale: float,
        s_min_uncond: float,
        image_cond: torch.Tensor,
    ) -> torch.Tensor:
        """x [B, 4, h, w], sigma [B] -> the guided result, as x; of a timestep sampler, its noise."""
        if state.interrupted or state.skipped:
            raise sd_samplers_common.InterruptedException
        by_timesteps = self.mask_before_denoising
        if by_timesteps:  # x and timesteps as noise levels have it
            sigma = self._model.sigmas[sigma.round().long().clamp(0, 999)]
            x = x * (sigma**2 + 1).sqrt().view(-1, 1, 1, 1)
        if sd_samplers_common.apply_refiner(self, sigma):
            cond, uncond = (self.sampler.sampler_extra_args[key] for key in ("cond", "uncond"))
        index, cond = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        uncond = None if uncond is None else prompt_parser.reconstruct_cond_batch(uncond, self.step)
        level = sigma.view(-1, 1, 1, 1)
        if self.mask is not None:
            x = x * self.nmask + (self.init_latent + level * self._fresh_noise()) * self.mask
        params = callbacks.CFGDenoiserParams(
            x, image_cond, sigma, state.sampling_step, state.sampling_steps, cond, uncond, self
        )
        callbacks.call("cfg_denoiser", params)
        if self.p.is_hr_pass:
            cond_scale = self.p.hr_cfg
        if self._skips_uncond(sigma, s_min_uncond):
            cond_scale = 1.0
        denoised = self._guided(params, index, cond_scale)
        devices.test_for_nans(denoised, "unet")
        if self.mask is not None:
            denoised = self._blend(denoised, sigma)
        self.sampler.last_latent = state.current_latent = denoised
        after = callbacks.AfterCFGCallbackParams(denoised, state.sampling_step, state.sampling_steps)
        callbacks.call("cfg_after_cfg", after)
        self.step += 1
        return (x - after.x) / level if by_timesteps else after.x

    def _fresh_noise(self) -> torch.Tensor:
        """For what lies outside a mask: another one at each evaluation, the same for the same picture."""
        generator = torch.Generator().manual_seed(int(self.p.seeds[0]) + self.step)
        return torch.randn(self.init_latent.shape, generator=generator)

    @property
    def _patcher(self) -> Any:
        return self.inner_model.inner_model.forge_objects.unet

    @property
    def _model(self) -> Any:
        return self._patcher.model

    def _guided(self, params: Any, index: list, scale: float) -> torch.Tensor:
        """Each part of a prompt is asked of all images at once."""
        asked = [(COND, params.text_cond[[parts[k][0] for parts in index]]) for k in range(len(index[0]))]
        weights = [torch.tensor([parts[k][1] for parts in index]) for k in range(len(index[0]))]
        if not math.isclose(scale, 1.0):
            asked.append((UNCOND, params.text_uncond))
        asked.reverse()
        together = len(asked) if opts.batch_cond_uncond else 1
        said: list[torch.Tensor] = []
        for start in range(0, len(asked), together):
            said += self._ask(params, asked[start : start + together])
        conds = said[::-1][: len(weights)]
        cond = sum(w.view(-1, 1, 1, 1) * one for w, one in zip(weights, conds, strict=True)) / sum(weights).view(
            -1, 1, 1, 1
        )
        return cond if math.isclose(scale, 1.0) else said[0] + (cond - said[0]) * scale

    def _ask(self, params: Any, asked: list[tuple[int, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        """One call of the UNet: for each (mark, text) the denoised images."""
        images, count = len(params.x), len(asked)
        length = math.lcm(*(text.shape[1] for _, text in asked))
        context = torch.cat([text.repeat(1, length // text.shape[1], 1) for _, text in asked])
        marks = [mark for mark, _ in asked]
        rows = [mark for mark in marks for _ in range(images)]
        options = {
            **self._patcher.model_options["transformer_options"],
            "cond_or_uncond": marks,
            "sigmas": params.sigma,
            "cond_mark": torch.tensor(rows).to(params.x),
            "cond_indices": [i for i, mark in enumerate(rows) if mark == COND],
            "uncond_indices": [i for i, mark in enumerate(rows) if mark == UNCOND],
        }
        concat = None
        if params.image_cond.shape[-2:] == params.x.shape[-2:]:
            concat = params.image_cond.repeat(count, 1, 1, 1)
        x, sigma = params.x.repeat(count, 1, 1, 1), params.sigma.repeat(count)
        c = {"c_concat": concat, "c_crossattn": context, "control": None, "transformer_options": options}
        wrapper = self._patcher.model_options.get("model_function_wrapper")
        if wrapper is not None:
            given = {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": marks}
            return wrapper(self._model.apply_model, given).chunk(count)
        return self._model.apply_model(x, sigma, **c).chunk(count)
