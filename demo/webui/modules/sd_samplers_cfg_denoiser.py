"""One evaluation: the guided result of one or more calls of the UNet."""

from __future__ import annotations

from typing import Any

import torch
from modules import devices, prompt_parser, sd_samplers_common, shared
from modules import script_callbacks as callbacks
from modules.sd_samplers_cfg_parts import Denoiser, join, rows
from modules.shared import opts, state


class CFGDenoiser(Denoiser):
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
        """x [B, 4, h, w], sigma [B] -> the guided result, as x."""
        if state.interrupted or state.skipped:
            raise sd_samplers_common.InterruptedException
        if sd_samplers_common.apply_refiner(self, sigma):
            cond, uncond = (self.sampler.sampler_extra_args[key] for key in ("cond", "uncond"))
        index, cond = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        uncond = prompt_parser.reconstruct_cond_batch(uncond, self.step)
        if self.mask is not None and self.mask_before_denoising:
            x = self._blend(x, sigma)

        order = [i for i, parts in enumerate(index) for _ in parts] + list(range(len(index)))
        params = callbacks.CFGDenoiserParams(
            x[order], image_cond[order], sigma[order], state.sampling_step, state.sampling_steps, cond, uncond, self
        )
        callbacks.call("cfg_denoiser", params)
        cond, uncond = params.text_cond, params.text_uncond
        skip = self._skips_uncond(sigma, s_min_uncond)
        first = [parts[0][0] for parts in index]
        out = self._call_unet(params, cond, uncond, len(index), skip)
        if skip:  # the guidance then adds nothing
            out = torch.cat([out, out[first]])
        denoised_params = callbacks.CFGDenoisedParams(out, state.sampling_step, state.sampling_steps, self.inner_model)
        callbacks.call("cfg_denoised", denoised_params)
        out = denoised_params.x
        devices.test_for_nans(out, "unet")

        scale = 1.0 if skip else cond_scale
        base = out[-len(index) :]
        result = base.clone()
        for i, parts in enumerate(index):
            for row, weight in parts:
                result[i] += (out[row] - base[i]) * (weight * scale)
        if self.mask is not None and not self.mask_before_denoising:
            result = self._blend(result, sigma)
        self.sampler.last_latent = self.pred_x0(x, out[first], sigma)
        state.current_latent = self.pred_x0(x, result, sigma)
        after = callbacks.AfterCFGCallbackParams(result, state.sampling_step, state.sampling_steps)
        callbacks.call("cfg_after_cfg", after)
        self.step += 1
        return after.x

    def _call_unet(self, params: Any, cond: Any, uncond: Any, batch: int, skip: bool) -> torch.Tensor:
        """All rows, in one call where the texts are of one length, else cond rows and then the uncond rows."""
        x, sigma, image_cond = params.x, params.sigma, params.image_cond
        if skip:
            x, sigma = x[:-batch], sigma[:-batch]
        self.padded_cond_uncond = False
        if opts.pad_cond_uncond and cond.shape[1] != uncond.shape[1]:
            cond, uncond = self._pad(cond, uncond)
            self.padded_cond_uncond = True

        out = torch.zeros_like(x)

        def call(start: int, end: int, text: Any) -> None:
            made = {"c_concat": [image_cond[start:end]]}
            made |= text if isinstance(text, dict) else {"c_crossattn": [text]}
            out[start:end] = self.inner_model(x[start:end], sigma[start:end], cond=made)

        if skip or cond.shape[1] == uncond.shape[1]:
            text = cond if skip else join([cond, uncond])
            size = len(x) if opts.batch_cond_uncond else batch
            for start in range(0, len(x), size):
                call(start, start + size, rows(text, start, start + size))
            return out
        conds = len(x) - batch
        size = 2 * batch if opts.batch_cond_uncond else batch
        for start in range(0, conds, size):
            end = min(start + size, conds)
            call(start, end, rows(cond, start, end))
        call(conds, len(x), uncond)
        return out

    def _pad(self, cond: Any, uncond: Any) -> tuple[Any, Any]:
        """The shorter text drawn out to the longer one's length with empty prompts."""

        def padded(short: Any, length: int) -> Any:
            if isinstance(short, dict):
                return prompt_parser.DictWithShape(short, crossattn=padded(short["crossattn"], length))
            empty = shared.sd_model.cond_stage_model_empty_prompt
            chunks = (length - short.shape[1]) // empty.shape[1]
            return torch.cat([short, empty.repeat(short.shape[0], chunks, 1)], 1)

        longest = max(cond.shape[1], uncond.shape[1])
        return padded(cond, longest), padded(uncond, longest)
