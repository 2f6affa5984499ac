"""A sample of the long runs (`make soak` does all of it), and proof that they notice what they are for."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.session import attachment, decisions, slots
from deepcache_ext.session.session import Session
from deepcache_ext.settings.fields import FIELD
from demo.webui.boot import boot
from tests.soak import faults, generations
from tests.soak.__main__ import TRACES, main

SAMPLE = 16
PICTURES, FIRST = 5, 126


@pytest.fixture(scope="module")
def host() -> Any:
    with boot(model="tinyA") as running:
        yield running


def silent(_: str) -> None:
    pass


def one(scenario: str, kind: str, call: int) -> faults.Tally:
    tally = faults.Tally()
    with torch.no_grad(), faults.as_in_the_host(), faults.frozen():
        faults._inject_all(TRACES / f"{scenario}.json", [(0, faults.Fault(kind, call))], tally)
    return tally


@pytest.mark.slow
def test_a_sample_of_faults_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    tally = faults.run(faults.recordings(TRACES), SAMPLE, seed=0, say=silent)
    with capsys.disabled():
        print(f"\n{tally.lines()[0]}")
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.injected.total() == SAMPLE


def test_every_call_of_every_recording_is_a_place_for_faults() -> None:
    """The full run leaves none out: as many places as the recordings have calls, for each kind."""
    places = faults.places(faults.recordings(TRACES))
    calls = sum(len(g.calls()) for path in faults.recordings(TRACES) for g in faults.load(path).generations)
    assert len(places) == len(set(places)) == calls * len(faults.KINDS)


@pytest.mark.parametrize("kind", faults.KINDS)
def test_each_kind_of_fault(kind: str) -> None:
    tally = one("controlnet", kind, 4)
    assert not tally.failures and tally.injected == {kind: 1}


@pytest.mark.sample("4")
@pytest.mark.parametrize("call", range(9))
def test_every_function_of_ours_may_fail(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = []
    monkeypatch.setattr(Session, "_break", lambda self, real=Session._break: (broken.append(1), real(self)))
    tally = one("n_iter_2", "in our own code", call)
    assert not tally.failures and len(broken) == 1


def test_notices_hooks_that_stay_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment.Attachment, "unhook", lambda self, raising=False: None)
    assert "left on the UNet after the exception" in "\n".join(one("euler_a", "in the unet", 4).failures)


def test_notices_features_of_the_crashed_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = slots.Slots(1)
    monkeypatch.setattr(decisions, "Slots", lambda keeps: shared)
    monkeypatch.setattr(slots.Slots, "clear", lambda self: None)
    found = "\n".join(one("euler_a", "in a block", 4).failures)
    assert "tensors still held" in found


def test_notices_an_error_that_reaches_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_break", lambda self: 1 / 0)
    found = "\n".join(one("euler_a", "in our own code", 4).failures)
    assert "the error reached the host" in found and "ZeroDivisionError" in found


@pytest.mark.slow
def test_a_sample_of_pictures(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tally = generations.run(host, PICTURES, first=FIRST, say=silent)
    with capsys.disabled():
        print(f"\n{tally.lines()[0]}")
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.cached_calls > 0


def test_scenes_are_the_same_every_time_and_cover_the_settings() -> None:
    scenes = [generations.Scene.draw(number) for number in range(300)]
    assert scenes == [generations.Scene.draw(number) for number in range(300)]
    for scene in scenes:
        assert set(scene.settings) == set(FIELD)
        for name, value in scene.settings.items():
            assert FIELD[name].parse(value) == value
    assert {scene.request["sampler_name"] for scene in scenes} == set(generations.SAMPLERS)
    assert {scene.between for scene in scenes} == {"", "reload", "unload", "off", "twice"}


def plain_scene() -> generations.Scene:
    number = next(n for n in range(10_000) if _plain(generations.Scene.draw(n)))
    return generations.Scene.draw(number)


def _plain(scene: generations.Scene) -> bool:
    settings = scene.settings
    return (
        scene.kind == "txt2img"
        and scene.request["steps"] > 5
        and settings["estimator"] == "copy"
        and settings["passes"] == "both"
        and settings["cache_interval"] == 3
        and settings["start"] == 0
        and settings["strategy"] == "uniform"
        and settings["cache_branch_id"] < 11
        and not scene.interrupted_at
        and not scene.units
        and settings["end"] == 1.0
        and not {"enable_hr", "refiner_checkpoint"} & set(scene.request)
        and scene.request["batch_size"] == scene.request["n_iter"] == 1
        and scene.crashed_at is None
        and not scene.between
    )


@pytest.mark.slow
def test_notices_a_wrong_picture(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, scene = generations.Studio(host), plain_scene()
    assert studio.check(scene)[0] == []
    wrong = lambda self, kept, now: [feature * 1.5 for feature in kept[-1].features]  # noqa: E731
    monkeypatch.setattr(sys.modules[Copy.__module__].Copy, "estimate", wrong)
    assert "levels from the reference" in "\n".join(studio.check(scene)[0])


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "--sample", "2", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 faults injected, 2 survived" in lines
    with pytest.raises(SystemExit):
        main(["nothing"])
