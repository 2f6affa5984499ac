"""What all rooms of the host share."""

from __future__ import annotations

from typing import Any

from modules import devices
from modules.options import OptionHTML, OptionInfo, Options, options_section
from modules.shared_cmd_options import cmd_opts
from modules.shared_state import State

__all__ = ["OptionHTML", "OptionInfo", "cmd_opts", "demo", "device", "options_section", "opts", "sd_model", "state"]

state = State()
device = devices.device
sd_model: Any = None
"""The loaded checkpoint; its UNet is `modules.sd_model.unet_of(sd_model)`."""
demo: Any = None
"""The Gradio page."""

opts = Options(
    {
        "sd_model_checkpoint": OptionInfo("", "Stable Diffusion checkpoint"),
        "batch_cond_uncond": OptionInfo(True, "Batch cond/uncond"),
        "pad_cond_uncond": OptionInfo(False, "Pad prompt/negative prompt", infotext="Pad conds"),
        "grid_save": OptionInfo(True, "Always save all generated image grids"),
        "grid_format": OptionInfo("png", "File format for grids"),
        "s_min_uncond": OptionInfo(0.0, "Negative Guidance minimum sigma"),
        "s_min_uncond_all": OptionInfo(False, "Negative Guidance minimum sigma all steps", infotext="NGMS all steps"),
        "skip_early_cond": OptionInfo(0.0, "Ignore negative prompt during early sampling"),
        "eta_ancestral": OptionInfo(1.0, "Eta for k-diffusion samplers"),
        "eta_ddim": OptionInfo(0.0, "Eta for DDIM"),
        "img2img_fix_steps": OptionInfo(False, "With img2img, do exactly the amount of steps the slider specifies"),
        "refiner_switch_by_sample_steps": OptionInfo(False, "Switch to the refiner by sampling steps"),
        "show_progressbar": OptionInfo(True, "Show progressbar"),
        "samples_format": OptionInfo("png", "File format for images"),
    }
)

latent_upscale_modes = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
    "Latent (nearest-exact)": {"mode": "nearest-exact", "antialias": False},
}
picture_upscalers = ("None", "Lanczos", "Nearest")
