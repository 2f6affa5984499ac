"""The accordion. One control for each of `fields.FIELDS`, in that order, and what is shown but not set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
from gradio.context import Context

from ..calibrate.search import PICTURES, TRIES
from ..settings.fields import CALIBRATED, CUSTOM, FIELD, FIELDS, OBEYED, PRESETS, STRATEGYS_OWN
from . import calibrate

try:
    from modules.ui_components import InputAccordion
except ImportError:  # a host before A1111 1.7
    InputAccordion = None

TITLE = "DeepCache"
SHOWN_BRANCHES = 11
"""The slider's end: the last branch of SD1.x and SD2.x; SDXL has 8. Other models' are reached through the API."""

NOTE = "Faster pictures, and they change a little: between whole evaluations of the UNet only a small part of it runs."
OFF_NOTE = "DeepCache is switched off by --deepcache-disable or on the settings page."


@dataclass
class Accordion:
    """What was drawn: `components` are the script's arguments, in their order; the others only show something.

    `header`: in the accordion's head; `strip`: the plan; `notice`: about a pasted infotext; `last_run`: the table;
    `refresh`: a button that brings all of them up to date, pressed by the page's script too. `calibrated`: what is;
    `wish`: how to calibrate; `request`: hidden, the last of the script's arguments, what Calibrate asks for.
    """

    header: Any
    notice: Any = None
    strip: Any = None
    last_run: Any = None
    refresh: Any = None
    calibrated: Any = None
    calibrate: Any = None
    request: Any = None
    wish: tuple[Any, ...] = ()
    components: dict[str, Any] = field(default_factory=dict)


def build(elem_id: Callable[[str], str], disabled: bool = False, inactive: str = "") -> Accordion:
    """Draw the accordion into the Blocks that is open. `inactive`: why nothing is cached on this host, in words."""
    note = f"Not active: {inactive}." if inactive else OFF_NOTE if disabled else NOTE
    enabled_id = elem_id("enabled")
    if InputAccordion is not None:
        with InputAccordion(False, label=TITLE, elem_id=enabled_id) as enabled:
            # In the accordion's head where the host has a place for it.
            with enabled.extra() if hasattr(enabled, "extra") else contextlib.nullcontext():
                accordion = Accordion(_html(elem_id("header"), "deepcache-header"))
            made = _controls(elem_id, accordion, note)
    else:
        with gr.Accordion(TITLE, open=False, elem_id=f"{enabled_id}_accordion"):
            enabled = gr.Checkbox(False, label="Enable DeepCache", elem_id=enabled_id)
            accordion = Accordion(_html(elem_id("header"), "deepcache-header"))
            made = _controls(elem_id, accordion, note)
    made["enabled"] = enabled
    accordion.components = {one.name: made[one.name] for one in FIELDS}
    _connect(accordion.components)
    return accordion


def shown_for(strategy: str) -> list[Any]:
    """For each of `STRATEGYS_OWN` an update: shown or not."""
    return [gr.update(visible=name in OBEYED.get(strategy, STRATEGYS_OWN)) for name in STRATEGYS_OWN]


def _html(elem_id: str, css_class: str) -> Any:
    return gr.HTML("", elem_id=elem_id, elem_classes=[css_class])


def _controls(elem_id: Callable[[str], str], accordion: Accordion, note: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    at_first = OBEYED[FIELD["strategy"].default]

    def common(name: str) -> dict[str, Any]:
        one, visible = FIELD[name], name not in STRATEGYS_OWN or name in at_first
        return {"label": one.label, "info": one.info, "elem_id": elem_id(name), "visible": visible}

    def slider(name: str, maximum: float | None = None, step: float = 1) -> None:
        one = FIELD[name]
        made[name] = gr.Slider(one.minimum, maximum or one.maximum, one.default, step=step, **common(name))

    def radio(name: str) -> None:
        made[name] = gr.Radio(list(FIELD[name].choices), value=FIELD[name].default, **common(name))

    gr.HTML(f"<p class='deepcache-note'>{escape(note)}</p>")
    accordion.notice = _html(elem_id("notice"), "deepcache-notice")
    radio("preset")
    slider("speed_up", step=0.1)
    radio("strategy")
    slider("cache_interval")
    with gr.Row():
        slider("center", step=0.01)
        slider("power", step=0.05)
    made["full_evaluations"] = gr.Textbox(
        FIELD["full_evaluations"].default, max_lines=1, placeholder="0-3, 6, 9, 12-29:3", **common("full_evaluations")
    )
    accordion.strip = _html(elem_id("strip"), "deepcache-plan")
    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced"), elem_classes=["deepcache-inner"]):
        with gr.Row():
            slider("cache_branch_id", SHOWN_BRANCHES)
            slider("deeper_branch_id", SHOWN_BRANCHES)
        radio("estimator")
        with gr.Row():
            slider("start", step=0.01)
            slider("end", step=0.01)
    with gr.Accordion("Hires pass", open=False, elem_id=elem_id("hires"), elem_classes=["deepcache-inner"]):
        radio("passes")
        with gr.Row():
            slider("hires_speed_up", step=0.1)
            slider("hires_cache_interval")
            slider("hires_cache_branch_id", SHOWN_BRANCHES)
    with gr.Accordion("Calibrate", open=False, elem_id=elem_id("calibrate"), elem_classes=["deepcache-inner"]):
        gr.HTML(f"<p class='deepcache-note'>{calibrate.NOTE}</p>")
        accordion.calibrated = _html(elem_id("calibrated"), "deepcache-calibrated")
        with gr.Row():
            accordion.wish = tuple(
                gr.Slider(
                    one.minimum,
                    one.maximum,
                    one.default,
                    step=1,
                    label=one.label,
                    info=one.info,
                    elem_id=elem_id(f"calibrate_{one.name}"),
                )
                for one in (PICTURES, TRIES)
            )
        accordion.calibrate = gr.Button(
            "Calibrate", size="sm", elem_id=elem_id("calibrate_button"), elem_classes=["deepcache-refresh"]
        )
        accordion.request = gr.Textbox(
            "", label="Calibrate request", visible=False, elem_id=elem_id("calibrate_request")
        )
        accordion.request.do_not_save_to_config = True
    with gr.Accordion("Last run", open=False, elem_id=elem_id("last_run"), elem_classes=["deepcache-inner"]):
        accordion.last_run = _html(elem_id("last_run_table"), "deepcache-last-run")
        accordion.refresh = gr.Button(
            "Refresh", size="sm", elem_id=elem_id("refresh"), elem_classes=["deepcache-refresh"]
        )
    return made


def connect_calibrate(accordion: Accordion, tab: str, press: Callable[[Any, Any], str]) -> None:
    """The button sets the strategy and starts a generation, which takes the word of `press` with it."""
    components = accordion.components

    def pressed(pictures: Any, tries: Any) -> list[Any]:
        return [press(pictures, tries), gr.update(value=True), gr.update(value=CUSTOM), gr.update(value=CALIBRATED)]

    outputs = [accordion.request, *(components[name] for name in ("enabled", "preset", "strategy"))]
    done = accordion.calibrate.click(
        pressed, inputs=list(accordion.wish), outputs=outputs, show_progress=False, queue=False
    )
    start = f"() => {{ if (window.deepcacheGenerate) deepcacheGenerate('{tab}'); }}"
    try:
        done.then(fn=None, _js=start, show_progress=False, queue=False)
    except TypeError:  # Gradio 4
        done.then(fn=None, js=start, show_progress=False, queue=False)


def _connect(components: dict[str, Any]) -> None:
    """A preset sets its controls, when the page is opened too; whoever changes one of them is on Custom; a strategy
    shows what it obeys.
    """
    preset, strategy = components["preset"], components["strategy"]
    governed = [components[name] for name in PRESETS["Balanced"]]

    def apply(name: str) -> list[Any]:
        values = PRESETS.get(name)
        return [gr.update()] * len(governed) if values is None else [gr.update(value=v) for v in values.values()]

    preset.input(apply, inputs=[preset], outputs=governed, show_progress=False, queue=False)
    # The host puts in what its ui-config.json holds after all is drawn: what an earlier version's preset set, too.
    if Context.root_block is not None:
        Context.root_block.load(apply, inputs=[preset], outputs=governed, show_progress=False, queue=False)
    for control in governed:
        control.input(lambda: CUSTOM, inputs=[], outputs=[preset], show_progress=False, queue=False)
    own = [components[name] for name in STRATEGYS_OWN]
    strategy.change(shown_for, inputs=[strategy], outputs=own, show_progress=False, queue=False)
