"""Measuring in each of the hosts that the demo plays: the profile, its use, and everything that can come between."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from deepcache_ext.hosts.checkpoint import checkpoint_of
from deepcache_ext.measure.profile import from_text
from deepcache_ext.measure.trial import RUNS
from deepcache_ext.plan.ageing import SOUNDED
from demo.webui.boot import Host, boot
from demo.webui.hosts import HOSTS
from tests.pictures import same

pytestmark = pytest.mark.sample(turns="host")

WISHES: dict[str, Any] = {
    "prompt": "red apple",
    "steps": 14,
    "width": 64,
    "height": 64,
    "sampler_name": "Euler",
    "seed": 5,
    "cfg_scale": 5,
}
SHADOWED = {"input_blocks", "middle_block", "output_blocks", "down_blocks", "mid_block", "up_blocks"}


@pytest.fixture(scope="module", params=sorted(HOSTS))
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("models")
    with boot(host=request.param, arguments=["--models-dir", str(folder)]) as running:
        running.folder = folder / "DeepCache"  # type: ignore[attr-defined]
        yield running


@pytest.fixture(autouse=True)
def no_profiles(host: Host) -> None:
    for path in files(host):
        path.unlink()


def files(host: Host) -> list[Path]:
    return sorted(host.folder.glob("*"))  # type: ignore[attr-defined]


def script(host: Host) -> ModuleType:
    return next(data.module for data in host.module("scripts").scripts_data if hasattr(data.module, "requests"))


def made(host: Host, wishes: dict[str, Any] | None = None, **settings: Any) -> Any:
    given = {"enabled": True, "speed_up": 2.0, **settings}
    request = {**WISHES, **(wishes or {}), "alwayson_scripts": {"DeepCache": {"args": [given]}}}
    return host.txt2img(**request)


def told(host: Host, result: Any) -> str:
    """Under the picture, or in the report where a host has no comments."""
    return str(getattr(result, "comments", "")) + json.dumps(script(host).host.last_run.as_json())


QUICK = {"pictures": 1}


@contextlib.contextmanager
def at_call_30(host: Host, do: Callable[[], None]) -> Iterator[list[None]]:
    """Something happens at the UNet's 30th call, in the midst of measuring; gives a list with an item a call."""
    calls: list[None] = []

    def count(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 30:
            do()

    handle = host.unet.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def crash() -> None:
    raise MemoryError("made for this test")


def profile_of(host: Host) -> Any:
    (path,) = files(host)
    return from_text(path.read_text(encoding="utf-8"))


def as_if_deep_features_hold(host: Host) -> None:
    """Another profile in the place of the one that was measured: its plan is another one on any checkpoint."""
    (path,) = files(host)
    found = profile_of(host)
    sounded = {0: 1.0, 2: 0.3, 5: 0.02}
    path.unlink()
    script(host).host.profiles.add(dataclasses.replace(found, ageing=sounded))


def test_it_makes_a_profile_that_later_pictures_follow(host: Host) -> None:
    uncached = host.txt2img(**WISHES)
    unmeasured = made(host)
    first = made(host, measure=QUICK)
    profile, (path,) = profile_of(host), files(host)
    assert profile.made_for.titled == "Euler, 14 steps" and not profile.made_for.fresh_noise
    assert profile.made_for.checkpoint == "demo-sd1" and profile.made_for.checksum and path.name == profile.file_name
    assert tuple(profile.ageing) == SOUNDED[12] and profile.ageing[0] == 1.0 and profile.pictures == 1
    assert all(0.01 < profile.ageing[branch] < 1 for branch in (2, 5))
    assert f'"measured": "measured: {profile.in_words}; saved as {path.name}"' in told(host, first)
    again = made(host)
    assert '"measured": ""' in told(host, again) and same(first, again) and not same(first, uncached)
    as_if_deep_features_hold(host)
    deeper = made(host)
    assert not same(deeper, first) and not same(deeper, unmeasured)
    said = deeper.extra_generation_params
    assert said["DeepCache strategy"] == "custom" and "DeepCache speed up" not in said and "DeepCache note" not in said
    # Of the infotext alone, without the profile.
    files(host)[0].unlink()
    listed = {"full_evaluations": said["DeepCache full steps"], "cache_branch_id": said["DeepCache branch"]}
    assert same(deeper, made(host, strategy="custom", estimator=said["DeepCache estimator"], **listed))
    assert same(made(host), unmeasured)
    assert len(host.txt2img(**WISHES).images) == 1 and same(host.txt2img(**WISHES), uncached)
    assert not SHADOWED & set(vars(host.unet))
    assert not host.unet._forward_hooks and not host.unet._forward_pre_hooks


def test_it_holds_for_other_speeds_and_steps_and_not_for_samplers_that_add_noise(host: Host) -> None:
    ours = script(host)
    made(host, measure=QUICK)
    as_if_deep_features_hold(host)
    for wishes, settings in (({}, {"preset": "Quality"}), ({"steps": 17}, {}), ({"sampler_name": "DPM++ 2M"}, {})):
        made(host, wishes, **settings)
        (one,) = ours.host.last_run.passes
        assert one.planned.hint.startswith("as measured on this model")
    made(host, {"sampler_name": "Euler a"})
    (one,) = ours.host.last_run.passes
    assert "as measured" not in one.planned.hint
    result = made(host, {"sampler_name": "Euler a"}, measure=QUICK)
    assert '"measured": "measured: ' in told(host, result) and len(files(host)) == 2
    assert sorted(one.made_for.fresh_noise for one in ours.host.profiles.known()) == [False, True]
    (one,) = ours.host.last_run.passes
    assert one.planned.hint.startswith("as measured")
    deepest = max(branch or 0 for branch in one.planned.branches)
    assert one.planned.estimator.name == ("forecast" if deepest else "copy")


def test_all_pictures_of_batches_follow_it(host: Host) -> None:
    made(host, measure=QUICK)
    as_if_deep_features_hold(host)
    made(host, {"n_iter": 2, "batch_size": 2})
    first, second = script(host).host.last_run.passes
    assert first.planned.branches == second.planned.branches and first.report.medium_evaluations > 0
    assert second.report.medium_evaluations == first.report.medium_evaluations


def test_the_settings_of_the_page_do_not_change_what_is_measured(host: Host) -> None:
    made(host, measure=QUICK)
    plain = profile_of(host)
    files(host)[0].unlink()
    odd = {"start": 0.3, "end": 0.7, "passes": "hires only", "estimator": "copy", "deeper_branch_id": 7}
    made(host, strategy="uniform", enabled=False, **odd, measure=QUICK)
    assert profile_of(host) == plain


def test_a_press_counts_once(host: Host) -> None:
    ours = script(host)
    word = ours.requests.press(1)
    controls = [True, "Custom", 3, 0, "auto", 0.0, 1.0, "both", 0, -1, "weighted", 1.6, 0.0, "", 0.3, 1.4, 0, word]
    request = {**WISHES, "alwayson_scripts": {"DeepCache": {"args": controls}}}
    host.txt2img(**request)
    (path,) = files(host)
    path.unlink()
    result = host.txt2img(**request)  # the box still holds the word
    assert files(host) == [] and len(result.images) == 1
    host.txt2img(**{**WISHES, "alwayson_scripts": {"DeepCache": {"args": [*controls[:-1], "of another time"]}}})
    assert files(host) == []


@pytest.mark.sample
@pytest.mark.parametrize(
    ("asked", "wishes", "words"),
    [
        ({"pictures": 99}, {}, "pictures = 99 is not allowed: a whole number from 1 to 16"),
        ("soon", {}, "measure = 'soon' is not allowed: true, or an object with pictures"),
        (QUICK, {"steps": 8}, "only 8 steps: it needs 12 or more"),
    ],
)
def test_what_cannot_be_measured_makes_the_picture_and_says_why(
    host: Host,
    asked: Any,
    wishes: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script(host).host._said.clear()
    monkeypatch.setattr(logging.getLogger("deepcache"), "propagate", True)
    result = made(host, wishes, measure=asked)
    assert len(result.images) == 1 and files(host) == []
    assert f"not measured: {words}" in caplog.text and f'"measured": "not measured: {words}' in told(host, result)


def test_interrupted_nothing_is_saved_and_the_next_picture_is_as_before(host: Host) -> None:
    uncached = host.txt2img(**WISHES)
    with at_call_30(host, host.interrupt) as calls:
        made(host, measure=QUICK)
    assert len(calls) < 60 and files(host) == []
    assert host.module("shared").state.textinfo is None
    assert same(host.txt2img(**WISHES), uncached)
    assert not SHADOWED & set(vars(host.unet)) and not host.unet._forward_pre_hooks


def test_skip_ends_it_too(host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host forgets it at the next picture: what is half made must not be what is measured."""
    script(host).host._said.clear()
    monkeypatch.setattr(logging.getLogger("deepcache"), "propagate", True)
    with at_call_30(host, host.module("shared").state.skip) as calls:
        made(host, measure=QUICK)
    assert len(calls) < 60 and files(host) == [] and "not measured:" in caplog.text


def test_every_run_and_the_picture_get_the_same_of_the_common_generator(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VAEs of real hosts draw from it in img2img, so that the runs would differ by more than caching."""
    seen: list[torch.Tensor] = []
    processing, ours = host.module("processing"), script(host).host
    inner, begin = processing.process_images, ours.before_process

    def spy(p: Any) -> Any:
        seen.append(torch.get_rng_state())
        result = inner(p)
        torch.rand(3)
        return result

    def begun(p: Any, *args: Any) -> None:
        if not getattr(p, "deepcache_told", ""):
            seen.append(torch.get_rng_state())
        begin(p, *args)

    monkeypatch.setattr(processing, "process_images", spy)
    monkeypatch.setattr(ours, "before_process", begun)
    made(host, measure=QUICK)
    assert len(seen) == RUNS + 2 and all(torch.equal(seen[0], state) for state in seen)


def test_a_script_that_chooses_each_seed_is_told(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a prompt matrix."""
    script(host).host._said.clear()
    monkeypatch.setattr(logging.getLogger("deepcache"), "propagate", True)
    p = host.module("processing").StableDiffusionProcessingTxt2Img(**WISHES)
    p.seed = [5, 5]
    script(host).host.measure(p, [{"enabled": True}], True)
    assert "not measured: a script chooses the seed of each picture" in caplog.text and p.seed == [5, 5]


def test_what_a_host_says_of_its_checkpoint() -> None:
    for name, known in {"Diffusers/of-v1.5": "of-v1.5", "sub/a.b.safetensors": "a.b", "of.ckpt": "of"}.items():
        info = SimpleNamespace(name=name, shorthash=None)
        assert checkpoint_of(SimpleNamespace(sd_checkpoint_info=info)) == (known, "")


def test_a_crash_on_the_way_loses_nothing_else(host: Host) -> None:
    uncached = host.txt2img(**WISHES)
    with at_call_30(host, crash) as calls:
        result = made(host, measure=QUICK)
    assert len(calls) > 30 and len(result.images) == 1 and files(host) == []
    assert getattr(result, "comments", "").count("not measured:") == 1
    assert same(host.txt2img(**WISHES), uncached)
    assert not SHADOWED & set(vars(host.unet)) and not host.unet._forward_pre_hooks


def test_a_script_that_sets_our_settings_is_left_alone(host: Host) -> None:
    """As an X/Y/Z grid or the compare script: each of their pictures would measure."""
    ours, processing = script(host), host.module("processing")
    kind = processing.StableDiffusionProcessingTxt2Img
    p = kind(**WISHES)
    p.deepcache_overrides = {"cache_interval": 2}
    ours.host.measure(p, [{"enabled": True}], True)
    assert files(host) == []


def test_what_is_measured_by_is_not_saved_and_has_no_hires_pass(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    processing = host.module("processing")
    inner = processing.process_images

    def spy(p: Any) -> Any:
        if script(host).host._measures:
            seen.append((p.enable_hr, p.do_not_save_samples, p.do_not_save_grid, p.seed, p.batch_size * p.n_iter))
        return inner(p)

    monkeypatch.setattr(processing, "process_images", spy)
    result = made(host, {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 12}, measure={"pictures": 2})
    assert seen == [(False, True, True, 5, 2)] * RUNS
    passes = script(host).host.last_run.passes
    assert [one.report.hires for one in passes] == [False, True] and len(files(host)) == 1
    assert passes[0].planned.remark == passes[1].planned.remark == ""
    assert "as measured" in passes[0].planned.hint and "as measured" not in passes[1].planned.hint
    assert result.extra_generation_params["DeepCache hires speed up"] == 2.0


def test_a_plan_that_is_refused_is_not_measured(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that could not follow its plan is uncached, and equal to the picture that it is held against."""
    inner = script(host).host._begin

    def refused(p: Any, args: Any) -> Any:
        overrides = getattr(p, "deepcache_overrides", None) or {}
        if overrides.get("strategy") == "custom":
            p.deepcache_overrides = {**overrides, "full_evaluations": "none that can be read"}
        return inner(p, args)

    monkeypatch.setattr(script(host).host, "_begin", refused)
    result = made(host, measure=QUICK)
    assert len(result.images) == 1 and files(host) == []


def test_a_broken_picture_is_not_measured(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD.Next gives what there is when a run breaks off."""
    ours, calls = script(host).host, 0
    inner = ours._end_pass

    def shorter(p: Any, generation: Any) -> None:
        nonlocal calls
        inner(p, generation)
        outcome = generation.outcome
        if ours._measures and outcome is not None and outcome.passes:
            calls += 1
            if calls > 2:
                outcome.passes[-1].report.evaluations = 9

    monkeypatch.setattr(ours, "_end_pass", shorter)
    result = made(host, measure=QUICK)
    assert calls > 2 and len(result.images) == 1 and files(host) == []


def test_a_picture_made_inside_another_does_not_measure_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by ADetailer: a new `p` whose arguments still ask for it."""
    processing, ours = host.module("processing"), script(host)
    inner, depth, deepest_seen = processing.process_images, 0, 0
    again = ours.host.measure

    def counted(p: Any, args: Any, asked: Any) -> None:
        nonlocal depth, deepest_seen
        depth += 1
        deepest_seen = max(deepest_seen, depth)
        try:
            if depth > 1:
                runs.append(asked)
                again(p, args, True)  # what its arguments would say
                return
            again(p, args, asked)
        finally:
            depth -= 1

    runs: list[Any] = []
    monkeypatch.setattr(ours.host, "measure", counted)
    made(host, measure=QUICK)
    assert deepest_seen == 2 and len(runs) == RUNS and len(files(host)) == 1
    assert processing.process_images is inner


@pytest.mark.slow
def test_the_words_of_the_runs_stay_with_them(host: Host) -> None:
    wishes = {"steps": 12, "width": 96, "height": 96}
    result = made(host, wishes, speed_up=4.0, measure={"pictures": 1})
    comments = getattr(result, "comments", "")
    assert comments.count("DeepCache:") <= 1
