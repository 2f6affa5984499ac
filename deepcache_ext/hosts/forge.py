"""Forge, reForge, Forge Classic and Forge Neo: A1111's hooks and callbacks around another UNet.

Facts of the hosts: the UNet module stands in a `UnetPatcher` that is cloned at every pass and that the refiner
exchanges in mid-sampling, with no hook but `on_cfg_denoiser`, whose denoiser holds the model to come; at the first
generation's `before_process` there is a placeholder without one. `params.x` is the image batch, while the UNet gets it
once for each prompt. `process_before_every_sampling` runs twice in a hires pass. A `model_function_wrapper` among the
patcher's options stands above the UNet's calls, and may leave some out. Forge Neo's torch.compile marks the patcher's
model with a `_torch_compile_config` and puts a compiled UNet into the real one's place for the length of each call:
compiled code runs no hook that it did not find when it was made.
"""

from __future__ import annotations

from typing import Any

from ..unet.compiled import COMPILED
from ..unet.forge import ForgeLadder
from ..unet.ladder import AnyLadder
from ..unet.neighbours import cache_above
from ..unet.support import UnknownLayout, twice
from .a1111.adapter import A1111


class Forge(A1111):
    """The family's adapter: reaches the UNet in another place, and caches its calls by another protocol."""

    def unet_of(self, p: Any, params: Any) -> Any:
        patcher = _patcher(p, params)
        if patcher is not None:
            return getattr(getattr(patcher, "model", None), "diffusion_model", None)
        return super().unet_of(p, params)

    def above(self, p: Any, params: Any) -> UnknownLayout | None:
        patcher = _patcher(p, params)
        if getattr(getattr(patcher, "model", None), "_torch_compile_config", None):
            return UnknownLayout(COMPILED)
        options = getattr(patcher, "model_options", None)
        name = cache_above(options.get("model_function_wrapper")) if isinstance(options, dict) else None
        return None if name is None else twice(name)

    def ladder_of(self, unet: Any) -> AnyLadder:
        return ForgeLadder(unet)


def _patcher(p: Any, params: Any) -> Any:
    """The `UnetPatcher` that samples, at `on_cfg_denoiser`'s `params`; None where there is none."""
    inner = getattr(getattr(params.denoiser, "inner_model", None), "inner_model", None)
    models = (inner, getattr(p, "sd_model", None))
    patchers = (getattr(getattr(model, "forge_objects", None), "unet", None) for model in models)
    return next((patcher for patcher in patchers if patcher is not None), None)
