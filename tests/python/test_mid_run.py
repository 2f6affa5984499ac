"""What others do in mid-run to a diffusers UNet and its calls: one full step, and then on as planned."""

import functools

import pytest
import torch
from diffusers.hooks import HookRegistry, LayerSkipConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from deepcache_ext import DeepCache
from deepcache_ext.report.pass_report import Reason
from tests import diffusers_unets as unets
from tests.python.loops import CONTEXT, THIRD, call, latent
from tests.tracing import TRACING

pytestmark = pytest.mark.usefixtures("quiet")


def test_gligens_boxes_that_end_in_mid_run():
    """Its pipeline switches the layers that see them off after the first steps."""
    unet, text = unets.make("sd1", attention_type="gated"), CONTEXT.shape[2]
    gligen = {
        "boxes": torch.tensor([[[0.1, 0.1, 0.6, 0.6]]]),
        "masks": torch.ones(1, 1),
        "positive_embeddings": torch.randn(1, 1, text, generator=torch.Generator().manual_seed(0)),
    }

    def outputs():
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            for module in unet.modules():
                if type(module).__name__ == "GatedSelfAttentionDense":
                    module.enabled = k < 4
            kwargs = {"cross_attention_kwargs": {"gligen": dict(gligen)}}
            found.append(unet(latent(k), t, encoder_hidden_states=CONTEXT[:1], **kwargs).sample)
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD) as cache:
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k in (0, 3, 4, 6) for k in range(7)]
    assert cache.report().passes[0].misses == {Reason.FIRST_SEEN: 1}


@pytest.mark.parametrize("was_on", [False, True])
def test_freeu_that_begins_in_mid_run(was_on):
    unet, free = unets.make("sd1"), {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
    if was_on:  # its numbers are None from then on
        unet.enable_freeu(**free)
        unet.disable_freeu()

    def outputs():
        unet.disable_freeu()
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            if k == 4:
                unet.enable_freeu(**free)
            found.append(call(unet, k, t))
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD):
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k in (0, 3, 4, 6) for k in range(7)]


class Counting(AttnProcessor2_0):
    """Somebody else's, which is to see every call."""

    seen = 0

    def __call__(self, *args, **kwargs):
        type(self).seen += 1
        return super().__call__(*args, **kwargs)


def test_a_processor_that_counts_and_comes_in_mid_run():
    """On any one of the attentions: those of the part that always runs see every call in any case."""
    refused = []
    for place in range(len(unets.make("sd1").attn_processors)):
        unet = unets.make("sd1")
        layer = [module for module in unet.modules() if type(module).__name__ == "Attention"][place]
        Counting.seen = 0
        with DeepCache(unet, **THIRD) as cache:
            for k, t in enumerate(torch.arange(900, 200, -100)):
                if k == 4:
                    layer.set_processor(Counting())
                call(unet, k, t)
        assert Counting.seen == 3
        (told,) = cache.report().passes
        assert told.off or told.misses == {Reason.STATE: 1}
        refused.append("test_mid_run` watches layers" in told.off)
    assert any(refused) and not all(refused)


@pytest.mark.parametrize("begins", [0, 4])
@pytest.mark.parametrize("where", ["down_blocks.0", "up_blocks.2"])
def test_who_sees_a_block_that_cached_calls_run_in_part(where, begins):
    """Its skip connections are fewer there: what a hook does by their places it would do to others."""

    def on_the_way_down(_module, _args, output):
        seen.append(len(output[1]))
        return output[0], (output[1][0] * 0, *output[1][1:])

    def on_the_way_up(_module, args, kwargs):
        first, *others = kwargs["res_hidden_states_tuple"]
        seen.append(1 + len(others))
        return args, {**kwargs, "res_hidden_states_tuple": (first * 0, *others)}

    def outputs(unet):
        found, block = [], unet.get_submodule(where)
        for k, t in enumerate(torch.arange(900, 200, -100)):
            if k == begins and where == "up_blocks.2":
                block.register_forward_pre_hook(on_the_way_up, with_kwargs=True)
            elif k == begins:
                block.register_forward_hook(on_the_way_down)
            found.append(call(unet, k, t))
        return found

    seen = []
    plain = outputs(unets.make("sd1"))
    unet = unets.make("sd1")
    with DeepCache(unet, **THIRD) as cache:
        cached = outputs(unet)
    assert all(map(torch.equal, cached[begins:], plain[begins:])) and set(seen) == {3}
    assert "test_mid_run` watches layers" in cache.report().passes[0].off


MIDDLE = "mid_block.attentions.0.transformer_blocks"


def perturbed_attention(unet):
    config = LayerSkipConfig([0], MIDDLE, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    _apply_layer_skip_hook(unet, config, "guidance")


def smoothed_energy(unet):
    _apply_smoothed_energy_guidance_hook(unet, SmoothedEnergyGuidanceConfig([0], MIDDLE), 1.0, "guidance")


@pytest.mark.parametrize("put_on", [perturbed_attention, smoothed_energy])
def test_guidance_that_comes_for_one_call_of_each_evaluation(put_on):
    """diffusers' guiders hook layers for a third call. It is cached on what it gave itself; where it is left out at
    first, its first one is full.
    """
    unet = unets.make("sd1")

    def outputs(begins):
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            given = [call(unet, k, t), call(unet, k, t, text=1)]
            if k >= begins:
                put_on(unet)
                given.append(call(unet, k, t))
                HookRegistry.check_if_exists_or_initialize(unet).remove_hook("guidance", recurse=True)
            found.append(given)
        return found

    for begins in (0, 4):
        plain = outputs(begins)
        with DeepCache(unet, **THIRD) as cache:
            cached = outputs(begins)
        (told,) = cache.report().passes
        assert not told.off and told.misses == ({} if not begins else {Reason.FIRST_SEEN: 1, Reason.TOGETHER: 3})
        whole = [[torch.equal(a, b) for a, b in zip(*both, strict=True)] for both in zip(plain, cached, strict=True)]
        assert [all(each) for each in whole] == [k % 3 == 0 or (begins and k == 5) for k in range(7)]


@pytest.mark.parametrize("bad", [(), (torch.zeros(1, 4, 8, 8),), (None, 5.0)])
def test_a_call_that_the_unet_refuses(bad):
    """Somebody forgets an argument and catches what that raises: nothing is lost."""
    unet = unets.make("sd1")

    def outputs():
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            with pytest.raises((TypeError, AttributeError)):
                unet(*bad)
            found.append(call(unet, k, t))
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD) as cache:
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k % 3 == 0 for k in range(7)]
    (report,) = cache.report().passes
    assert (report.fraction, report.misses, report.off) == ("3 of 7 full", {}, "")


@pytest.mark.parametrize("at", [3, 4], ids=["full", "cached"])
def test_a_call_that_raises_and_is_tried_again(at):
    """As where a program runs out of memory and frees some: it is a step of the run, and a full one."""
    unet = unets.make("sd1")

    def fail(*_):
        handle.remove()
        raise MemoryError

    with DeepCache(unet, **THIRD) as cache:
        before = unets.traces(unet)
        for k, t in enumerate(torch.arange(900, 0, -100)):
            if k == at:
                handle = unet.conv_out.register_forward_pre_hook(fail)
                with pytest.raises(MemoryError):
                    call(unet, k, t)
                assert unets.traces(unet) == before
            output = call(unet, k, t)
            if k == at:
                again = output
    assert torch.equal(again, call(unet, at, 900 - 100 * at))
    (report,) = cache.report().passes
    assert (report.evaluations, report.full_calls, report.cached_calls) == (9, 5 - (at == 3), 4 + (at == 3))
    assert report.full_evaluations == report.full_calls and Reason.OUTSIDE not in report.misses


def sample(unet, t, x):
    return unet(x, t, encoder_hidden_states=CONTEXT[:1]).sample


@pytest.mark.sample("make_fx-a number", "fake-of a list", "vmap-a number", "functionalize-of a list")
@pytest.mark.parametrize("timestep", ["of a list", "a number"])
@pytest.mark.parametrize("way", ["make_fx", "fake", "vmap", "functionalize"])
def test_a_call_without_numbers(way, timestep):
    """The clock cannot tell it: what was kept is not used behind it."""
    unet = unets.make("sd1")
    unet.set_attn_processor(AttnProcessor())

    def outputs():
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            t = t if timestep == "of a list" else int(t)
            if k == 4:
                TRACING[way](functools.partial(sample, unet, t), latent(k))
            else:
                found.append(call(unet, k, t))
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD) as cache:
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [True, False, False, True, True, False]
    (report,) = cache.report().passes
    assert report.misses == {Reason.TRACED: 1} and not report.off
