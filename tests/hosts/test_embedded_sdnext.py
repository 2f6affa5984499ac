"""The embedded host in SD.Next's mode, a real diffusers pipeline, against SD.Next's recordings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from demo.webui.checkpoints import available, make_unet, state_dict
from tests.embedded import TRACES, Hosts, comparable, differences, load, outline, play, split

FOLDER = "sdnext-2026-07-23"

# Checkpoints, masks and offloading that the embedded host does not have.
NOT_PLAYED = {
    "checkpoint_change",
    "inpaint",
    "offload_balanced",
    "offload_balanced_crash",
    "offload_balanced_first",
    "offload_none_again",
    "sdxl",
    "sdxl_hires",
    "sdxl_img2img",
}
SCENARIOS = sorted({path.stem for path in (TRACES / FOLDER).glob("*.json")} - NOT_PLAYED)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    made = Hosts("sdnext")
    yield made
    made.close()


def cleaned(event: dict[str, Any]) -> dict[str, Any]:
    """Without what the recorder knew by means of its own."""
    return {key: value for key, value in comparable(event).items() if not (event["ev"] == "unet" and key == "p")}


@pytest.mark.sample("txt2img", "heun", "hires_force", "img2img", "crash")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_same_events_as_the_real_host(hosts: Hosts, scenario: str) -> None:
    trace = load(FOLDER, scenario)
    requests = trace["request"] if isinstance(trace["request"], list) else [trace["request"]]
    parts = split(trace["events"])
    assert len(parts) == len(requests)
    for request, recorded in zip(requests, parts, strict=True):
        # `image_grid` comes from the live preview, `model_loaded` from the start.
        theirs = [
            cleaned(event)
            for event in recorded
            if event["ev"] != "request" and event.get("name") not in ("image_grid", "model_loaded")
        ]
        ours = [cleaned(event) for event in play(hosts("tinyA"), request, recorded)]
        assert outline(ours) == outline(theirs)
        wrong = [line for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for line in differences(a, b, str(i))]
        assert not wrong, "\n".join(wrong[:20])


@pytest.mark.sample("tinyA")
@pytest.mark.parametrize("name", ["tinyA", "demo-sd1"])
def test_the_unet_is_the_same_function_as_in_the_other_hosts(hosts: Hosts, name: str) -> None:
    checkpoint = available()[name]
    ldm = make_unet(checkpoint)
    ldm.load_state_dict(state_dict(checkpoint, ldm))
    theirs = hosts(name).unet
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 16, 24, generator=generator), torch.tensor([901, 13])
    context = torch.randn(2, 77, checkpoint.context, generator=generator)
    expected = ldm(x, t, context=context)
    torch.testing.assert_close(theirs(x, t, context).sample, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
