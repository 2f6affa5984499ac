"""The embedded host beside the recordings of a real one: played, and compared event by event."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from demo.webui.boot import Host, boot

TRACES = Path(__file__).parent / "data" / "host-traces"
RELATIVE = 1e-3


def load(folder: str, scenario: str) -> dict[str, Any]:
    return json.loads((TRACES / folder / f"{scenario}.json").read_text(encoding="utf-8"))


class Crash(RuntimeError):
    pass


class Hosts:
    """Gives a host by its checkpoint. Only one can be there at a time."""

    def __init__(self, kind: str = "a1111") -> None:
        self.kind = kind
        self.running: Host | None = None
        self.model = ""

    def __call__(self, model: str) -> Host:
        if self.running is None or model != self.model:
            self.close()
            self.running, self.model = self._boot(model), model
        return self.running

    def _boot(self, model: str) -> Host:
        return boot(extension_dir=None, model=model, record=True, host=self.kind)

    def close(self) -> None:
        if self.running is not None:
            self.running.close()
            self.running = None


def deepest(host: Host) -> Any:
    """The UNet's middle block, by its name in ldm or in diffusers."""
    return host.unet.middle_block if hasattr(host.unet, "middle_block") else host.unet.mid_block


def play(host: Host, request: dict[str, Any], recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The embedded host's events for a recorded request, with the recorded interrupt or crash at the same place."""
    wishes = {key: value for key, value in request.items() if key != "path"}
    kind = request["path"].rsplit("/", 1)[1]
    picture = Image.new("RGB", (wishes["width"], wishes["height"]), (200, 80, 40))
    if kind == "img2img":
        wishes["init_images"] = [picture]
        if "mask" in wishes:
            wishes["mask"] = Image.new("L", picture.size, 255)
    host.restart_recording()
    calls = [event for event in recorded if event["ev"] == "unet"]
    stop_after = crash_at = None
    for place, event in enumerate(recorded):
        if event["ev"] == "request":
            stop_after = sum(before["ev"] == "unet" for before in recorded[:place])
    crash_at = next((i for i, call in enumerate(calls) if "error" in call), None)
    seen = 0

    def provoke(module: Any, args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_after:
            host.interrupt()
        if crash_at is not None and seen == crash_at + 1:
            raise Crash("provoked")

    handle = None
    if stop_after is not None or crash_at is not None:
        handle = deepest(host).register_forward_pre_hook(provoke)
    try:
        generate = host.txt2img if kind == "txt2img" else host.img2img
        made = generate(**wishes)
        answer = {"ev": "response", "status": 200, "images": len(made.images)}
    except Crash:
        answer = {"ev": "response", "status": 500, "images": 0}
    finally:
        if handle is not None:
            handle.remove()
    return [*host.events, answer]


def comparable(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what the embedded host does not promise: class names of the recording machinery."""
    return {key: value for key, value in event.items() if key not in ("error", "instance_forward", "unet_class")}


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted(set(ours) | set(theirs))
        missing = object()
        return [
            line
            for key in keys
            for line in differences(ours.get(key, missing), theirs.get(key, missing), f"{where}.{key}")
        ]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [
            line
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for line in differences(a, b, f"{where}[{i}]")
        ]
    if isinstance(theirs, float) and isinstance(ours, (int, float)):
        # Recorded floats are rounded to four decimals.
        return [] if math.isclose(ours, theirs, rel_tol=RELATIVE, abs_tol=1e-4) else [f"{where}: {ours} != {theirs}"]
    return [] if ours == theirs else [f"{where}: {ours!r} != {theirs!r}"]


def outline(events: list[dict[str, Any]]) -> list[str]:
    return [event.get("name", event["ev"]) for event in events]


def split(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """By generation, for files with several."""
    parts: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event["ev"] == "generation":
            if parts[-1]:
                parts.append([])
        else:
            parts[-1].append(event)
    return parts
