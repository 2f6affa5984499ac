"""The recorded files: what a real host called, in order, with shapes and counters."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import reading
from .forms import Event

SCHEDULED = re.compile(r"\[[^\[\]:|]*:(?:[^\[\]:|]*:)?\s*(\d+\.?\d*|\.\d+)\s*\]")
ALTERNATING = re.compile(r"\[([^\[\]:]*\|[^\[\]:]*)\]")
CLASS_FORWARD = "(the class forward, bound)"


def in_timesteps(event: Event) -> bool:
    """Whether an announced evaluation's `sigma` is a timestep: only in A1111; Forge has made a sigma of it."""
    return event["denoiser_class"] == "CFGDenoiserTimesteps" and event.get("host", "").startswith("a1111")


@dataclass(frozen=True)
class Generation:
    """One call of the host's API: what was asked for, and what happened. `key` seeds random numbers."""

    key: str
    request: dict[str, Any]
    events: list[Event]

    def calls(self) -> list[Event]:
        return [event for event in self.events if event["ev"] == "unet"]

    def sampler(self, hires: bool) -> str:
        """The sampler's name in the first or in the hires pass."""
        name = self.request.get("sampler_name") or "Euler a"
        other = self.request.get("hr_sampler_name") if hires else None
        return other if other and other != "Use same sampler" else name

    def prompt_version(self, negative: bool, step: int, total: int) -> int:
        """Which of a prompt's versions holds: `[a:b:0.5]` changes it once, `[a|b]` at every evaluation.

        The host picks the first version whose last step is not before `step`.
        """
        text = self.request.get("negative_prompt" if negative else "prompt") or ""
        ends = []
        for found in SCHEDULED.finditer(text):
            when = float(found[1])
            ends.append(min(total, int(when * total if "." in found[1] and when < 1 else when)))
        version = sum(step > end for end in set(ends))
        alternatives = [len(found[1].split("|")) for found in ALTERNATING.finditer(text)]
        for count in alternatives:
            version = version * count + max(step - 1, 0) % count
        return version

    @property
    def crashed(self) -> bool:
        """Whether its last call raised."""
        calls = self.calls()
        return bool(calls) and "error" in calls[-1]

    @property
    def ended(self) -> bool:
        """Whether the host came to its end, which SD.Next tells by a callback and the others by a hook; or to an
        exception that it told nothing after.
        """
        told = [event for event in self.events if event["ev"] in ("hook", "callback", "unet")]
        began = any(event["ev"] == "hook" for event in told)
        ends = any(event.get("name") in ("postprocess", "after_process") for event in told)
        return ends or not began or "error" in told[-1]


HOOKS_OF_THE_END = {"post_sample": ["PostSampleArgs"], "postprocess_batch": [], "postprocess": ["Processed"]}
"""With what they get besides the script's own values."""


@dataclass(frozen=True)
class Recording:
    """One file. `truncated`: the end of the last generation was not recorded. `unread`: names of what could not be
    read, and is left out or stood in for.
    """

    name: str
    host: str
    generations: list[Generation]
    truncated: bool
    path: Path
    unread: tuple[str, ...] = ()

    @property
    def crashed(self) -> bool:
        return any("error" in call for generation in self.generations for call in generation.calls())


def load(path: Path) -> Recording:
    file = reading.read(path.read_text(encoding="utf-8", errors="replace"))
    for _, events in file.generations:
        for event in events:
            event["host"] = file.host
    generations = [
        Generation(f"{path.stem}/{number}", request, events)
        for number, (request, events) in enumerate(file.generations)
    ]
    return Recording(path.stem, file.host, generations, file.truncated, path, file.unread)


def finished(generation: Generation) -> Generation:
    """A generation whose end was not recorded, with the hooks that the host calls at the end.

    An evaluation of which no call was recorded is left out.
    """
    events = list(generation.events)
    while events and events[-1]["ev"] == "callback":
        name = events.pop()["name"]
        if name == "cfg_after_cfg":
            events.append(generation.events[len(events)])
            break
    last = next((event for event in reversed(generation.events) if event["ev"] == "hook"), None)
    if last is None:
        return replace(generation, events=events)
    end = [
        {**last, "name": name, "args": [*given, "bool", "int"], "kw": {}} for name, given in HOOKS_OF_THE_END.items()
    ]
    return replace(generation, events=[*events, *end])


def noise(key: object, *shape: int) -> torch.Tensor:
    """Unit normal numbers that depend on the key and on nothing else."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randn(*shape, generator=generator)
