"""The recorded files: what a real host called, in order, with shapes and counters."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Event = dict[str, Any]

SCHEDULED = re.compile(r"\[[^\[\]:|]*:(?:[^\[\]:|]*:)?\s*([\d.]+)\s*\]")
ALTERNATING = re.compile(r"\[([^\[\]:]*\|[^\[\]:]*)\]")
CLASS_FORWARD = "(the class forward, bound)"


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


@dataclass(frozen=True)
class Recording:
    """One file. `truncated`: the end of the last generation was not recorded."""

    name: str
    host: str
    generations: list[Generation]
    truncated: bool
    path: Path

    @property
    def crashed(self) -> bool:
        return any("error" in call for generation in self.generations for call in generation.calls())


def load(path: Path) -> Recording:
    data = json.loads(path.read_text(encoding="utf-8"))
    parts: list[list[Event]] = [[]]
    for event in data["events"]:
        if event["ev"] == "generation":
            if parts[-1]:
                parts.append([])
        else:
            parts[-1].append(event)
    requests = data["request"] if isinstance(data["request"], list) else [data["request"]] * len(parts)
    generations = [
        Generation(f"{path.stem}/{number}", request, events)
        for number, (request, events) in enumerate(zip(requests, parts, strict=True))
    ]
    return Recording(path.stem, data["host"], generations, bool(data.get("truncated")), path)


def noise(key: object, *shape: int) -> torch.Tensor:
    """Unit normal numbers that depend on the key and on nothing else."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randn(*shape, generator=generator)
