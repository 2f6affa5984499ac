"""The extension in the embedded A1111: whole generations, their infotexts, and what is left after them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from deepcache_ext.report.pass_report import Reason
from deepcache_ext.settings.fields import FIELDS
from demo.webui.boot import Host, boot
from tests import unets
from tests.pictures import infotext, pixels, same

REQUEST = {"prompt": "a cat", "steps": 8, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
HIRES = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
FOURTH = {"enabled": True, "cache_interval": 4}


pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA", record=True) as running:
        yield running


def script_module(host: Host):
    return next(d.module for d in host.module("scripts").scripts_data if d.module.__file__.endswith("deepcache.py"))


def host_object(host: Host):
    return script_module(host).host


def make(host: Host, *args, kind: str = "txt2img", **changes):
    request = {**REQUEST, **changes}
    if args:
        request["alwayson_scripts"] = {"DeepCache": {"args": list(args)}}
    return getattr(host, kind)(**request)


SCENES = {
    "txt2img": {},
    "hires": HIRES,
    "two evaluations": {"sampler_name": "Heun"},
    "sde": {"sampler_name": "DPM++ SDE"},
    "timesteps": {"sampler_name": "DDIM"},
    "long prompt": {"prompt": "a cat " * 60},
    "and": {"prompt": "a cat AND a dog"},
    "batch": {"batch_size": 2, "n_iter": 2},
    "odd": {"width": 136, "height": 120},
}


@pytest.mark.sample("txt2img")
@pytest.mark.parametrize("scene", SCENES)
def test_off_and_interval_one_are_the_hosts_own_picture(host, scene):
    """Promise 3; and that the setting does something at all."""
    plain = make(host, **SCENES[scene])
    assert same(make(host, {"enabled": False, "cache_interval": 2}, **SCENES[scene]), plain)
    assert same(make(host, {"enabled": True, "cache_interval": 1}, **SCENES[scene]), plain)
    assert not same(make(host, FOURTH, **SCENES[scene]), plain)
    assert same(make(host, **SCENES[scene]), plain)


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        ({}, "2 of 8 full"),
        (HIRES, "2 of 8 full, hires 2 of 8 full"),
        ({**HIRES, "hr_second_pass_steps": 5}, "2 of 8 full, hires 2 of 5 full"),
        ({"sampler_name": "Heun"}, "4 of 15 full"),
        ({"sampler_name": "DPM++ SDE"}, "4 of 15 full"),
        ({"prompt": "a cat " * 60}, "2 of 8 full"),
    ],
)
def test_what_happened_is_in_the_infotext(host, scene, expected):
    assert infotext(host, make(host, FOURTH, **scene))["DeepCache"] == expected


def test_img2img_and_inpaint(host):
    picture = Image.new("RGB", (64, 64), (90, 140, 200))
    for more in ({}, {"mask": Image.new("L", (64, 64), 255)}):
        arguments = {"kind": "img2img", "init_images": [picture], "denoising_strength": 0.7, **more}
        plain = make(host, **arguments)
        cached = make(host, FOURTH, **arguments)
        assert infotext(host, cached)["DeepCache"] == "2 of 6 full"
        assert not same(cached, plain)
        assert same(make(host, {"enabled": True, "passes": "hires only"}, **arguments), plain)


def test_every_batch_begins_anew(host):
    two = make(host, FOURTH, n_iter=2)
    second = make(host, FOURTH, seed=2)
    assert np.array_equal(pixels(two)[-1], pixels(second)[-1])
    assert [infotext(host, two, i)["DeepCache"] for i in (0, 1)] == ["2 of 8 full"] * 2


def test_own_values_for_the_hires_pass(host):
    done = make(host, {**FOURTH, "hires_cache_interval": 2, "hires_cache_branch_id": 3}, **HIRES)
    assert infotext(host, done)["DeepCache"] == "2 of 8 full, hires 4 of 8 full"
    first = make(host, {**FOURTH, "passes": "first only"}, **HIRES)
    assert infotext(host, first)["DeepCache"] == "2 of 8 full"
    hires = make(host, {**FOURTH, "passes": "hires only"}, **HIRES)
    assert infotext(host, hires)["DeepCache"] == "hires 2 of 8 full"


@pytest.mark.sample("Euler-forecast", "Euler a-copy")
@pytest.mark.parametrize(
    ("sampler", "usual"),
    [
        ("Euler", "forecast"),
        ("DDIM", "forecast"),
        *((name, "copy") for name in ("Euler a", "DPM++ SDE", "LCM", "Restart", "DPM fast")),
    ],
)
def test_auto_forecasts_where_full_evaluations_lie_close_and_no_noise_is_added(host, sampler, usual):
    second, more = {"enabled": True, "cache_interval": 2}, {"sampler_name": sampler, "steps": 18}
    other = {"forecast": "copy", "copy": "forecast"}[usual]
    done = make(host, second, **more)
    assert infotext(host, done)["DeepCache estimator"] == usual
    assert same(done, make(host, {**second, "estimator": usual}, **more))
    assert not same(done, make(host, {**second, "estimator": other}, **more))
    assert infotext(host, make(host, {**second, "cache_interval": 9}, **more))["DeepCache estimator"] == "copy"


class LevelsSeen:
    """What `noise_levels` foresaw at the start of each pass, and what then came."""

    def __init__(self, host: Host, monkeypatch) -> None:
        from deepcache_ext.hosts.a1111 import adapter

        self.passes: list[tuple[list[float] | None, list[float]]] = []
        foresee, level = adapter.noise_levels, adapter.noise_level

        def begin(params, p, total):
            self.passes.append((foresee(params, p, total), []))
            return self.passes[-1][0]

        def note(params, p):
            self.passes[-1][1].append(level(params, p))
            return self.passes[-1][1][-1]

        monkeypatch.setattr(adapter, "noise_levels", begin)
        monkeypatch.setattr(adapter, "noise_level", note)


WEIGHTED = {"enabled": True, "strategy": "weighted", "speed_up": 2.0, "estimator": "forecast"}


ONE_EVALUATION = ["Euler", "Euler a", "DPM++ 2M", "DPM++ 2M SDE", "LMS", "UniPC", "PLMS", "DDIM", "LCM"]


@pytest.mark.sample("Euler-14", "DDIM-24")
@pytest.mark.parametrize("steps", [14, 24])  # 1000 // 14 x 14 ends by the last timestep, 1000 // 24 x 24 well before it
@pytest.mark.parametrize("sampler", ONE_EVALUATION)
def test_noise_levels_to_come_are_foreseen(host, monkeypatch, sampler, steps):
    seen = LevelsSeen(host, monkeypatch)
    picture = Image.new("RGB", (64, 64), (90, 140, 200))
    make(host, WEIGHTED, sampler_name=sampler, steps=steps)
    make(host, WEIGHTED, sampler_name=sampler, steps=steps, **{**HIRES, "hr_second_pass_steps": 13})
    make(host, WEIGHTED, sampler_name=sampler, steps=20, kind="img2img", init_images=[picture], denoising_strength=0.7)
    assert len(seen.passes) == 4
    for foreseen, came in seen.passes:
        assert foreseen is not None and abs(len(foreseen) - len(came)) <= 1  # PLMS makes one more
        near = 0.02 if sampler in ("Euler", "UniPC") else 0.7  # some repeat or leave out a level
        assert all(abs(np.log(a / b)) < near for a, b in zip(foreseen, came, strict=False))


@pytest.mark.sample("Heun")
@pytest.mark.parametrize("sampler", ["Heun", "DPM++ SDE", "DPM2", "DPM++ 2S a"])
def test_noise_levels_of_two_evaluations_a_step(host, monkeypatch, sampler):
    seen = LevelsSeen(host, monkeypatch)
    make(host, WEIGHTED, sampler_name=sampler, steps=14)
    ((foreseen, came),) = seen.passes
    assert foreseen is not None and len(foreseen) == len(came) == 27
    assert all(abs(np.log(a / b)) < 1.3 for a, b in zip(foreseen, came, strict=True))


def test_a_preset_says_that_it_skips_nothing_in_a_few_step_run(host):
    done = make(host, True)
    assert same(done, make(host)) and "nothing is skipped in a run of fewer than 12 steps" in done.comments


def test_without_foreseen_levels_the_plan_is_uniform(host, monkeypatch):
    from deepcache_ext.hosts.a1111 import schedule

    monkeypatch.setattr(schedule, "_schedule", lambda params, p: [3.0, 2.0, 1.0])
    done = make(host, WEIGHTED, steps=14)
    assert infotext(host, done)["DeepCache"] == "7 of 14 full"


def test_an_infotext_makes_the_picture_again(host):
    settings = {"enabled": True, "cache_interval": 3, "cache_branch_id": 2, "start": 0.25, "hires_cache_interval": 2}
    done = make(host, settings, sampler_name="Euler a", **HIRES)
    written = infotext(host, done)
    assert written["DeepCache version"] == "2"
    again = {f.name: type(f.default)(written.get(f.infotext, f.default)) for f in FIELDS[1:]}
    assert same(make(host, {"enabled": True, **again}, sampler_name="Euler a", **HIRES), done)
    assert same(make(host, True, *again.values(), sampler_name="Euler a", **HIRES), done)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([{"enabled": True, "intervall": 3}], "intervall = 3"),
        ([{"enabled": True, "cache_interval": 99}], "cache_interval = 99 is not allowed: a whole number from 1 to 50"),
        ([True, "Custom", 3, "deep"], "cache_branch_id = 'deep'"),
        ([True, "Custom", 3, 0, "copy", 0.9, 0.1], "start = 0.9"),
    ],
)
def test_bad_input_makes_the_picture_uncached_and_says_why(host, args, words):
    done = make(host, *args)
    assert same(done, make(host))
    assert words in infotext(host, done)["DeepCache error"]
    assert words in done.comments
    assert "DeepCache" not in infotext(host, done)


def test_a_branch_that_the_model_has_not(host):
    done = make(host, {"enabled": True, "cache_interval": 3, "cache_branch_id": 12})
    assert same(done, make(host))
    assert "branches 0 to 11" in infotext(host, done)["DeepCache"] and "branches 0 to 11" in done.comments


def test_a_model_without_blocks_is_left_alone(host, monkeypatch):
    """A DiT, as far as we can see one."""

    class Transformer(torch.nn.Module):
        def forward(self, x, timesteps, context):
            return x * 0.9

    model = host.module("shared").sd_model.model
    unet = model.diffusion_model
    try:
        model.diffusion_model = Transformer()
        done = make(host, FOURTH)
        assert same(done, make(host))
        assert "8 of 8 full (the model is not a UNet" in infotext(host, done)["DeepCache"]
    finally:
        model.diffusion_model = unet


@contextlib.contextmanager
def raising(host, evaluation, error=RuntimeError):
    """The UNet raises in its nth call."""
    calls = 0

    def fail(*_):
        nonlocal calls
        calls += 1
        if calls == evaluation + 1:
            raise error("provoked")

    handle = host.unet.output_blocks[-1].register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.sample("0", "3")
@pytest.mark.parametrize("evaluation", range(8))
def test_after_a_crash_everything_is_as_before(host, evaluation):
    plain, cached = make(host), make(host, FOURTH)
    for error in (RuntimeError, KeyboardInterrupt):
        with raising(host, evaluation, error), pytest.raises(error):
            make(host, FOURTH)
        assert same(make(host), plain)
        with raising(host, evaluation, error), pytest.raises(error):
            make(host, FOURTH)
        assert same(make(host, FOURTH), cached)


@pytest.mark.parametrize("evaluation", [0, 1, 4])
def test_interrupted(host, evaluation):
    calls, expected = 0, make(host, FOURTH)

    def stop(*_):
        nonlocal calls
        calls += 1
        if calls == evaluation + 1:
            host.interrupt()

    handle = host.unet.register_forward_pre_hook(stop)
    done = make(host, FOURTH, n_iter=2)
    handle.remove()
    assert infotext(host, done)["DeepCache"].endswith("full")
    assert same(make(host, FOURTH), expected)


def test_refiner_in_place_goes_on_being_cached(host):
    """The same UNet object with other weights: what was kept is dropped, and caching goes on."""
    refiner = {"refiner_checkpoint": "tinyB", "refiner_switch_at": 0.5, "steps": 12}
    done = make(host, FOURTH, **refiner)
    assert infotext(host, done)["DeepCache"] == "4 of 12 full"
    assert not same(done, make(host, **refiner))


def test_refiner_as_another_object(host):
    done = make(host, FOURTH, refiner_checkpoint="mid15", refiner_switch_at=0.5, steps=12)
    assert infotext(host, done)["DeepCache"] == "4 of 12 full"


def inner(host, *args, **changes):
    """A generation started by another extension in the middle of one, with all scripts or with none of ours."""
    processing = host.module("processing")
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=host.module("shared").sd_model, **{**REQUEST, "seed": 5, "steps": 6, **changes}
    )
    if args:
        p.scripts = host.module("scripts").scripts_txt2img
        p.script_args = host.api._script_args("txt2img", p.scripts, {"DeepCache": {"args": list(args)}})
    return processing.process_images(p)


@pytest.mark.parametrize("args", [[], [FOURTH], [False]], ids=["none of our hooks", "cached", "off"])
def test_nested_generations_leave_the_outer_one_as_it_was(host, args):
    cached_alone, inner_alone = make(host, FOURTH), inner(host, *args)
    seen = []

    def nest(params):
        if params.sampling_step == 3 and not seen:
            seen.append(None)
            seen.append(inner(host, *args))

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoised(nest)
    done = make(host, FOURTH)
    callbacks.remove_callbacks_for_function(nest)
    assert same(done, cached_alone)
    assert same(seen[1], inner_alone)
    assert infotext(host, done)["DeepCache"] == "2 of 8 full"


@pytest.mark.parametrize("args", [[], [FOURTH]], ids=["none of our hooks", "cached"])
def test_a_nested_generation_leaves_its_own_step_behind(host, args):
    """The host counts its steps after the first evaluation of each: that the count goes on from there is no sign of
    evaluations left out.
    """
    seen = []

    def nest(_params):
        seen.append(None)
        if len(seen) == 12:  # the second evaluation of a step
            inner(host, *args, steps=2)

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoised(nest)
    done = make(host, FOURTH, sampler_name="Heun")
    callbacks.remove_callbacks_for_function(nest)
    assert infotext(host, done)["DeepCache"] == "4 of 15 full"


def test_a_nested_generation_that_crashes(host):
    cached_alone, seen = make(host, FOURTH), []

    def nest(params):
        if params.sampling_step == 3 and not seen:
            seen.append(None)
            with raising(host, 2), contextlib.suppress(RuntimeError):
                inner(host, FOURTH)

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoised(nest)
    done = make(host, FOURTH)
    callbacks.remove_callbacks_for_function(nest)
    assert same(done, cached_alone)


@pytest.mark.parametrize("changes", [{}, {"n_iter": 2}, HIRES], ids=["one", "two batches", "hires"])
def test_a_pass_that_is_made_again_after_an_error(host, monkeypatch, changes):
    """Another extension catches what ran out of memory, and samples once more: the text tells of that pass alone."""
    kind = host.module("processing").StableDiffusionProcessingTxt2Img
    sample, alone = kind.sample, make(host, FOURTH, **changes)

    def sample_again(self, *args):
        shape = self.rng.shape
        with contextlib.suppress(RuntimeError), raising(host, 5):
            sample(self, *args)
        self.rng = host.module("rng").ImageRNG(shape, self.seeds)
        return sample(self, *args)

    monkeypatch.setattr(kind, "sample", sample_again)
    done = make(host, FOURTH, **changes)
    assert same(done, alone)
    texts = [[infotext(host, one, i)["DeepCache"] for i in range(len(one.infotexts))] for one in (done, alone)]
    assert texts[0] == texts[1]


def test_a_batch_that_another_extension_makes_in_its_own_way(host, monkeypatch):
    """What was told of the batch before is not of this one."""
    kind = host.module("processing").StableDiffusionProcessingTxt2Img
    sample = kind.sample
    grey = lambda p, *args: sample(p, *args) if p.iteration in (0, 3) else torch.zeros(1, 4, 8, 8)  # noqa: E731
    monkeypatch.setattr(kind, "sample", grey)
    done = make(host, FOURTH, n_iter=4)
    nobody = "not active: no pass of the UNet was seen"
    assert [infotext(host, done, i)["DeepCache"] for i in range(4)] == ["2 of 8 full", nobody, nobody, "2 of 8 full"]


@pytest.mark.parametrize(("batch", "step"), [(0, 4), (1, 0), (1, 4)])
def test_the_text_where_it_is_switched_off_in_mid_run(host, batch, step):
    def switch_off(params):
        if params.denoiser.p.iteration == batch and params.sampling_step == step:
            host_object(host).disabled = True

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoiser(switch_off)
    try:
        done = make(host, FOURTH, n_iter=2)
    finally:
        callbacks.remove_callbacks_for_function(switch_off)
        host_object(host).disabled = False
    off = "switched off in mid-run"
    told = [infotext(host, done, i)["DeepCache"] for i in (0, 1)]
    assert told == ([off, off] if batch == 0 else ["2 of 8 full", off])


@pytest.mark.parametrize("args", [[], [FOURTH]], ids=["none of our hooks", "cached"])
def test_the_text_under_a_picture_that_adetailer_works_on(host, monkeypatch, args):
    """It announces the end and a new beginning of copies of p, which share what is written under the picture."""
    runner, seen = host.module("scripts").ScriptRunner, []
    plain = runner.postprocess_image

    def work(self, p, picture):
        plain(self, p, picture)
        if not seen:
            seen.append(p)
            self.postprocess(copy.copy(p), host.module("processing").Processed(p, [], p.seed, ""))
            inner(host, *args)
            again = copy.copy(p)
            self.before_process(again)
            self.process(again)
            seen.clear()

    alone = make(host, FOURTH, n_iter=2)
    monkeypatch.setattr(runner, "postprocess_image", work)
    done = make(host, FOURTH, n_iter=2)
    assert same(done, alone)
    assert [infotext(host, done, i)["DeepCache"] for i in (0, 1)] == ["2 of 8 full"] * 2
    assert (
        make(host, False, n_iter=2).extra_generation_params.keys()
        == make(host, n_iter=2).extra_generation_params.keys()
    )


def test_an_error_of_ours_never_stops_a_generation(host, monkeypatch):
    plain = make(host)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("deepcache").addHandler(handler)
    try:
        for name in ("_begin", "_begin_pass", "_session", "_end_pass"):
            with monkeypatch.context() as patch:
                patch.setattr(type(host_object(host)), name, lambda *_: 1 / 0)
                done = make(host, FOURTH)
            if name != "_end_pass":
                assert same(done, plain), name
        assert "ZeroDivisionError" in stream.getvalue()
    finally:
        logging.getLogger("deepcache").removeHandler(handler)


def test_an_error_in_a_first_pass_is_told_where_another_one_follows(host, monkeypatch):
    """Which is announced, and not to be cached: nobody tells of it."""
    kind = type(host_object(host))
    monkeypatch.setattr(kind, "_session", lambda *_: 1 / 0)
    done = make(host, {**FOURTH, "passes": "first only"}, **HIRES)
    assert infotext(host, done)["DeepCache"] == f"not active: {Reason.ERROR.value}"


def test_callbacks_registered_twice_do_nothing_twice(host):
    callbacks, ours = host.module("script_callbacks"), host_object(host)
    expected = make(host, FOURTH)
    callbacks.on_cfg_denoiser(ours.on_cfg_denoiser)
    done = make(host, FOURTH)
    callbacks.remove_callbacks_for_function(ours.on_cfg_denoiser)
    callbacks.on_cfg_denoiser(ours.on_cfg_denoiser)
    assert same(done, expected) and infotext(host, done)["DeepCache"] == "2 of 8 full"


def test_unloading_scripts_in_mid_run_leaves_a_plain_unet(host):
    ours, seen = host_object(host), []

    def unload(params):
        if params.sampling_step == 3 and not seen:
            ours.on_script_unloaded()
            seen.append(unets.traces(host.unet))

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoised(unload)
    make(host, FOURTH)
    callbacks.remove_callbacks_for_function(unload)
    assert seen == [unets.traces(host.unet)]


@pytest.mark.parametrize("missing", ["process_before_every_sampling", "process_batch"])
def test_a_pass_may_be_announced_by_either_hook(host, monkeypatch, missing):
    """A1111 before 1.10 has no process_before_every_sampling."""
    expected = make(host, FOURTH, **HIRES)
    monkeypatch.setattr(script_module(host).DeepCacheScript, missing, lambda *_, **__: None)
    assert same(make(host, FOURTH, **HIRES), expected)


def test_a_model_loaded_in_a_nested_generation_counts_for_the_outer_one(host):
    """Another checkpoint in the same object and back again: what the outer one kept is no longer certain."""
    models, seen = host.module("sd_models"), []

    def nest(params):
        if params.sampling_step == 3 and not seen:
            seen.append(None)
            inner(host, FOURTH, override_settings={"sd_model_checkpoint": "tinyB"})
            models.reload_model_weights(models.get_closet_checkpoint_match("tinyA"))

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoised(nest)
    done = make(host, FOURTH, steps=12)
    callbacks.remove_callbacks_for_function(nest)
    assert infotext(host, done)["DeepCache"] == "4 of 12 full"
