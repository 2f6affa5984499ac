"""Recordings that no host made: real ones, changed at random places in ways that a host, a recorder or an extension
that nobody has seen yet might change them.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Data = dict[str, Any]
"""A recorded file."""

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    10**12,
    14614.6,
    1e30,
    float("nan"),
    float("inf"),
    "",
    "function",
    "torch.float16",
    "no identifier",
    [],
    {},
    [0, 4, 16, 16],
    [1, 4, 2, 16, 16],
    [2, 9, 16, 16],
    [2, 4, 10**6, 10**6],
    [4, 16],
    [16],
    [[1, 2], [3]],
    [0.0],
    [-3.0, 2.0],
    [14614.6, 14614.6],
    ["function", "list[2] of Tensor"],
    {"crossattn": [2, 77, 64], "vector": [2, 2816]},
    {"attn1": {"middle": {"0": "function"}}, "tuple": ["output", 3]},
)
"""What may stand in any place."""

EXTRA = ("patches_replace", "activations_shape", "dtype", "class_labels", "sampler", "sigma_hat", "control")
KINDS = ("sampler_step", "vae", "", None, 7)


# Changes -----------------------------------------------------------------------------


def _places(event: Any) -> list[tuple[Any, Any]]:
    """Every dictionary and list in an event, with each key."""
    inner = list(event.items()) if isinstance(event, dict) else list(enumerate(event))
    found = [(event, key) for key, _ in inner]
    for _, value in inner:
        if isinstance(value, (dict, list)):
            found += _places(value)
    return found


def _some(events: list[Any], draw: random.Random) -> list[Any]:
    """One event, or all of its kind."""
    chosen = draw.choice(events)
    alike = [event for event in events if (event["ev"], event.get("name")) == (chosen["ev"], chosen.get("name"))]
    return draw.choice(([chosen], alike))


def lose_a_field(data: Data, draw: random.Random) -> str:
    events = _some(data["events"], draw)
    key = draw.choice([key for key in events[0] if key != "ev"] or ["ev"])
    for event in events:
        event.pop(key, None)
    return f"{events[0].get('ev')} without {key}"


def change_a_value(data: Data, draw: random.Random) -> str:
    events, value = _some(data["events"], draw), draw.choice(STRANGE)
    where = draw.randrange(len(_places(events[0])))
    _, key = _places(events[0])[where]
    for event in events:
        places = _places(event)
        inner, key = places[min(where, len(places) - 1)]
        inner[key] = copy.deepcopy(value)
    return f"{events[0].get('ev')} with {value!r} at {key!r}"


def change_a_size(data: Data, draw: random.Random) -> str:
    """One number of a shape; rows, channels, tokens, or anything else that is counted."""
    events, by = _some(data["events"], draw), draw.choice((-1, 1, 5))
    whole = [where for where, (inner, key) in enumerate(_places(events[0])) if type(inner[key]) is int]
    where = draw.choice(whole or [0])
    _, key = _places(events[0])[where]
    for event in events:
        places = _places(event)
        inner, key = places[min(where, len(places) - 1)]
        if type(inner[key]) is int:
            inner[key] += by
    return f"{events[0].get('ev')} with {by:+} at {key!r}"


def add_a_field(data: Data, draw: random.Random) -> str:
    events, key, value = _some(data["events"], draw), draw.choice(EXTRA), draw.choice(STRANGE)
    for event in events:
        inner: Any = event
        if isinstance(event.get("transformer_options"), dict) and draw.random() < 0.7:
            inner = event["transformer_options"]
            inner["keys"] = [*(inner.get("keys") or ()), key]
        inner[key] = copy.deepcopy(value)
    return f"{events[0].get('ev')} with a field {key}: {value!r}"


def add_a_keyword(data: Data, draw: random.Random) -> str:
    events, key = _some(data["events"], draw), draw.choice(EXTRA)
    for event in events:
        inner = event.get("kwargs")
        if isinstance(inner, list):
            inner.append(key)
        elif event.get("kw") and isinstance(event["kw"], dict):  # a hook that gets no keyword today may get none
            event["kw"][key] = copy.deepcopy(draw.choice(STRANGE))
    return f"{events[0].get('ev')} with a keyword {key}"


def lose_events(data: Data, draw: random.Random) -> str:
    lost = _some(data["events"], draw)
    data["events"] = [event for event in data["events"] if not any(event is one for one in lost)]
    return f"without {len(lost)} of {lost[0].get('ev')} {lost[0].get('name', '')}"


def repeat_an_event(data: Data, draw: random.Random) -> str:
    place = draw.randrange(len(data["events"]))
    to = draw.choice((place, draw.randrange(len(data["events"]))))
    data["events"].insert(to, copy.deepcopy(data["events"][place]))
    return f"event {place} once more"


def swap_events(data: Data, draw: random.Random) -> str:
    place = draw.randrange(max(1, len(data["events"]) - 1))
    data["events"][place : place + 2] = data["events"][place : place + 2][::-1]
    return f"events {place} and {place + 1} swapped"


def cut(data: Data, draw: random.Random) -> str:
    place = draw.randrange(len(data["events"]))
    data["events"] = data["events"][:place] if draw.random() < 0.7 else data["events"][place:]
    return f"cut at {place}"


def add_an_event(data: Data, draw: random.Random) -> str:
    kind, name = draw.choice((*KINDS, "hook", "callback", "unet")), draw.choice(("new", "title", "app_started", 3))
    event = {"ev": kind, "name": name, "args": ["Tensor"], "kw": {}}
    data["events"].insert(draw.randrange(len(data["events"])), event)
    return f"an event {kind!r} {name!r}"


def other_times(data: Data, draw: random.Random) -> str:
    factor, key = draw.choice((0.0, 14.6, -1.0, 1e6)), draw.choice(("t", "sigma"))
    for event in data["events"]:
        if isinstance(event.get(key), list):
            event[key] = [value * factor for value in event[key]]
    return f"{key} times {factor}"


def other_names(data: Data, draw: random.Random) -> str:
    key, value = draw.choice(("scheduler", "pipe", "denoiser_class", "instance_forward")), "SomethingNew"
    for event in data["events"]:
        if key in event or (key == "instance_forward" and event["ev"] == "unet"):
            event[key] = value
    for one in data["request"] if isinstance(data["request"], list) else [data["request"]]:
        one["sampler_name"] = value
    return f"{key} and the sampler are {value}"


def other_head(data: Data, draw: random.Random) -> str:
    key = draw.choice(("request", "host", "truncated", "note"))
    value = data["host"].split("-")[0] + "-2099" if key == "host" else copy.deepcopy(draw.choice(STRANGE))
    data[key] = value
    return f"{key} is {value!r}"


def fail(data: Data, draw: random.Random) -> str:
    """A call raises."""
    calls = [event for event in data["events"] if event["ev"] == "unet"]
    if calls:
        draw.choice(calls)["error"] = "OutOfMemoryError"
    return "a call raises"


CHANGES: tuple[Callable[[Data, random.Random], str], ...] = (
    lose_a_field,
    change_a_value,
    change_a_size,
    add_a_field,
    add_a_keyword,
    lose_events,
    repeat_an_event,
    swap_events,
    cut,
    add_an_event,
    other_times,
    other_names,
    other_head,
    fail,
)


def variant(data: Data, seed: int) -> tuple[str, str]:
    """The text of a changed file, and what was changed: one to three things, and now and then the file breaks off."""
    draw, changed = random.Random(seed), copy.deepcopy(data)
    told = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not changed["events"]:
            break
        told.append(draw.choice(CHANGES)(changed, draw))
    head = {key: value for key, value in changed.items() if key != "events"}
    lines = ",\n".join(json.dumps(event) for event in changed["events"])
    written = json.dumps(head)[:-1] + ', "events": [\n' + lines + "\n]}\n"
    if draw.random() < 0.05:
        written = written[: draw.randrange(len(written))]
        told.append(f"broken off after {len(written)} characters")
    return written, "; ".join(told)
