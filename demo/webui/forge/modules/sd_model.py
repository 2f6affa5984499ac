"""A loaded checkpoint as Forge keeps it: `sd_model.forge_objects.unet.model.diffusion_model` is the UNet."""

from __future__ import annotations

from typing import Any

from modules.sd_model_parts import LoadedCheckpoint
from modules_forge.patcher import ForgeObjects, KModel, UnetPatcher
from torch import nn

from demo.webui.checkpoints import make_unet, state_dict
from demo.webui.forge_unet import ForgeUNet


class FakeInitialModel:
    """Stands for the model until the first generation loads one."""

    cond_stage_model = None


AT_FIRST = FakeInitialModel()


class StableDiffusion(LoadedCheckpoint):
    """A loaded checkpoint, SD1.x layout. Other weights always come in a new one."""

    def __init__(self, info: Any) -> None:
        super().__init__(info)
        if self.is_sdxl:
            raise NotImplementedError("the embedded Forge has no SDXL checkpoint")
        unet = make_unet(info.checkpoint)
        unet.load_state_dict(state_dict(info.checkpoint, unet))
        self.takes_masks = info.checkpoint.layout == "inpaint"
        self.forge_objects = ForgeObjects(UnetPatcher(KModel(ForgeUNet(unet).eval().requires_grad_(False), self)))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.load(info)

    @property
    def _unet(self) -> nn.Module:
        return unet_of(self)

    def is_webui_legacy_model(self) -> bool:
        return True


def loaded(info: Any, before: Any) -> Any:
    """The checkpoint `info`, always in a new object."""
    return StableDiffusion(info)


def unet_of(model: Any) -> Any:
    return model.forge_objects.unet.model.diffusion_model


def takes_masks(model: Any) -> bool:
    """Whether the UNet has further channels for a mask and a masked picture."""
    return model.takes_masks


def begin_pass(model: Any) -> None:
    """The patcher of a pass is a clone: what scripts add to it goes with the pass."""
    model.forge_objects = model.forge_objects_original.shallow_copy()
    model.forge_objects.unet = model.forge_objects_original.unet.clone()
