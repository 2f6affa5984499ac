"""The accordion. One control for each of `settings.FIELDS`, in that order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..settings import CUSTOM, FIELD, FIELDS, PRESETS

try:
    from modules.ui_components import InputAccordion
except ImportError:  # a host before A1111 1.7
    InputAccordion = None

TITLE = "DeepCache"
SHOWN_BRANCHES = 11
"""The slider's end: the last branch of SD1.x and SD2.x; SDXL has 8. Other models' are reached through the API."""

NOTE = (
    "Faster pictures, and they change a little: the deep part of the UNet runs at every Nth evaluation only. "
    "Balanced aims at twice the speed; Quality changes less, Fast more."
)
OFF_NOTE = "DeepCache is switched off by --deepcache-disable."


def build(elem_id: Callable[[str], str], disabled: bool = False) -> dict[str, Any]:
    """Draw the accordion; returns the components by name, in the order of the script's arguments."""
    enabled_id = elem_id("enabled")
    if InputAccordion is not None:
        with InputAccordion(False, label=TITLE, elem_id=enabled_id) as enabled:
            components = _controls(elem_id, disabled)
    else:
        with gr.Accordion(TITLE, open=False, elem_id=f"{enabled_id}_accordion"):
            enabled = gr.Checkbox(False, label="Enable DeepCache", elem_id=enabled_id)
            components = _controls(elem_id, disabled)
    _connect(components)
    return {"enabled": enabled, **components}


def _controls(elem_id: Callable[[str], str], disabled: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}

    def slider(name: str, maximum: float | None = None, step: float = 1) -> None:
        field = FIELD[name]
        made[name] = gr.Slider(
            field.minimum, maximum or field.maximum, field.default,
            step=step, label=field.label, info=field.info, elem_id=elem_id(name),
        )

    def radio(name: str) -> None:
        field = FIELD[name]
        made[name] = gr.Radio(
            list(field.choices), value=field.default, label=field.label, info=field.info, elem_id=elem_id(name)
        )

    gr.HTML(f"<p class='deepcache-note'>{OFF_NOTE if disabled else NOTE}</p>")
    radio("preset")
    with gr.Row():
        radio("strategy")
        slider("speed_up", step=0.1)
    with gr.Row():
        slider("cache_interval")
        slider("cache_branch_id", SHOWN_BRANCHES)
    radio("estimator")
    field = FIELD["full_evaluations"]
    made[field.name] = gr.Textbox(
        field.default, label=field.label, info=field.info, elem_id=elem_id(field.name), max_lines=1,
    )
    with gr.Row():
        slider("center", step=0.01)
        slider("power", step=0.05)
    with gr.Row():
        slider("start", step=0.01)
        slider("end", step=0.01)
    radio("passes")
    with gr.Row():
        slider("hires_cache_interval")
        slider("hires_cache_branch_id", SHOWN_BRANCHES)
        slider("hires_speed_up", step=0.1)
    return {field.name: made[field.name] for field in FIELDS if field.name != "enabled"}


def _connect(components: dict[str, Any]) -> None:
    """A preset sets its controls; whoever changes one of them is on Custom."""
    preset = components["preset"]
    governed = [components[name] for name in PRESETS["Balanced"]]

    def apply(name: str) -> list[Any]:
        values = PRESETS.get(name)
        return [gr.update()] * len(governed) if values is None else [gr.update(value=v) for v in values.values()]

    preset.input(apply, inputs=[preset], outputs=governed, show_progress=False, queue=False)
    for control in governed:
        control.input(lambda: CUSTOM, inputs=[], outputs=[preset], show_progress=False, queue=False)
