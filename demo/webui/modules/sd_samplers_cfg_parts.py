"""What the evaluations of all hosts have in common."""

from __future__ import annotations

from typing import Any

import torch
from modules import prompt_parser, scripts
from modules.shared import opts


def rows(cond: Any, start: int, end: int) -> Any:
    """Some rows of a conditioning, which for SDXL is a dict."""
    if isinstance(cond, dict):
        return prompt_parser.DictWithShape({key: value[start:end] for key, value in cond.items()})
    return cond[start:end]


def join(conds: list[Any]) -> Any:
    """Conditionings one below the other."""
    if isinstance(conds[0], dict):
        return prompt_parser.DictWithShape({key: torch.cat([c[key] for c in conds]) for key in conds[0]})
    return torch.cat(conds)


class Denoiser(torch.nn.Module):
    """Classifier-free guidance around the UNet: what the sampling functions call `model`.

    `step` counts evaluations of the pass; `total_steps` is how many the host expects.
    """

    # Timestep samplers want x blended before the call: what they get back is noise, not a picture.
    mask_before_denoising = False

    def __init__(self, sampler: Any) -> None:
        super().__init__()
        self.sampler = sampler
        self.model_wrap: Any = None
        self.mask = self.nmask = self.init_latent = None
        self.steps = self.total_steps = None
        self.step = 0
        self.image_cfg_scale = None
        self.padded_cond_uncond = self.padded_cond_uncond_v0 = False
        self.p: Any = None

    @property
    def inner_model(self) -> Any:
        raise NotImplementedError

    def update_inner_model(self) -> None:
        """Another checkpoint was loaded: wrap that one, with its own conditioning."""
        self.model_wrap = None
        extra = self.sampler.sampler_extra_args
        extra["cond"], extra["uncond"] = self.p.get_conds()

    def pred_x0(self, x: torch.Tensor, out: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return out

    def _blend(self, latent: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        blended = latent * self.nmask + self.init_latent * self.mask
        if self.p.scripts is None:
            return blended
        arguments = scripts.MaskBlendArgs(latent, self.nmask, self.init_latent, self.mask, blended, self, sigma)
        self.p.scripts.on_mask_blend(self.p, arguments)
        return arguments.blended_latent

    def _skips_uncond(self, sigma: torch.Tensor, s_min_uncond: float) -> bool:
        early = opts.skip_early_cond > 0 and self.step / self.total_steps <= opts.skip_early_cond
        alternate = self.step % 2 or opts.s_min_uncond_all
        return bool(early or (alternate and s_min_uncond > 0 and sigma[0] < s_min_uncond))
