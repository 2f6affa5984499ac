"""The accordion. One control for each of `fields.FIELDS`, and what is shown but not set.

At first sight: the tick, the presets, the speed-up, the plan and the last run. The rest is under Advanced. What has no
effect as things stand is not shown (`shown.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
from gradio.context import Context

from ..settings.fields import CUSTOM, FIELD, FIELDS, PRESETS
from .measure import BUTTON
from .shown import CONDITIONAL, HIRES, UNSET, effective

try:
    from modules.ui_components import InputAccordion
except ImportError:  # a host before A1111 1.7
    InputAccordion = None

TITLE = "DeepCache"
SHOWN_BRANCHES = 11
"""The slider's end: the last branch of SD1.x and SD2.x; SDXL has 8. Other models' are reached through the API."""

NOTE = "Faster pictures, and they change a little: at some steps only a small part of the UNet runs."
OFF_NOTE = "DeepCache is switched off by --deepcache-disable or on the settings page"

LOWEST = {"hires_speed_up": 1.0, "hires_cache_interval": 1, "hires_cache_branch_id": 0, "deeper_branch_id": 1}
"""Where sliders begin whose setting can also be none: that is said by a check box."""

USUAL_MEDIUM = 5
"""The branch that the slider begins with: the two finest levels of SD1.x, SD2.x and SDXL."""


@dataclass
class Accordion:
    """What was drawn: `components` are the script's arguments, in their order; the others only show something.

    `header`: in the accordion's head, or above its controls; `strip`: the plan; `notice`: about a pasted infotext;
    `last_line`, `last_run`: what the last run did, in a line and in a table; `refresh`: a button that brings all of
    them up to date, pressed by the page's script. `detail`: what the plan does beneath the surface. `measured`: what
    is of the model; `measure`: the button; `request`: hidden, the last of the script's arguments, what it asks for.
    `boxes`: ticked where the setting of that name stands at its value of `UNSET`; `places`: what holds box and slider.
    """

    header: Any
    notice: Any = None
    strip: Any = None
    last_line: Any = None
    last_run: Any = None
    refresh: Any = None
    detail: Any = None
    measured: Any = None
    measure: Any = None
    request: Any = None
    components: dict[str, Any] = field(default_factory=dict)
    boxes: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)

    @property
    def conditional(self) -> list[Any]:
        """What `updates` is for."""
        return [self.places.get(name, self.components[name]) for name in CONDITIONAL]


def build(
    elem_id: Callable[[str], str], disabled: bool = False, inactive: str = "", hides_ticks: bool = False
) -> Accordion:
    """Draw the accordion into the Blocks that is open. `inactive`: why nothing is cached on this host, in words.
    `hides_ticks`: the host shows no tick in an accordion's head.
    """
    note = f"Not active: {inactive}." if inactive else f"{OFF_NOTE}." if disabled else NOTE
    enabled_id = elem_id("enabled")
    if InputAccordion is not None and not hides_ticks:
        with InputAccordion(False, label=TITLE, elem_id=enabled_id) as enabled:
            # In the accordion's head where the host has a place for it.
            with enabled.extra() if hasattr(enabled, "extra") else contextlib.nullcontext():
                accordion = Accordion(_html(elem_id("header"), "deepcache-header"))
            made = _controls(elem_id, accordion, note)
            _refresh(elem_id, accordion)
    else:
        with gr.Accordion(TITLE, open=False, elem_id=f"{enabled_id}_accordion") as whole:
            enabled = gr.Checkbox(False, label="Enable DeepCache", elem_id=enabled_id)
            with gr.Column(visible=False, elem_id=elem_id("body")) as body:
                accordion = Accordion(_html(elem_id("header"), "deepcache-header"))
                made = _controls(elem_id, accordion, note)
            _refresh(elem_id, accordion)
        # The head tells it where the accordion is closed.
        enabled.change(
            lambda on: [gr.update(visible=on), gr.update(label=f"{TITLE}: on" if on else TITLE)],
            inputs=[enabled],
            outputs=[body, whole],
            show_progress=False,
            queue=False,
        )
    made["enabled"] = enabled
    accordion.components = {one.name: made[one.name] for one in FIELDS}
    _connect(accordion)
    return accordion


def updates(values: Mapping[str, Any], hires: bool) -> list[Any]:
    """For each of `Accordion.conditional` an update: shown or not. Arguments as `effective` has them."""
    shown = effective(values, hires)
    return [gr.update(visible=name in shown) for name in CONDITIONAL]


def _html(elem_id: str, css_class: str) -> Any:
    return gr.HTML("", elem_id=elem_id, elem_classes=[css_class])


class _Drawing:
    """Draws controls by their names in `FIELD`."""

    def __init__(self, elem_id: Callable[[str], str]) -> None:
        self.elem_id = elem_id
        self.made: dict[str, Any] = {}
        self.boxes: dict[str, Any] = {}
        self.places: dict[str, Any] = {}
        self._shown = effective({one.name: one.default for one in FIELDS}, hires=False)

    def _common(self, name: str) -> dict[str, Any]:
        one = FIELD[name]
        visible = name in self._shown and name not in UNSET
        return {"label": one.label, "info": one.info, "elem_id": self.elem_id(name), "visible": visible}

    def slider(self, name: str, maximum: float | None = None, step: float = 1) -> None:
        one = FIELD[name]
        lowest = LOWEST.get(name, one.minimum)
        self.made[name] = gr.Slider(lowest, maximum or one.maximum, one.default, step=step, **self._common(name))

    def radio(self, name: str) -> None:
        self.made[name] = gr.Radio(list(FIELD[name].choices), value=FIELD[name].default, **self._common(name))

    def text(self, name: str, placeholder: str) -> None:
        self.made[name] = gr.Textbox(FIELD[name].default, max_lines=1, placeholder=placeholder, **self._common(name))

    def or_none(self, name: str, label: str, maximum: float | None = None, step: float = 1) -> None:
        """A slider with a check box for the value that says "none": where it is ticked, the slider is away."""
        place = gr.Column(visible=name in self._shown, elem_id=self.elem_id(f"{name}_place"))
        with place:
            box = gr.Checkbox(True, label=label, elem_id=self.elem_id(f"{name}_unset"))
            self.slider(name, maximum, step)
        box.do_not_save_to_config = True
        self.boxes[name], self.places[name] = box, place


def _controls(elem_id: Callable[[str], str], accordion: Accordion, note: str) -> dict[str, Any]:
    draw = _Drawing(elem_id)
    gr.HTML(f"<p class='deepcache-note'>{escape(note)}</p>")
    accordion.notice = _html(elem_id("notice"), "deepcache-notice")
    draw.radio("preset")
    draw.slider("speed_up", step=0.1)
    accordion.strip = _html(elem_id("strip"), "deepcache-plan")
    accordion.last_line = _html(elem_id("last_line"), "deepcache-last-line")
    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced"), elem_classes=["deepcache-inner"]):
        _advanced(draw)
        accordion.detail = _html(elem_id("detail"), "deepcache-detail")
        _measure(elem_id, accordion)
        accordion.last_run = _html(elem_id("last_run_table"), "deepcache-last-run")
    accordion.boxes, accordion.places = draw.boxes, draw.places
    return draw.made


def _advanced(draw: _Drawing) -> None:
    draw.radio("strategy")
    draw.slider("cache_interval")
    with gr.Row():
        draw.slider("center", step=0.01)
        draw.slider("power", step=0.05)
    draw.text("full_evaluations", "empty: only the first step")
    draw.slider("cache_branch_id", SHOWN_BRANCHES)
    draw.or_none("deeper_branch_id", "Medium branch: none of my own", SHOWN_BRANCHES)
    draw.radio("estimator")
    with gr.Row():
        draw.slider("start", step=0.01)
        draw.slider("end", step=0.01)
    draw.radio("passes")
    for name, (first, _) in HIRES.items():
        label = f"Hires pass: {FIELD[first].label} same as first pass"
        draw.or_none(name, label, SHOWN_BRANCHES if "branch" in name else None, 0.1 if "speed" in name else 1)


def _measure(elem_id: Callable[[str], str], accordion: Accordion) -> None:
    accordion.measured = _html(elem_id("measured"), "deepcache-measured")
    accordion.measure = gr.Button(
        BUTTON, size="sm", elem_id=elem_id("measure_button"), elem_classes=["deepcache-button"]
    )
    accordion.request = gr.Textbox("", label="Measure request", visible=False, elem_id=elem_id("measure_request"))
    accordion.request.do_not_save_to_config = True


def _refresh(elem_id: Callable[[str], str], accordion: Accordion) -> None:
    """Out of sight, but there at any time: the page's script presses it."""
    accordion.refresh = gr.Button(
        "Refresh", size="sm", elem_id=elem_id("refresh"), elem_classes=["deepcache-out-of-sight"]
    )


def connect_measure(accordion: Accordion, tab: str, press: Callable[[], str]) -> None:
    """The button switches DeepCache on and starts a generation, which takes the word of `press` with it."""

    def pressed() -> list[Any]:
        return [press(), gr.update(value=True)]

    outputs = [accordion.request, accordion.components["enabled"]]
    done = accordion.measure.click(pressed, inputs=[], outputs=outputs, show_progress=False, queue=False)
    in_page(done.then, f"() => {{ if (window.deepcacheGenerate) deepcacheGenerate('{tab}'); }}")


def in_page(event: Callable[..., Any], script: str, inputs: Sequence[Any] = (), outputs: Sequence[Any] = ()) -> None:
    """Let the page itself answer an event, without the server."""
    given = {"fn": None, "inputs": list(inputs), "outputs": list(outputs), "show_progress": False, "queue": False}
    try:
        event(_js=script, **given)
    except TypeError:  # Gradio 4
        event(js=script, **given)


def _connect(accordion: Accordion) -> None:
    """A preset sets its controls, when the page is opened too; whoever changes one of them is on Custom. A box puts its
    setting to none and back, and follows it.
    """
    components = accordion.components
    preset = components["preset"]
    governed = [components[name] for name in PRESETS["Balanced"]]

    def apply(name: str) -> list[Any]:
        values = PRESETS.get(name)
        return [gr.update()] * len(governed) if values is None else [gr.update(value=v) for v in values.values()]

    preset.input(apply, inputs=[preset], outputs=governed, show_progress=False, queue=False)
    # The host puts in what its ui-config.json holds after all is drawn: what an earlier version's preset set, too.
    if Context.root_block is not None:
        Context.root_block.load(apply, inputs=[preset], outputs=governed, show_progress=False, queue=False)
    by_preset = [*governed, accordion.boxes["deeper_branch_id"]]
    for control in by_preset:
        control.input(lambda: CUSTOM, inputs=[], outputs=[preset], show_progress=False, queue=False)
    for name, box in accordion.boxes.items():
        slider, first = components[name], components[HIRES[name][0] if name in HIRES else "cache_branch_id"]
        begin = "first" if name in HIRES else f"Math.max({USUAL_MEDIUM}, Math.min(first + 1, {SHOWN_BRANCHES}))"
        none = UNSET[name]
        # In the page itself: answers of the server that are late would undo what is done meanwhile.
        in_page(box.input, f"(on, first) => ({{...{UPDATE}, value: on ? {none} : {begin}}})", [box, first], [slider])
        follow = f"(v) => [{{...{UPDATE}, value: v === {none}}}, {{...{UPDATE}, visible: v !== {none}}}]"
        in_page(slider.change, follow, [slider], [box, slider])


UPDATE = "{__type__: 'update'}"
"""What tells Gradio's page that only some properties change."""
