"""The extension beside others: whole pictures in the embedded A1111, each against the naive DeepCache under the same
neighbour. `docs/compatibility.md` says which test stands for which row of the matrix.
"""

from __future__ import annotations

import base64
import copy
import io
import logging
import threading
from dataclasses import replace

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from deepcache_ext.interface import last_run
from deepcache_ext.report.pass_report import Reason
from demo.webui.boot import boot
from tests import neighbours, unets
from tests.controlnet import ControlNet, Pluggable, Unit, counted
from tests.driver import TRUSTED
from tests.pictures import infotext, pixels, same
from tests.replay.recording import load
from tests.replay.scenario import MAIN, replay
from tests.soak.__main__ import TRACES
from tests.soak.generations import FittedHook
from tests.soak.naive import Naive, on

REQUEST = {"prompt": "a cat", "steps": 7, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
SETTINGS = {
    "enabled": True,
    "preset": "Custom",
    "cache_interval": 3,
    "cache_branch_id": 2,
    "estimator": "copy",
    "start": 0.0,
    "end": 1.0,
    "passes": "both",
    "hires_cache_interval": 0,
    "hires_cache_branch_id": -1,
}


pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA") as running:
        # As a user says it on the settings page: the counterparts of other extensions are the tests' own.
        host_module(running).trusted = TRUSTED
        yield running


def host_module(host):
    found = (one.module for one in host.module("scripts").scripts_data if one.path.endswith("deepcache.py"))
    return next(found).host


def make(host, settings=SETTINGS, **changes):
    scripts = {"alwayson_scripts": {"DeepCache": {"args": [settings]}}} if settings else {}
    return host.txt2img(**{**REQUEST, **changes, **scripts})


BESIDE = {
    "ToMe": (neighbours.tome, {}),
    "HyperTile": (neighbours.hypertile, {}),
    "Regional Prompter, attention": (neighbours.regional_attention, {"prompt": "a cat " * 60}),
    "Regional Prompter, latent": (None, {"prompt": "a cat AND a dog AND grass"}),
    "IP-Adapter": (neighbours.ip_adapter, {}),
    "another attention": (neighbours.other_attention, {}),
    "tiling": (neighbours.tiling, {}),
    "FreeU": (neighbours.freeu, {}),
    "fp8 storage": (neighbours.low_precision_storage, {}),
    "channels last": (neighbours.channels_last, {}),
    "dynamic thresholding": (neighbours.dynamic_thresholding, {}),
    "MultiDiffusion": (neighbours.tiles, {"width": 128}),
    "PAG": (neighbours.guided_twice, {}),
    "odd size": (None, {"width": 136, "height": 120}),
}
"""The neighbour, and the request where another than the plain one shows it better."""


@pytest.mark.sample("ToMe", "IP-Adapter", "FreeU", "MultiDiffusion", "PAG", "Regional Prompter, latent")
@pytest.mark.parametrize("name", BESIDE)
def test_beside(host, name):
    """The picture is the rule's, all planned calls are cached, and the neighbour acts on it."""
    neighbour, changes = BESIDE[name]
    naive = Naive(SETTINGS)
    if neighbour is None:
        done = make(host, **changes)
        with on(host, naive):
            expected = make(host, None, **changes)
    else:
        with neighbour(host):
            done = make(host, **changes)
        with neighbour(host), on(host, naive):
            expected = make(host, None, **changes)
        assert not same(done, make(host, **changes))
    assert same(done, expected)
    assert infotext(host, done)["DeepCache"] == "3 of 7 full"
    assert naive.cached * 3 == naive.full * 4  # of 7 evaluations 4 are cached, whatever calls each of them makes
    assert "not active" not in str(done.comments)


def test_controlnet_in_the_host(host):
    """Live by itself: the adapter finds the units. A unit that ends in mid-run costs one full evaluation more, and the
    next picture without ControlNet is as before."""
    plain, unet = make(host), host.unet
    plugged = Pluggable(ControlNet(copy.deepcopy(unet), seed=3))
    counts = counted(plugged.control_model)
    hint = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def with_controlnet(settings, hook, naive=None):
        progress = lambda params: hook.begin_evaluation(params.sampling_step / params.total_sampling_steps)  # noqa: E731
        hook.hook(unet)
        try:
            with neighbours.callback(host, "cfg_denoiser", progress):
                if naive is None:
                    return make(host, settings)
                with on(host, naive):
                    del unet.forward
                    return make(host, None)
        finally:
            unet.__dict__.pop("forward", None)

    for end, full in ((1.0, 3), (0.4, 4)):
        hook = FittedHook([Unit(plugged, hint, weight=0.8, end=end)])
        counts.clear()
        done = with_controlnet(SETTINGS, hook)
        runs = counts["input_blocks.0"]
        assert infotext(host, done)["DeepCache"] == f"{full} of 7 full"
        assert counts["input_blocks.2"] == runs > counts["input_blocks.3"] == counts["middle_block"] > 0
        naive = Naive(SETTINGS, hook)
        expected = with_controlnet(None, hook, naive)
        assert same(done, expected) and naive.full == full
        assert not same(done, plain)
    assert same(make(host), plain)


# What a prompt costs: measured, and in docs/compatibility.md ---------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "steps", "full"),
    [
        ("a [cat:dog:0.5]", 12, "5 of 12 full"),  # one more full evaluation, where the prompt changes
        ("[a:b:3] [c:d:7]", 12, "6 of 12 full"),
    ],
)
def test_prompts_that_change_in_mid_run(host, prompt, steps, full):
    naive = Naive(SETTINGS)
    done = make(host, prompt=prompt, steps=steps)
    with on(host, naive):
        expected = make(host, None, prompt=prompt, steps=steps)
    assert same(done, expected)
    assert infotext(host, done)["DeepCache"] == full


def test_words_that_alternate():
    """As the host says when they change: at nearly every evaluation. A recording of Euler a with such a prompt."""
    recording = load(TRACES / "euler_a.json")
    (generation,) = recording.generations
    generation = replace(generation, request={**generation.request, "prompt": "a [cat|dog]"})
    outcome = replay(replace(recording, generations=[generation]), (MAIN,))
    assert not outcome.failures, "\n".join(outcome.failures)
    assert (outcome.main.cached, outcome.main.planned) == (1, 5)


def test_conditioning_that_another_extension_changes(host):
    naive = Naive(SETTINGS)
    with neighbours.changed_conditioning(host):
        done = make(host)
    with neighbours.changed_conditioning(host), on(host, naive):
        expected = make(host, None)
    assert same(done, expected)
    assert infotext(host, done)["DeepCache"] != "3 of 7 full"


def test_lowvram_moves_only_what_runs(host):
    """`--lowvram` moves a block whenever it is called: 25 of them at a full call, 2 at a cached one of branch 0."""
    moves = []
    unet = host.unet
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    handles = [block.register_forward_pre_hook(lambda *_: moves.append(1)) for block in blocks]
    done = make(host, {**SETTINGS, "cache_branch_id": 0})
    for handle in handles:
        handle.remove()
    assert infotext(host, done)["DeepCache"] == "3 of 7 full"
    assert len(blocks) == 25 and len(moves) == 3 * 25 + 4 * 2


# Who else replaces the UNet, or caches it ----------------------------------------------------------------------------


class Listening:
    """What the console shows."""

    def __enter__(self):
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setLevel(logging.WARNING)
        logging.getLogger("deepcache").addHandler(self.handler)
        return self

    def __exit__(self, *_):
        logging.getLogger("deepcache").removeHandler(self.handler)

    @property
    def lines(self):
        return self.stream.getvalue().splitlines()


class DeepCacheSession:
    """sd-webui-deepcache-standalone: a mark and a forward of its own on the instance; the mark stays, as False."""

    def deepcache_hook_model(self, unet):
        session, original = self, type(unet).forward
        session.step, session.kept = 0, None

        def hijacked_unet_forward(x, timesteps=None, context=None, y=None, **_):
            session.step += 1
            if session.step % 3 != 1:
                return session.kept
            session.kept = original(unet, x, timesteps, context)
            return session.kept

        unet.forward, unet._deepcache_hooked = hijacked_unet_forward, True

    @staticmethod
    def detach(unet):
        unet.forward, unet._deepcache_hooked = type(unet).forward.__get__(unet), False


class TeaCache:
    """sd-webui-teacache: looks at the first blocks to decide whether to run the others."""

    def deepcache_hook_model(self, unet):
        cache = self

        def patched_forward(self, x, timesteps=None, context=None, y=None, **_):
            emb = self.time_embed(unets.timestep_embedding(timesteps, self.model_channels, repeat_only=False))
            h, skips, cache.step = x, [], getattr(cache, "step", 0) + 1
            for block in self.input_blocks[:2]:
                h = block(h, emb, context)
                skips.append(h)
            before = h
            if cache.step % 2:
                for block in self.input_blocks[2:]:
                    h = block(h, emb, context)
                    skips.append(h)
                h = self.middle_block(h, emb, context)
                for block in self.output_blocks:
                    h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
                cache.residual = h - before
            else:
                h = h + cache.residual
            return self.out(h)

        unet.forward, unet._teacache_patched = patched_forward.__get__(unet), True

    @staticmethod
    def detach(unet):
        unet.forward, unet._teacache_patched = type(unet).forward.__get__(unet), False


class Unmarked(TeaCache):
    """A cache that leaves no mark but a name."""

    def deepcache_hook_model(self, unet):
        super().deepcache_hook_model(unet)
        del unet._teacache_patched

        def first_block_cache_forward(*args, inner=unet.forward, **kwargs):
            return inner(*args, **kwargs)

        unet.forward = first_block_cache_forward


@pytest.mark.parametrize(
    ("other", "name"),
    [(DeepCacheSession, "_deepcache_hooked"), (TeaCache, "_teacache_patched"), (Unmarked, "first_block_cache_forward")],
)
def test_never_two_caches_at_once(host, other, name):
    """The other one's picture, and one clear line; when it has gone, ours again, though its traces stay."""
    unet, cached = host.unet, make(host)

    def theirs(settings):
        cache = other()
        cache.deepcache_hook_model(unet)
        try:
            return make(host, settings)
        finally:
            cache.detach(unet)

    try:
        alone = theirs(None)
        with Listening() as console:
            both = [theirs(SETTINGS), theirs(SETTINGS)]
        for done in both:
            assert same(done, alone)
            assert not same(done, cached)
            assert infotext(host, done)["DeepCache"].startswith("off (another extension caches this UNet already")
            assert str(done.comments).count("another extension caches this UNet") == 1 and name in str(done.comments)
        assert len(console.lines) <= 1  # once for both pictures
        assert same(make(host), cached)
    finally:
        for trace in ("forward", "_deepcache_hooked", "_teacache_patched"):
            unet.__dict__.pop(trace, None)


ONE = {**SETTINGS, "cache_interval": 1}


@pytest.mark.parametrize(("other", "name"), [(DeepCacheSession, "_deepcache_hooked"), (TeaCache, "_teacache_patched")])
def test_another_cache_is_not_called_full_where_ours_skips_nothing(host, other, name):
    unet, plain = host.unet, make(host, None)
    cache = other()
    cache.deepcache_hook_model(unet)
    try:
        done = make(host, ONE)
    finally:
        cache.detach(unet)
        for trace in ("forward", "_deepcache_hooked", "_teacache_patched"):
            unet.__dict__.pop(trace, None)
    assert not same(done, plain)
    assert infotext(host, done)["DeepCache"].startswith(f"off (another extension caches this UNet already ({name})")
    assert same(make(host, ONE), plain) and infotext(host, make(host, ONE))["DeepCache"] == "7 of 7 full"


@pytest.mark.parametrize("settings", [SETTINGS, ONE], ids=["cached", "interval 1"])
def test_whole_evaluations_that_somebody_leaves_out(host, monkeypatch, settings):
    """A cache above the host's denoiser: no callback comes where it acts, but the host's step goes on."""
    denoiser = host.module("sd_samplers_cfg_denoiser").CFGDenoiser
    forward, last = denoiser.forward, []

    def forecast(self, *args, **kwargs):
        if self.step == 4 and last:
            self.step += 1
            return last.pop()
        last[:] = [forward(self, *args, **kwargs)]
        return last[0]

    monkeypatch.setattr(denoiser, "forward", forecast)
    done = make(host, settings)
    full = "2 of 4 full" if settings is SETTINGS else "4 of 4 full"
    assert infotext(host, done)["DeepCache"] == f"{full} ({Reason.NO_CALL.value})"


@pytest.mark.parametrize("settings", [SETTINGS, ONE], ids=["cached", "interval 1"])
def test_a_sampler_that_counts_its_steps_as_it_likes(host, monkeypatch, settings):
    """reForge's ODE solvers: between the levels of the schedule, and now and then two steps on at once."""
    denoiser = host.module("sd_samplers_cfg_denoiser").CFGDenoiser
    common = host.module("sd_samplers_common").Sampler
    forward, done = denoiser.forward, common.callback_state

    def own(self, x, sigma, *args, **kwargs):
        return forward(self, x, sigma * (1.01 if self.step > 1 else 1), *args, **kwargs)

    monkeypatch.setattr(denoiser, "forward", own)
    monkeypatch.setattr(common, "callback_state", lambda self, info: done(self, {**info, "i": 2 * info["i"]}))
    told = infotext(host, make(host, settings))["DeepCache"]
    assert told == ("3 of 7 full" if settings is SETTINGS else "7 of 7 full")


@pytest.mark.parametrize("settings", [SETTINGS, ONE], ids=["cached", "interval 1"])
def test_calls_that_somebody_leaves_out(host, settings):
    """A cache between the host's denoiser and the UNet."""
    wrapper, count = host.module("shared").sd_model.model, []
    original = wrapper.forward

    def forecast(*args):
        count.append(original(*args) if len(count) != 4 else count[-1])
        return count[-1]

    wrapper.forward = forecast
    try:
        done = make(host, settings)
    finally:
        del wrapper.forward
    full = "2 of 4 full" if settings is SETTINGS else "4 of 4 full"
    assert infotext(host, done)["DeepCache"] == f"{full} ({Reason.NO_CALL.value})"


def test_a_unet_that_is_called_in_another_thread_alone(host):
    """Nothing is cached, no number is told, and a reason is."""
    wrapper, plain = host.module("shared").sd_model.model, make(host, None)
    original = wrapper.forward

    def elsewhere(*args):
        made = []
        thread = threading.Thread(target=lambda: made.append(torch.no_grad()(original)(*args)))
        thread.start()
        thread.join()
        return made[0]

    wrapper.forward = elsewhere
    try:
        done = make(host)
    finally:
        del wrapper.forward
    assert same(done, plain)
    assert infotext(host, done)["DeepCache"] == f"off ({Reason.OUTSIDE.value})"


def test_a_unet_that_is_replaced_as_a_whole(host):
    """TensorRT, ONNX and the like: the class's forward hands over to `sd_unet.current_unet`; no block runs."""
    unet, plain = host.unet, make(host, None)
    original = type(unet).forward
    type(unet).forward = lambda self, x, *args, **kwargs: x * 0.5
    try:
        alone, done = make(host, None), make(host)
    finally:
        type(unet).forward = original
    assert same(done, alone) and not same(done, plain)
    assert Reason.NO_EFFECT.value in infotext(host, done)["DeepCache"] and Reason.NO_EFFECT.value in str(done.comments)


def test_where_a_neighbour_forbids_it_that_stands_beside_the_picture(host):
    """Code in the deepest block of which nothing is known: in comments below the picture and in the last run."""
    ours = host_module(host)
    handle = host.unet.middle_block.register_forward_hook(lambda *_: None)
    ours.trusted = ()
    try:
        done = make(host)
    finally:
        handle.remove()
        ours.trusted = TRUSTED
    told = "`tests.hosts.test_compatibility` watches layers that a cached call would skip"
    assert infotext(host, done)["DeepCache"] == f"7 of 7 full ({told})" and f"not active: {told}" in str(done.comments)
    assert f"No speed-up: {told}. If you know that it is harmless" in last_run.line(ours.last_run)
    assert "not active" not in str(make(host).comments)


# The host's life -----------------------------------------------------------------------------------------------------


def test_one_p_for_several_pictures(host):
    """Loopback and SD upscale run `process_images` again and again on one p."""
    processing, alone = host.module("processing"), make(host)

    def again(settings):
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=host.module("shared").sd_model, **REQUEST)
        p.scripts = host.module("scripts").scripts_txt2img
        p.script_args = host.api._script_args("txt2img", p.scripts, {"DeepCache": {"args": [settings]}})
        return [processing.process_images(p) for _ in range(3)]

    for done in again(SETTINGS):
        assert same(done, alone)
        assert infotext(host, done)["DeepCache"] == "3 of 7 full"


def test_one_p_with_other_settings_each_time(host):
    """As an X/Y/Z plot does, whose copies of p share their infotext's values."""
    processing, texts = host.module("processing"), []
    p = processing.StableDiffusionProcessingTxt2Img(sd_model=host.module("shared").sd_model, **REQUEST)
    p.scripts = host.module("scripts").scripts_txt2img
    p.script_args = host.api._script_args("txt2img", p.scripts, {})
    for wanted in ({"enabled": True, "cache_interval": 3, "start": 0.2}, {"speed_up": 1.5}, {"enabled": False}):
        p.deepcache_overrides = wanted
        texts.append(processing.process_images(p).infotexts[0])
    assert "DeepCache interval: 3" in texts[0] and "DeepCache start: 0.2" in texts[0]
    assert "DeepCache speed up: 1.5" in texts[1] and "interval" not in texts[1] and "start" not in texts[1]
    assert "DeepCache" not in texts[2]


def test_skip(host):
    """The button ends one picture of a batch; the next one is made as alone."""
    seen = []

    def skip(_):
        seen.append(1)
        if len(seen) == 3:
            host.module("shared").state.skip()

    alone = make(host, seed=2)
    with neighbours.callback(host, "cfg_denoiser", skip):
        done = make(host, n_iter=2)
    assert len(seen) == 3 + 7
    assert np.array_equal(pixels(done)[-1], pixels(alone)[0])


@pytest.mark.slow
def test_requests_that_come_at_the_same_time():
    """The host's queue takes one after the other; each gets the picture that it gets alone."""

    def post(url, args):
        scripts = {"alwayson_scripts": {"DeepCache": {"args": args}}} if args else {}
        answer = requests.post(f"{url}/sdapi/v1/txt2img", json={**REQUEST, **scripts}, timeout=120).json()
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))

    wanted = [[SETTINGS], None, [{**SETTINGS, "cache_interval": 5}], [{"enabled": False}]] * 2
    with boot(model="tinyA") as running:
        url = running.serve()
        alone, together = [post(url, args) for args in wanted], [None] * len(wanted)

        def ask(place):
            together[place] = post(url, wanted[place])

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(wanted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(map(np.array_equal, alone, together))
    assert not np.array_equal(alone[0], alone[1]) and not np.array_equal(alone[0], alone[2])
    assert np.array_equal(alone[1], alone[3])
