"""The extension in the embedded SD.Next: whole generations, what goes wrong in them, and what is told of them.

What it caches is proved by replays (test_replay_sdnext.py), the driver below it by tests/python/test_driver.py.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deepcache_ext.interface.last_run import table
from demo.webui.boot import boot
from tests import diffusers_unets as unets

REQUEST = {"prompt": "a cat", "steps": 9, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
HIRES = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
THIRD = {"enabled": True, "cache_interval": 3, "cache_branch_id": 1, "estimator": "copy"}


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA", host="sdnext") as running:
        yield running


@pytest.fixture(autouse=True)
def leaves_nothing(host):
    """After each test the UNet is as it was, no generation is under way, and nothing is kept."""
    unet, before = host.unet, unets.traces(host.unet)
    yield
    assert host.unet is unet and unets.traces(unet) == before
    assert adapter(host)._generations.active is None and not adapter(host)._drivers
    assert alive() == []


def alive():
    gc.collect()
    return [type(o).__name__ for o in gc.get_objects() if type(o).__name__ in ("Kept", "Slot")]


def script_module(host):
    return next(d.module for d in host.module("scripts").scripts_data if d.module.__file__.endswith("deepcache.py"))


def adapter(host):
    return script_module(host).host


def make(host, settings=None, kind="txt2img", **changes):
    scripts = {"alwayson_scripts": {"DeepCache": {"args": [settings]}}} if settings else {}
    return getattr(host, kind)(**{**REQUEST, **changes, **scripts})


def pixels(done):
    return [np.asarray(image) for image in done.images]


def same(one, other):
    return all(map(np.array_equal, pixels(one), pixels(other)))


def told(host, done):
    return host.module("infotext_utils").parse_generation_parameters(done.infotexts[0]).get("DeepCache")


@contextlib.contextmanager
def hooked(host, hook):
    """At a live layer of every call, full or cached: its number, from 0."""
    seen = []

    def called(*_):
        seen.append(1)
        hook(len(seen) - 1)

    handle = host.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(called)
    try:
        yield
    finally:
        handle.remove()


def call(host):
    """A call of the UNet by somebody else."""
    unet, generator = host.unet, torch.Generator().manual_seed(9)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, 64, generator=generator)
    width = unet.config.cross_attention_dim
    with torch.no_grad():
        return unet(x, torch.tensor(500.0), context[..., :width]).sample


# Calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_call_inside_a_call_changes_nothing(host, at):
    plain, expected, got = call(host), make(host, THIRD), []
    inside = []

    def nest(number):
        if number == at and not inside:
            inside.append(1)
            got.append(call(host))

    with hooked(host, nest):
        done = make(host, THIRD)
    assert same(done, expected) and torch.equal(got[0], plain)
    assert told(host, done) == "3 of 9 full"


def test_a_page_that_asks_in_mid_run_is_not_told_of_our_own_shadows(host, monkeypatch):
    monkeypatch.setattr(host.module("shared"), "sd_loaded", True, raising=False)
    answers = []
    with hooked(host, lambda _: answers.append(adapter(host).refused())):
        make(host, THIRD)
    assert answers == [""] * 9


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_after_a_call_that_was_broken_off(host, error, at):
    """The host itself goes on after an exception; torch tells no hook of Ctrl-C."""
    plain, expected = make(host), make(host, THIRD)

    def stop(number):
        if number == at:
            raise error("provoked")

    with hooked(host, stop), contextlib.suppress(KeyboardInterrupt):
        make(host, THIRD)
    assert same(make(host), plain)
    with hooked(host, stop), contextlib.suppress(KeyboardInterrupt):
        make(host, THIRD)
    assert same(make(host, THIRD), expected)


def test_the_next_pass_of_a_batch_after_a_call_that_was_broken_off(host):
    """Somebody caught Ctrl-C and goes on, with no hook in between: the pass before is over."""
    expected, module = make(host, THIRD), host.module("processing_diffusers")
    plain, tried = module.run_pass, []

    def again(p, *args):
        def stop(number):
            if number == 4:
                raise KeyboardInterrupt

        tried.append(1)
        with hooked(host, stop), contextlib.suppress(KeyboardInterrupt):
            plain(p, *args)
        return plain(p, *args)

    host.module("processing").run_pass = again
    try:
        done = make(host, THIRD)
    finally:
        host.module("processing").run_pass = plain
    assert tried and same(done, expected)
    assert [one.report.evaluations for one in adapter(host).last_run.passes] == [4, 9]


def test_calls_are_counted_anew_in_each_pass(host, monkeypatch):
    """A pass of one evaluation with two calls (the host's modular guiders), after one with a single call in each."""
    samplers, shared, unet = host.module("sd_samplers"), host.module("shared"), host.unet
    context = torch.randn(2, 7, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(3))

    def by_hand(p, steps, noise, image=None, strength=1.0):
        scheduler = samplers.create_sampler(p.sampler_name, shared.sd_model)
        scheduler.set_timesteps(steps)
        x = noise * scheduler.init_noise_sigma if image is None else image
        for t in scheduler.timesteps if image is None else scheduler.timesteps[-1:]:
            for text in context[: 1 if image is None else 2]:
                noise = unet(x, t, text[None]).sample
            x = scheduler.step(noise, t, x).prev_sample
        return x

    monkeypatch.setattr(host.module("processing"), "run_pass", by_hand)
    make(host, THIRD, **HIRES)
    reports = [one.report for one in adapter(host).last_run.passes]
    assert [(r.evaluations, r.full_calls, r.cached_calls) for r in reports] == [(9, 3, 6), (1, 2, 0)]


def test_other_threads_wait_and_run_in_full(host):
    plain, expected, got = call(host), make(host, THIRD), []
    threads = [threading.Thread(target=lambda: got.append(call(host))) for _ in range(2)]

    def meanwhile(number):
        if number in (1, 3):  # a cached and a full call are under way
            threads[number // 2].start()
            threads[number // 2].join(0.3)
            assert threads[number // 2].is_alive() and not got[number // 2 :]

    numbers = []

    def hook(number):
        if threading.current_thread() is threading.main_thread():
            numbers.append(number)
            meanwhile(len(numbers) - 1)

    with hooked(host, hook):
        done = make(host, THIRD)
    for thread in threads:
        thread.join(60)
    assert same(done, expected) and len(got) == 2 and all(torch.equal(one, plain) for one in got)
    assert told(host, done) == "3 of 9 full"


def test_a_pass_that_caches_nothing_has_no_misses(host):
    done = make(host, {**THIRD, "cache_interval": 1})
    assert same(done, make(host)) and told(host, done) == "9 of 9 full"
    make(host, {**THIRD, "cache_interval": 1})
    (one,) = adapter(host).last_run.passes
    assert (one.report.full_calls, one.report.misses) == (9, {})
    assert not one.report.off


def test_a_unet_that_turns_out_to_be_unknown_has_no_misses(host):
    """A forward that comes after the batch began: what it runs nobody knows, so that no call is full from then on."""
    unet = host.unet

    def put(number):
        if number == 0:
            unet.forward = lambda *args, **kwargs: type(unet).forward(unet, *args, **kwargs)

    with hooked(host, put):
        done = make(host, THIRD)
    del unet.forward
    (one,) = adapter(host).last_run.passes
    assert (one.report.full_calls, one.report.cached_calls) == (1, 0) and "replaced" in one.report.off
    assert not one.report.misses
    assert "replaced" in told(host, done)


# What is told -----------------------------------------------------------------------------------------------


def picture():
    return Image.new("RGB", (64, 64), (90, 140, 200))


def test_what_a_run_was(host):
    """Every generation has a list of pictures to begin with; in txt2img it is empty."""
    make(host, THIRD)
    assert adapter(host).last_run.kind == "txt2img"
    make(host, THIRD, kind="img2img", init_images=[picture()], denoising_strength=0.7)
    assert adapter(host).last_run.kind == "img2img"


def test_a_run_in_which_no_pass_was_seen_says_so(host, monkeypatch, caplog):
    """As where the host makes its pictures with something else than the pipeline that it shows."""
    elsewhere = SimpleNamespace(unet=unets.make("sd1"), scheduler=None)
    monkeypatch.setattr(host.module("sd_models_compile"), "deepcache_worker", None)
    monkeypatch.setitem(adapter(host).before_sampling.__wrapped__.__globals__, "pipelines", lambda p: [elsewhere])
    done = make(host, THIRD)
    assert same(done, make(host))
    said = "not active: no pass of the UNet was seen"
    make(host, THIRD)
    run = adapter(host).last_run
    assert told(host, done) == said and run.as_json()["inactive"] == "no pass of the UNet was seen" and not run.passes
    assert said in table(run)
    make(host)
    assert adapter(host).last_run.inactive == "" and "was off" in table(adapter(host).last_run)
    make(host, {**THIRD, "passes": "hires only"})
    assert adapter(host).last_run.inactive


def test_passes_that_are_not_to_be_cached_are_no_fault(host):
    done = make(host, {**THIRD, "passes": "hires only"})
    assert told(host, done) is None
    make(host, {**THIRD, "passes": "hires only"})
    run = adapter(host).last_run
    assert run.inactive == "" and "no pass was to be cached" in table(run)


def test_reprocessing_is_a_hires_pass(host):
    """The host goes on with the p of the run before, and no hook shows it."""
    first = make(host, THIRD)
    expected = make(host, {**THIRD, "hires_cache_interval": 2}, **HIRES)
    assert told(host, expected) == "3 of 9 full, hires 5 of 9 full"
    make(host, THIRD)
    again = make(host, {**THIRD, "hires_cache_interval": 2}, state="reprocess_refine", **HIRES)
    assert told(host, again) == "hires 5 of 9 full"
    (one,) = adapter(host).last_run.passes
    assert one.report.hires
    none = make(host, {**THIRD, "passes": "first only"}, state="reprocess_refine", **HIRES)
    assert told(host, none) is None
    assert same(make(host, THIRD), first)


@pytest.mark.parametrize("works_on", ["this UNet", "another UNet", "no telling"])
def test_the_hosts_own_cache(host, monkeypatch, works_on):
    """Its worker stays there for good, with the pipeline that it was made for."""
    pipes = {
        "this UNet": SimpleNamespace(pipe=SimpleNamespace(unet=host.unet)),
        "another UNet": SimpleNamespace(pipe=SimpleNamespace(unet=unets.make("sd1"))),
        "no telling": object(),
    }
    monkeypatch.setattr(host.module("sd_models_compile"), "deepcache_worker", pipes[works_on])
    done = make(host, THIRD)
    if works_on == "another UNet":
        assert told(host, done) == "3 of 9 full"
    else:
        assert told(host, done).startswith("not active: SD.Next's own DeepCache is active")
        assert same(done, make(host))


def test_an_error_of_ours_never_stops_a_generation(host, monkeypatch, caplog):
    plain, ours = make(host), type(adapter(host))
    for name in ("_begin", "_here", "_begin_pass", "_file", "_end_pass"):
        with monkeypatch.context() as patch:
            patch.setattr(ours, name, lambda *_: 1 / 0)
            done = make(host, THIRD)
        if name not in ("_file", "_end_pass"):
            assert same(done, plain), name
        if name in ("_here", "_begin_pass"):
            assert told(host, done) == "not active: an error inside DeepCache (see the console)", name
    assert told(host, make(host, THIRD)) == "3 of 9 full"


def test_nested_generations_leave_the_outer_one_as_it_was(host):
    """The detailer makes whole generations; here in the middle of another one's pass."""
    processing, alone = host.module("processing"), make(host, THIRD)
    inner_alone = make(host, THIRD, seed=5, steps=6)
    seen, module = [], host.module("processing_diffusers")
    step_end = module._step_end

    def nesting(p):
        plain = step_end(p)

        def hook(pipe, step, timestep, given):
            if step == 3 and not seen:
                seen.append(None)
                shared = host.module("shared")
                inner = processing.StableDiffusionProcessingTxt2Img(**{**REQUEST, "seed": 5, "steps": 6})
                inner.scripts = host.module("scripts").scripts_txt2img
                inner.script_args = host.api._script_args("txt2img", inner.scripts, {"DeepCache": {"args": [THIRD]}})
                scheduler, outer = pipe.scheduler, shared.sd_model
                seen.append(processing.process_images(inner))
                shared.sd_model = outer
                outer.scheduler = scheduler
            return plain(pipe, step, timestep, given)

        return hook

    module._step_end = nesting
    try:
        done = make(host, THIRD)
    finally:
        module._step_end = step_end
    assert same(seen[1], inner_alone)
    passes = [one.report for one in adapter(host).last_run.passes]
    assert [p.evaluations for p in passes] == [4, 5]  # what is kept does not outlive the inner one
    assert done.images and alone.images
