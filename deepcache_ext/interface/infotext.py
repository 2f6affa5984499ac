"""From an infotext back to the controls: ours, of any version, and the older extension's as far as it has a meaning.

The older one is aria1th's sd-webui-deepcache-standalone: of its settings only the pass has a name in infotexts,
`DeepCache pass` (for a while `Pass to DeepCache`), with the values disable, second pass and both passes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from ..settings.fields import CUSTOM, FIELD, FIELDS, FORMAT_VERSION, PRESETS, SELDOM, Field, SettingsError

log = logging.getLogger("deepcache")

VERSION = "DeepCache version"
CUT_SHORT = "up"
"""What SD.Next makes of the key `DeepCache speed-up` of earlier versions, and of the hires one's: which of them it was
cannot be told.
"""
OLDER_KEYS = ("DeepCache pass", "Pass to DeepCache")
OLDER_PASSES = {"second pass": "hires only", "both passes": "both"}

Reader = Callable[[Mapping[str, Any]], Any]


def paste_fields(components: Mapping[str, Any], notice: Any, updates: bool = False) -> list[tuple[Any, Reader]]:
    """Pairs of component and reader, as the host wants them in `Script.infotext_fields`. `updates`: a reader gives
    Gradio's update instead of a plain value.

    An infotext without DeepCache switches it off. In one with it, what is only written where it differs from its
    default (`fields.SELDOM`) is set to that; any other absent key leaves its control as it is. The readers are
    the same objects in both tabs: by them the host finds the pairs when a picture is sent from one to the other.
    """
    pairs = [*((component, reader(name)) for name, component in components.items()), (notice, shown_note)]
    return [(component, as_update(read)) for component, read in pairs] if updates else pairs


def paste_names(fields: list[tuple[Any, Reader]]) -> list[Reader]:
    """For `Script.paste_field_names`: what a picture sent to another tab takes along."""
    return [read for _, read in fields if read not in (shown_note, as_update(shown_note))]


@functools.cache
def as_update(read: Reader) -> Reader:
    """The same reader for a host that pastes a plain value by its name, which a function has not; None stays None."""

    @functools.wraps(read)
    def read_update(params: Mapping[str, Any]) -> Any:
        value = read(params)
        return None if value is None else gr.update(value=value)

    return read_update


@functools.cache
def reader(name: str) -> Reader:
    """What reads the setting `name` out of an infotext's values: None where nothing usable stands. Never raises."""

    def read(params: Mapping[str, Any]) -> Any:
        if name == "enabled":
            return VERSION in params or _older(params) in OLDER_PASSES
        if _is_first_version(params) and name in ("preset", "strategy"):
            return {"preset": CUSTOM, "strategy": "uniform"}[name]
        if name == "passes" and VERSION not in params:
            return OLDER_PASSES.get(_older(params))
        by_preset = PRESETS.get(_usable("preset", params), {})
        if name in by_preset:  # the estimator is written as it came out, not as the preset sets it
            return by_preset[name]
        found = _usable(name, params)
        return FIELD[name].default if found is None and name in SELDOM and VERSION in params else found

    read.__name__ = f"read_{name}"
    return read


def note(params: Mapping[str, Any]) -> str:
    """What the user should know of a pasted infotext, or ""."""
    notes = []
    if VERSION in params:
        version = str(params[VERSION])
        if not version.isdigit() or int(version[:9]) > FORMAT_VERSION:
            notes.append(f"written by a newer version ({version[:20]}): some settings may mean something else")
        for field in FIELDS:
            try:
                _typed(field, _text(field, params))
            except SettingsError as error:
                notes.append(f"{error}; left as it was")
        if CUT_SHORT in params and _usable("preset", params) not in PRESETS:
            notes.append("its speed-up was lost, for this WebUI reads no hyphen in a key; left as it was")
    elif _older(params) in OLDER_PASSES:
        notes.append("written with another DeepCache extension, which tells the pass only; the rest is left as it was")
    return "; ".join(notes)


def shown_note(params: Mapping[str, Any]) -> str:
    """The note for the page, and a line in the console."""
    text = note(params)
    if not text:
        return ""
    log.warning("pasted infotext: %s", text)
    return f"<p class='deepcache-problem' role='status'>Pasted: {escape(text)}</p>"


def _is_first_version(params: Mapping[str, Any]) -> bool:
    """Before there were strategies an interval meant the uniform one, whatever the preset's name."""
    return VERSION in params and FIELD["strategy"].infotext not in params and FIELD["cache_interval"].infotext in params


def _text(field: Field, params: Mapping[str, Any]) -> Any:
    """What stands under the field's key, or under one of earlier versions."""
    return next((params[key] for key in field.infotexts if key in params), None)


def _older(params: Mapping[str, Any]) -> str:
    return str(next((params[key] for key in OLDER_KEYS if key in params), "")).strip().lower()


def _usable(name: str, params: Mapping[str, Any]) -> Any:
    try:
        return _typed(FIELD[name], _text(FIELD[name], params))
    except SettingsError:
        return None


def _typed(field: Field, text: Any) -> Any:
    """None stays None. Raises `SettingsError`."""
    if text is None:
        return None
    if isinstance(field.default, (bool, str)):
        return field.parse(str(text))
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise SettingsError(field.name, text, field.allowed) from None
    return field.parse(number)
