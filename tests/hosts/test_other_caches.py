"""Who else replaces the UNet's calls, or leaves some of them out, in the embedded A1111."""

from __future__ import annotations

import io
import logging
import threading

import pytest
import torch

from deepcache_ext.report.pass_report import Reason
from tests import unets
from tests.hosts.beside import ONE, SETTINGS, make, running
from tests.pictures import infotext, same

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(scope="module")
def host():
    with running() as one:
        yield one


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
