"""The embedded host against the recordings of the real one: where they differ, the embedded host is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from demo.webui.boot import Host, boot

TRACES = Path(__file__).parent / "data" / "host-traces" / "a1111-1.10.1"

OTHER_EXTENSIONS = {
    name: "recorded with ControlNet, AnimateDiff or Tiled Diffusion, which the embedded host does not have"
    for name in (
        "after_animatediff", "after_controlnet", "after_controlnet_crash", "animatediff_3_windows",
        "animatediff_one_window", "controlnet", "controlnet_crash", "controlnet_end_half", "controlnet_my_prompt",
        "controlnet_reference_only", "extensions_present_but_off", "tiled_diffusion", "tiled_diffusion_tile_batch_1",
    )
}
FOLLOWS_THE_WEIGHTS = {"dpm_adaptive": "the sampler chooses its noise levels by what the U-Net says"}
SCENARIOS = sorted(path.stem for path in TRACES.glob("*.json") if path.stem not in OTHER_EXTENSIONS)

RELATIVE = 1e-3


def load(scenario: str) -> dict[str, Any]:
    return json.loads((TRACES / f"{scenario}.json").read_text(encoding="utf-8"))


class Crash(RuntimeError):
    pass


@pytest.fixture(scope="module")
def hosts() -> Iterator[Any]:
    """A host by checkpoint; only one can be there at a time, so scenarios are sorted by it."""
    running: dict[str, Host] = {}

    def get(model: str) -> Host:
        if model not in running:
            for host in running.values():
                host.close()
            running.clear()
            running[model] = boot(extension_dir=None, model=model, record=True)
        return running[model]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these U-Nets are too small to share
    yield get
    torch.set_num_threads(threads)
    for host in running.values():
        host.close()


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

    handle = host.unet.middle_block.register_forward_pre_hook(provoke)
    try:
        generate = host.txt2img if kind == "txt2img" else host.img2img
        made = generate(**wishes)
        answer = {"ev": "response", "status": 200, "images": len(made.images)}
    except Crash:
        answer = {"ev": "response", "status": 500, "images": 0}
    finally:
        handle.remove()
    return [*host.events, answer]


def comparable(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what the embedded host does not promise: class names of the recording machinery."""
    return {key: value for key, value in event.items() if key not in ("error", "instance_forward")}


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted(set(ours) | set(theirs))
        missing = object()
        return [
            line for key in keys
            for line in differences(ours.get(key, missing), theirs.get(key, missing), f"{where}.{key}")
        ]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [line for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
                for line in differences(a, b, f"{where}[{i}]")]
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


@pytest.mark.parametrize(
    "scenario", sorted(set(SCENARIOS) - set(FOLLOWS_THE_WEIGHTS), key=lambda name: (name.startswith("sdxl"), name))
)
def test_same_events_as_the_real_host(hosts: Any, scenario: str) -> None:
    trace = load(scenario)
    host = hosts("tinyXL" if scenario.startswith("sdxl") else "tinyA")
    host.module("sd_models").reload_model_weights()  # after a refiner
    requests = trace["request"] if isinstance(trace["request"], list) else [trace["request"]]
    recorded = [
        [comparable(event) for event in part if event["ev"] != "request"] for part in split(trace["events"])
    ]
    whole = split(trace["events"])
    assert len(recorded) == len(requests)
    for request, theirs, provoked in zip(requests, recorded, whole, strict=True):
        ours = [comparable(event) for event in play(host, request, provoked)]
        assert outline(ours) == outline(theirs)
        wrong = [line for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for line in differences(a, b, str(i))]
        assert not wrong, "\n".join(wrong[:20])
