"""From a recorded file to events that can be played: each comes out with the fields that the players need.

What is missing, or of another form than README.md of `tests/data/host-traces` says, gets a stand-in, or is left out
where there is none; either way it is named. What was written as README.md says comes out as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .forms import (
    ADDED,
    CALLBACKS,
    FAMILIES,
    HOOK,
    HOOKS,
    INNER,
    NAMED,
    NOT_ON_P,
    OPTIONS,
    PROMPTS,
    UNETS,
    VITAL,
    Event,
    Field,
    Form,
    P,
    name,
    number,
    text,
)


@dataclass
class Reader:
    """Reads events of one family of hosts: `a1111`, `forge` or `sdnext`. `unread` fills with names."""

    family: str
    unread: dict[str, None] = field(default_factory=dict)

    def event(self, raw: Any) -> Event | None:
        """The event with all that it needs; None where it cannot be played."""
        kind, called = (raw.get("ev"), raw.get("name")) if isinstance(raw, dict) else (None, None)
        known = {"hook": HOOKS, "callback": CALLBACKS}.get(kind) if text(kind) else None
        if known is not None and not (text(called) and called in known):
            self.unread[f"{kind} {called}"] = None
        elif kind in ("response", "request"):
            return dict(raw)
        elif kind == "unet":
            return self._unet(raw)
        elif kind == "unet_inner_forward":
            return self._read(raw, INNER, kind)
        elif kind == "hook":
            read = self._read(raw, HOOK, kind)
            return read and {**read, "p": {"class": "StableDiffusionProcessingTxt2Img", **self._p(read["p"])}}
        elif kind == "callback":
            return self._read(raw, NAMED[called], called) if called in NAMED else dict(raw)
        else:
            self.unread[f"events of kind {kind}"] = None
        return None

    def _unet(self, raw: Event) -> Event | None:
        event = self._read(raw, UNETS[self.family], "unet")
        if event is None:
            return None
        if "p" in event:
            event["p"] = self._p(event["p"])
        if isinstance(event.get("y"), dict):
            given = event["y"]
            event["y"] = self._read(given, ADDED, "unet.y") if set(given) & set(ADDED.fields) else None
            if event["y"] is None:
                self.unread.update(dict.fromkeys(f"unet.y.{key}" for key in given))
        if "transformer_options" in event:
            given = {**event["transformer_options"], "x": event["x"]}
            options = self._read(given, OPTIONS, "unet.transformer_options") or {}
            event["transformer_options"] = {key: options[key] for key in OPTIONS.fields if key != "x"}
        return event

    def _read(self, raw: Event, form: Form, kind: str) -> Event | None:
        read: Event = {}
        for key, wanted in form.fields.items():
            value = raw.get(key)
            if wanted.fits(value):
                read[key] = value
            elif value is None and not wanted.needed:
                read.update({key: None} if key in raw else {})
            else:
                self.unread[f"{kind}.{key}"] = None
                if wanted.instead is VITAL:
                    return None
                read[key] = wanted.instead(read) if callable(wanted.instead) else wanted.instead
        for key, value in raw.items():
            if key in form.others:
                read[key] = value
            elif key not in form.fields:
                self.unread[f"{kind}.{key}"] = None
        return read

    def _p(self, raw: Event) -> Event:
        """Attributes of the processing object; `(absent)` stays."""
        read = {}
        for key, value in raw.items():
            known = P.get(key, Field(name) if key == "class" else None)
            own = key in NOT_ON_P or key.startswith(("_", "deepcache"))
            if own or (known is not None and value not in (None, "(absent)") and not known.fits(value)):
                self.unread[f"p.{key}"] = None
            else:
                read[key] = value
        return read

    def request(self, raw: Any) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self.unread["request"] = None
            return {}
        wrong = [key for key in PROMPTS if not isinstance(raw.get(key), (str, type(None)))]
        if not _units_fit(raw.get("alwayson_scripts") or {}):
            wrong.append("alwayson_scripts")
        self.unread.update(dict.fromkeys(f"request.{key}" for key in wrong))
        return {key: value for key, value in raw.items() if key not in wrong}


def _units_fit(scripts: Any) -> bool:
    """Whether ControlNet's first unit, if there is one, can be read."""
    for key, kind in (("controlnet", dict), ("args", list)):
        if not isinstance(scripts, dict):
            return False
        scripts = scripts.get(key, kind())
    if not isinstance(scripts, list):
        return False
    unit = scripts[0] if scripts and isinstance(scripts[0], dict) else {}
    return all(number(unit.get(key, 1.0)) for key in ("weight", "guidance_start", "guidance_end"))


# Files -----------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file as far as it can be read: each generation's request and events."""

    host: str
    generations: list[tuple[dict[str, Any], list[Event]]]
    truncated: bool
    unread: tuple[str, ...]


def read(written: str) -> File:
    """From a file's text."""
    try:
        data, unread = json.loads(written), {}
    except (ValueError, RecursionError):
        data, unread = _salvaged(written), {"the file": None}
    if not isinstance(data, dict):
        data, unread = {}, {"the file": None}
    raw = data.get("events")
    if not isinstance(raw, list):
        raw, unread["events"] = [], None
    host = data.get("host")
    if not text(host):
        host, unread["host"] = _guess(raw), None
    reader = Reader(FAMILIES.get(host.split("-")[0], _guess(raw)), unread)
    parts: list[list[Event]] = [[]]
    for one in raw:
        if isinstance(one, dict) and one.get("ev") == "generation":
            if parts[-1]:
                parts.append([])
        else:
            event = reader.event(one)
            parts[-1] += [] if event is None else [event]
    asked = data.get("request")
    asked = asked if isinstance(asked, list) else [asked] * len(parts)
    if len(asked) != len(parts):
        unread["request"] = None
        asked = [*asked, *[{}] * len(parts)]
    requests = [reader.request(one) for one in asked[: len(parts)]]
    return File(host, list(zip(requests, parts, strict=True)), bool(data.get("truncated")), tuple(unread))


def _salvaged(written: str) -> dict[str, Any]:
    """As much as can be read of a file that breaks off: what stands before the events, and those of whole lines."""
    head, _, tail = written.partition('"events":')
    data: dict[str, Any] = {}
    for line, into in [(head.rstrip().rstrip(",") + "}", None), *((line, "events") for line in tail.splitlines())]:
        try:
            found = json.loads(line.strip().rstrip(","))
        except (ValueError, RecursionError):
            continue
        if into:
            data.setdefault(into, []).append(found)
        elif isinstance(found, dict):
            data.update(found)
    return data


def _guess(events: list[Any]) -> str:
    """The family by what its calls alone carry."""
    calls = [event for event in events if isinstance(event, dict) and event.get("ev") == "unet"]
    marks_of = {"transformer_options": "forge", "pipe": "sdnext", "scheduler": "sdnext"}
    return next((family for mark, family in marks_of.items() if any(mark in call for call in calls)), "a1111")
