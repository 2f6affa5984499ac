"""From the text of a picture back to controls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import embedded

_VALUE = r':\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'
_PARAMETER = re.compile(r"\s*(\w[\w \-/]+)" + _VALUE)
_PLAIN_PARAMETER = re.compile(r"\s*([\w ]+)" + _VALUE)
"""Where a key is letters, digits and blanks: of one with a hyphen only what stands behind that is left."""


class PasteField(tuple):
    """A control and what it is set from: a key of the infotext, or a function of all its values."""

    def __new__(cls, component: Any, target: Any, *, api: str | None = None) -> PasteField:
        return super().__new__(cls, (component, target))

    def __init__(self, component: Any, target: Any, *, api: str | None = None) -> None:
        self.component, self.api = component, api
        self.label = target if isinstance(target, str) else None
        self.function = None if isinstance(target, str) else target


def parse_generation_parameters(x: str, skip_fields: list[str] | None = None) -> dict[str, Any]:
    """The values in an infotext: "Prompt", "Negative prompt", and the last line's by their keys."""
    parameter = _PLAIN_PARAMETER if embedded.table.plain_keys else _PARAMETER
    *lines, last = x.strip().split("\n")
    if len(parameter.findall(last)) < 3:
        lines, last = [*lines, last], ""
    text, _, negative = "\n".join(lines).partition("\nNegative prompt:")
    if text.startswith("Negative prompt:"):
        text, negative = "", text.removeprefix("Negative prompt:")
    found: dict[str, Any] = {"Prompt": text.strip(), "Negative prompt": negative.strip()}
    for key, value in parameter.findall(last):
        found[key] = json.loads(value) if value.startswith('"') and value.endswith('"') else value.strip()
        if re.fullmatch(r"\d+x\d+", found[key]):
            found[f"{key}-1"], found[f"{key}-2"] = found[key].split("x")
    for key in skip_fields or []:
        found.pop(key, None)
    return found


def updates_for(fields: list[Any], params: dict[str, Any]) -> list[Any]:
    """For each field what its control becomes: unchanged where the infotext does not say."""
    return [_update(component, key(params) if callable(key) else params.get(key)) for component, key in fields]


def _update(component: Any, value: Any) -> Any:
    if value is None:
        return gr.update()
    if isinstance(value, dict) and "__type__" in value:  # Gradio 3 says "generic_update", Gradio 4 "update"
        return value
    kind = type(component.value)
    try:
        if kind is bool:
            return gr.update(value=value not in ("False", False))
        return gr.update(value=float(value) if kind is int and "." in str(value) else kind(value))
    except (TypeError, ValueError):
        return gr.update()


def connect_paste(button: Any, fields: list[Any], prompt: Any, announce: Callable[[str, dict], None]) -> None:
    """Let `button` set the fields from the infotext that was put into the prompt."""

    def paste(text: str) -> list[Any]:
        params = parse_generation_parameters(text)
        announce(text, params)
        return updates_for(fields, params)

    button.click(paste, inputs=[prompt], outputs=[component for component, _ in fields], show_progress=False)


def register_paste_params_button(binding: Any) -> None:
    """Buttons of other tabs that send here: this host has none."""
