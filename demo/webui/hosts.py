"""What makes one host differ from another: its script hooks in order, its components, its pins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HostTable:
    """A host in data.

    `hooks`: script hooks in the order of a generation with a hires pass; the value tells what stands between `p`
    and the script's own values ("" for nothing, else the name of that parameter).
    `callbacks`: what an extension may register with `script_callbacks.on_...`.
    `components`: the rooms of the package `modules` that only this kind of host has.
    `pins`: versions of the libraries that an extension meets there.
    """

    name: str
    version: str
    hooks: dict[str, str]
    callbacks: tuple[str, ...]
    components: tuple[str, ...]
    pins: dict[str, str]


A1111 = HostTable(
    name="a1111",
    version="v1.10.1",
    hooks={
        "setup": "",
        "before_process": "",
        "process": "",
        "before_process_batch": "",
        "after_extra_networks_activate": "",
        "process_batch": "",
        "process_before_every_sampling": "",
        "on_mask_blend": "mba",
        "before_hr": "",
        "post_sample": "ps",
        "postprocess_batch": "",
        "postprocess_batch_list": "pp",
        "postprocess_image": "pp",
        "postprocess_maskoverlay": "ppmo",
        "postprocess_image_after_composite": "pp",
        "postprocess": "processed",
    },
    callbacks=(
        "after_component", "app_started", "before_component", "before_image_saved", "before_reload",
        "before_token_counter", "before_ui", "cfg_after_cfg", "cfg_denoised", "cfg_denoiser", "extra_noise",
        "image_grid", "image_saved", "infotext_pasted", "list_optimizers", "list_unets", "model_loaded",
        "script_unloaded", "ui_settings", "ui_tabs", "ui_train_tabs",
    ),
    components=("sd_unet", "sd_samplers_cfg_denoiser", "ui_components.InputAccordion", "infotext_utils.PasteField"),
    pins={"gradio": "3.41.2", "fastapi": "0.94.0", "pydantic": "1.10"},
)

HOSTS = {A1111.name: A1111}
