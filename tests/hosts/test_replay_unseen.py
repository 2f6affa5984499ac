"""Recordings that nobody has made yet: what cannot be played is named, the rest is checked as strictly as ever."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.session.session import Session
from tests.replay import reading
from tests.replay.forms import FAMILIES
from tests.replay.recording import load
from tests.replay.scenario import CONFIGS, MAIN, Config, Outcome, recordings, replay
from tests.replay.variants import Data, variant

TRACES = Path(__file__).parents[1] / "data" / "host-traces"
A1111, FORGE, REFORGE, SDNEXT = "a1111-1.10.1", "forge-2025-06", "reforge-2026-03", "sdnext-2026-07-23"
FORECAST, AUTO = CONFIGS[4], CONFIGS[5]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recorded(path: str) -> Data:
    data: Data = json.loads((TRACES / f"{path}.json").read_text(encoding="utf-8"))
    return data


def played(written: Data | str, folder: Path, *configs: Config) -> Outcome:
    path = folder / "unseen.json"
    path.write_text(written if isinstance(written, str) else json.dumps(written), encoding="utf-8")
    return replay(load(path), configs or (MAIN,))


def calls(data: Data) -> list[dict[str, Any]]:
    return [event for event in data["events"] if event["ev"] == "unet"]


def _shortened(data: Data, evaluations: int) -> Data:
    """Without those that come after."""
    counts = itertools.accumulate(event.get("name") == "cfg_denoiser" for event in data["events"])
    numbered = list(zip(data["events"], counts, strict=True))
    data["events"] = [event for event, count in numbered if event["ev"] == "hook" or count <= evaluations]
    return data


# Kinds of recordings that real hosts would make --------------------------------------------------------------------


def patched() -> Data:
    """Forge with PAG: a function in the options of each call, of which the recording has the name alone."""
    data = recorded(f"{FORGE}/interrupted")
    for call in calls(data):
        call["transformer_options"]["keys"].append("patches_replace")
    return data


def tiled_in_reforge() -> Data:
    """MultiDiffusion, whose later tiles find in the options what the earlier ones left there."""
    data = _shortened(recorded(f"{FORGE}/multidiffusion"), 2)
    data["host"] = REFORGE
    left = ["activations_shape", "block", "block_index", "n_heads", "dim_head", "original_shape", "transformer_index"]
    for place, call in enumerate(calls(data)):
        options = call["transformer_options"]
        options["keys"] = ["cond_or_uncond", "sample_sigmas", "sigmas", "uuids", *(left if place % 5 else [])]
    return data


def runge_kutta() -> Data:
    """SD.Next's RungeKutta44Scheduler: four evaluations a step, timesteps that are 1000 times the noise level."""
    data = recorded(f"{SDNEXT}/txt2img")
    levels = [14.6146, 4.9, 1.2, 0.0292]
    steps = [(a, (a + b) / 2, (a + b) / 2, b) for a, b in itertools.pairwise(levels)]
    times = [1000 * level for step in steps for level in step]
    return _rescheduled(data, "RungeKutta44Scheduler", [*times, 0.0])


def _rescheduled(data: Data, scheduler: str, times: list[float]) -> Data:
    """As many calls as timesteps, each like the first."""
    call = calls(data)[0]
    place = data["events"].index(call)
    changed = {"scheduler": scheduler, "scheduler_timesteps": len(times), "num_timesteps": len(times)}
    others = [event for event in data["events"] if event["ev"] != "unet"]
    data["events"] = [*others[:place], *({**call, **changed, "t": [t]} for t in times), *others[place:]]
    return data


def detailed() -> Data:
    """A1111 with ADetailer: after a batch it makes another picture, of which no hook of ours is told."""
    data = recorded(f"{A1111}/interrupted")
    events = data["events"]
    place = next(i for i, event in enumerate(events) if event.get("name") == "postprocess_batch")
    inner = [event for event in events if event["ev"] == "unet" or str(event.get("name")).startswith("cfg")]
    events[place + 1 : place + 1] = copy.deepcopy(inner[:12])
    return data


def of_an_older_host() -> Data:
    """A1111 before 1.10 has no hook before every sampling, and none after it."""
    data = recorded(f"{A1111}/interrupted")
    data["host"] = "a1111-1.5.2"
    gone = ("process_before_every_sampling", "post_sample", "setup", "after_extra_networks_activate")
    data["events"] = [event for event in data["events"] if event.get("name") not in gone]
    return data


def caught() -> Data:
    """A1111 with an extension that catches the exception of a call and goes on."""
    data = recorded(f"{A1111}/ddim")
    calls(data)[1]["error"] = "OutOfMemoryError"
    return data


def walks_that_end() -> Data:
    """A1111, ControlNet's reference_only that ends in mid-run: later calls go over the ladder once instead of twice."""
    data = _shortened(recorded(f"{A1111}/controlnet_reference_only"), 6)
    inner = [event for event in data["events"] if event["ev"] == "unet_inner_forward"]
    data["events"] = [event for event in data["events"] if not any(event is one for one in inner[5:])]
    return data


def controlled() -> Data:
    """SD.Next with a ControlNet: another pipeline, and residuals of which the recording has the number alone."""
    data = recorded(f"{SDNEXT}/interrupted")
    for call in calls(data):
        call["pipe"] = "StableDiffusionControlNetPipeline"
        call["control"] = {"down": 12, "mid": 1}
        call["kwargs"] += ["down_block_additional_residuals", "mid_block_additional_residual"]
    return data


def refined() -> Data:
    """SD.Next with a refiner: its calls are another UNet's."""
    data = recorded(f"{SDNEXT}/txt2img")
    for call in calls(data)[6:]:
        call.update(id=1, pipe="StableDiffusionXLImg2ImgPipeline", p={**call["p"], "is_refiner_pass": True})
    return data


def retimed() -> Data:
    """SD.Next with a scheduler whose timesteps nobody knows to read."""
    data = recorded(f"{SDNEXT}/txt2img")
    for call in calls(data):
        call.update(scheduler="NewScheduler", t=[10 * call["t"][0] + 1])
    return data


def of_video() -> Data:
    """A1111 with a call of another rank in each evaluation, and in half precision."""
    data = recorded(f"{A1111}/interrupted")
    events = []
    for event in data["events"]:
        events += [event, {**event, "x": [1, 4, 8, 16, 16]}] if event["ev"] == "unet" else [event]
    data["events"] = [{**event, "dtype": "torch.float16"} if event["ev"] == "unet" else event for event in events]
    return data


def unplaced() -> Data:
    """Forge with tiles of unequal sizes, which no grid explains."""
    data = _shortened(recorded(f"{FORGE}/multidiffusion"), 2)
    for place, call in enumerate(calls(data)):
        call["x"][3] -= 2 * (place % 3)
    return data


UNSEEN: dict[Callable[[], Data], tuple[tuple[int, int], list[str]]] = {
    patched: ((2, 2), ["unet.transformer_options.patches_replace"]),
    tiled_in_reforge: ((5, 5), []),
    runge_kutta: ((8, 8), []),
    detailed: ((2, 2), []),
    of_an_older_host: ((2, 2), []),
    caught: ((2, 3), []),
    walks_that_end: ((3, 4), []),
    controlled: (
        (2, 2),
        [
            "unet.control",
            "unet.kwargs.down_block_additional_residuals",
            "unet.kwargs.mid_block_additional_residual",
        ],
    ),
    refined: ((4, 4), ["unet.id"]),
    retimed: ((5, 5), ["unet.t"]),
    of_video: ((2, 2), ["unet.dtype", "unet.x"]),
    unplaced: ((0, 5), ["unet.x"]),
}
"""Cached and planned calls at interval 3, and what is not played."""


@pytest.mark.parametrize("make", UNSEEN, ids=lambda make: make.__name__)
def test_unseen(make: Callable[[], Data], tmp_path: Path) -> None:
    counts, unplayed = UNSEEN[make]
    configs = (MAIN, FORECAST) if make in (runge_kutta, retimed) else (MAIN,)
    outcome = played(make(), tmp_path, *configs)
    assert not outcome.failures, "\n".join(outcome.failures[:10])
    assert (outcome.main.cached, outcome.main.planned) == counts
    assert sorted(outcome.unplayed) == unplayed
    assert all(name in outcome.line() for name in outcome.unplayed)


def test_auto_forecasts_where_full_evaluations_lie_close(tmp_path: Path) -> None:
    """SD.Next tells the noise levels in advance; here they are close at interval 5, and no real recording's are."""
    data = _rescheduled(recorded(f"{SDNEXT}/txt2img"), "EulerDiscreteScheduler", [600.0 - 25 * k for k in range(13)])
    assert not (failures := played(data, tmp_path, AUTO).failures), failures[:10]


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    written = (TRACES / FORGE / "ddim.json").read_text(encoding="utf-8")
    outcome = played(written[: written.index('"denoiser_step":6')], tmp_path)
    assert not outcome.failures, outcome.failures[:10]
    assert (outcome.main.cached, outcome.main.planned) == (4, 4)
    assert outcome.unplayed == ["the file", "the end of unseen/0"]


# A mismatch is one, whatever is not played -------------------------------------------------------------------------


def test_notices_a_feature_that_was_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = lambda self, kept, now: [feature * (1 + 1e-6) for feature in kept[-1].features]  # noqa: E731
    monkeypatch.setattr(Copy, "estimate", wrong)
    outcome = played(patched(), tmp_path)
    assert "differs from the reference" in outcome.failures[0] and "FAILED   not played: unet." in outcome.line()


def test_notices_what_the_extension_lets_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: Any, *_: Any) -> None:
        raise ArithmeticError("broken")

    monkeypatch.setattr(Session, "after", broken)
    (failure,) = (one for one in played(patched(), tmp_path).failures if "raised" in one)
    assert "call 0 raised ArithmeticError('broken')" in failure


# Anything at all ---------------------------------------------------------------------------------------------------

ALL = [path for host in (A1111, FORGE, REFORGE, SDNEXT) for path in recordings(TRACES / host)]
SHORT = [path for path in ALL if path.stem in ("crash", "interrupted", "ngms", "cfg_end")]


def test_what_is_as_described_is_read_as_it_is() -> None:
    for path in ALL:
        written = path.read_text(encoding="utf-8")
        file, events = reading.read(written), json.loads(written)["events"]
        assert [one for _, part in file.generations for one in part] == [
            event for event in events if event["ev"] != "generation"
        ]
        assert not file.unread


def test_what_was_read_is_as_described() -> None:
    """Whatever stands in a file: read once more, there is nothing left to name."""
    named = 0
    for seed in range(400):
        path = random.Random(seed).choice(SHORT)
        file = reading.read(variant(json.loads(path.read_text(encoding="utf-8")), seed)[0])
        host = file.host if file.host.split("-")[0] in FAMILIES else path.parent.name
        requests = [request for request, _ in file.generations]
        events = [event for _, part in file.generations for event in ({"ev": "generation"}, *part)]
        again = reading.read(json.dumps({"host": host, "request": requests, "events": events}))
        assert not again.unread, seed
        named += bool(file.unread)
    assert named > 100


@pytest.mark.parametrize("seed", [8, 9, 13, 16, 17, 23, 28])
def test_a_variant(seed: int, tmp_path: Path) -> None:
    """Whatever was changed, the extension does right by it: there is no mismatch, and nothing breaks. Of the first
    seeds these are changes that could not be played before.
    """
    path = SHORT[seed % len(SHORT)]
    written, changed = variant(json.loads(path.read_text(encoding="utf-8")), 1000 + seed)
    outcome = played(written, tmp_path)
    assert not outcome.failures, (path, changed, outcome.failures[:10])
