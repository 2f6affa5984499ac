"""What makes one host differ from another, in data: its script hooks in order, its pins, and what else can be named.

A host whose parts differ too has a folder beside `modules` here: the files in its `modules` go before A1111's.
"""

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
    `folder`: beside this file, the host's own parts ("" for none).
    `loads_at_start`: whether the checkpoint is there before the first generation.
    `hires_announcements`: how often a hires pass calls `process_before_every_sampling`.
    `early_activations`: how often a generation with a hires pass activates its networks anew before the first pass.
    `refiner_by_steps`: the refiner takes over by its share of the steps, not of the noise levels, and the networks
    are activated again.
    `calls_setup`: whether the hook of this name is ever called, which exists everywhere.
    `plain_keys`: of an infotext's keys it reads letters, digits and blanks alone.
    `uncond_at_cfg_1`: whether the negative prompt is read where it has no effect.
    """

    name: str
    version: str
    hooks: dict[str, str]
    callbacks: tuple[str, ...]
    components: tuple[str, ...]
    pins: dict[str, str]
    folder: str = ""
    loads_at_start: bool = True
    hires_announcements: int = 1
    early_activations: int = 0
    refiner_by_steps: bool = False
    uncond_at_cfg_1: bool = True
    calls_setup: bool = True
    plain_keys: bool = False


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
        "after_component",
        "app_started",
        "before_component",
        "before_image_saved",
        "before_reload",
        "before_token_counter",
        "before_ui",
        "cfg_after_cfg",
        "cfg_denoised",
        "cfg_denoiser",
        "extra_noise",
        "image_grid",
        "image_saved",
        "infotext_pasted",
        "list_optimizers",
        "list_unets",
        "model_loaded",
        "script_unloaded",
        "ui_settings",
        "ui_tabs",
        "ui_train_tabs",
    ),
    components=("sd_unet", "sd_samplers_cfg_denoiser", "ui_components.InputAccordion", "infotext_utils.PasteField"),
    pins={"gradio": "3.41.2", "fastapi": "0.94.0", "pydantic": "1.10"},
)

FORGE = HostTable(
    name="forge",
    version="f2.0.1v1.10.1",
    hooks={**A1111.hooks, "before_process_init_images": "pp"},
    callbacks=A1111.callbacks,
    components=A1111.components,
    pins={"gradio": "4.40.0", "fastapi": "0.104.1", "pydantic": "2.8"},
    folder="forge",
    loads_at_start=False,
    hires_announcements=2,
    early_activations=2,
    refiner_by_steps=True,
    uncond_at_cfg_1=False,
)

SDNEXT = HostTable(
    name="sdnext",
    version="2026-07-23",
    hooks={
        "setup": "",
        "before_process": "",
        "process": "",
        "before_process_batch": "",
        "process_batch": "",
        "process_images": "",
        "postprocess_batch": "",
        "postprocess_batch_list": "pp",
        "postprocess_image": "pp",
        "postprocess": "processed",
    },
    callbacks=(
        *sorted(set(A1111.callbacks) - {"list_optimizers", "list_unets", "ui_train_tabs", "before_token_counter"}),
        "after_process",
        "after_ui",
        "before_process",
        "image_save_btn",
    ),
    components=("sd_models_compile", "scripts.control_extensions", "ui_components.InputAccordion"),
    pins={"gradio": "3.43.2", "fastapi": "0.94.0", "pydantic": "1.10"},
    folder="sdnext",
    calls_setup=False,
    plain_keys=True,
)

HOSTS = {host.name: host for host in (A1111, FORGE, SDNEXT)}
