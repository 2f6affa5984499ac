"""The embedded host in Forge's mode: against Forge's recordings, and with the extension in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.embedded import TRACES, Hosts, comparable, differences, load, outline, play, split

FOLDER = "forge-2025-06"
OTHER_EXTENSIONS = {"multidiffusion"}
SCENARIOS = sorted({path.stem for path in (TRACES / FOLDER).glob("*.json")} - OTHER_EXTENSIONS)

pytestmark = pytest.mark.filterwarnings("ignore:Should have t")  # torchsde about the outermost noise levels


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    made = Hosts("forge")
    yield made
    made.close()


@pytest.mark.sample("first_generation_after_start", "heun", "split_low_memory", "refiner", "hires_cfg_default", "crash")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_same_events_as_the_real_host(hosts: Hosts, scenario: str) -> None:
    trace = load(FOLDER, scenario)
    requests = trace["request"] if isinstance(trace["request"], list) else [trace["request"]]
    parts = split(trace["events"])
    names = outline(parts[0])
    if "model_loaded" in names and names.index("model_loaded") < names.index("process"):
        hosts.close()  # the first generation after the start
        host = hosts("tinyA")
        with pytest.raises(AttributeError):
            host.unet  # noqa: B018 - there is none yet
    else:
        host = hosts("tinyA")
        host.module("sd_models").reload_model_weights()
    host.module("shared").opts.batch_cond_uncond = not scenario.startswith("split")
    assert len(parts) == len(requests)
    for request, recorded in zip(requests, parts, strict=True):
        theirs = [comparable(event) for event in recorded if event["ev"] != "request"]
        request = {**request, "refiner_checkpoint": "tinyB"} if "refiner_checkpoint" in request else request
        ours = [comparable(event) for event in play(host, request, recorded)]
        assert outline(ours) == outline(theirs)
        wrong = [line for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for line in differences(a, b, str(i))]
        assert not wrong, "\n".join(wrong[:20])
