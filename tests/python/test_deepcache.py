"""`DeepCache` and `DeepCacheSDHelper`: what is left behind, errors, settings, other people's hooks."""

import copy
import functools
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

from deepcache_ext import DeepCache, DeepCacheSDHelper, SettingsError
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.unet import compiled
from tests import diffusers_unets as unets
from tests.diffusers_pipelines import Naive, build, run, shared
from tests.python.loops import alive

SD = "StableDiffusion"

pytestmark = pytest.mark.usefixtures("quiet")


# What is left behind, and what goes wrong --------------------------------------------------------------------


def test_nothing_is_kept_after_the_last_evaluation(pipe):
    """While the VAE works, and while DeepCache stays enabled."""
    held = []
    decode = pipe.vae.decode

    def look(*args, **kwargs):
        held.append(alive("Kept", "Slot"))
        return decode(*args, **kwargs)

    pipe.vae.decode = look
    try:
        with DeepCache(pipe, cache_interval=3) as cache:
            run(pipe, SD, output_type="np")
            assert cache.report().passes[0].kept_bytes > 0
    finally:
        del pipe.vae.decode
    assert held == [[]]


def test_disabling_in_mid_pass_frees_all(pipe):
    cache = DeepCache(pipe, cache_interval=3)
    run(
        pipe, SD, callback_on_step_end=lambda *args: (cache.disable() if args[1] == 4 else None) or args[-1]
    ) if cache.enable() else None
    assert alive("Kept", "Slot") == []
    assert cache.report().passes[0].evaluations == 5


def test_the_pipeline_is_not_held(pipe):
    with DeepCache(build("DDPM")) as cache:
        run(cache._target, "DDPM")
    gone = weakref.ref(cache._unet)
    del cache
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_in_mid_call_all_is_as_before(pipe, error):
    """torch tells no hook of KeyboardInterrupt."""
    with DeepCache(pipe, cache_interval=3, cache_branch_id=1) as cache:
        expected = run(pipe, SD)
    for at in (2, 3):
        count = []

        def fail(*_, count=count, at=at):
            count.append(1)
            if len(count) == at:
                raise error

        with DeepCache(pipe, cache_interval=3, cache_branch_id=1) as cache:
            handle = pipe.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(fail)
            with pytest.raises(error):
                run(pipe, SD)
            handle.remove()
            assert torch.equal(run(pipe, SD), expected)
            assert len(cache.report().passes) == 2


def test_a_copy_of_the_unet_is_left_alone(pipe):
    plain, unet = run(pipe, SD), pipe.unet
    with DeepCache(pipe, cache_interval=3) as cache:
        pipe.unet = copy.deepcopy(unet)
        assert torch.equal(run(pipe, SD), plain)
        pipe.unet = unet
    assert not cache.report().passes


def test_gradients_are_asked_for(pipe):
    x = torch.randn(1, 4, 8, 8)
    timesteps, context = torch.arange(5).flip(0), torch.randn(1, 7, 16)
    with torch.enable_grad(), DeepCache(pipe, cache_interval=2) as cache:
        for t in timesteps:
            pipe.unet(x.clone().requires_grad_(), t, context).sample.sum().backward()
    assert cache.report().passes[0].cached_calls == 0 and cache.report().passes[0].misses[Reason.GRADIENT]


DOWN = [torch.zeros(1, 8, 8, 8)] * 3 + [torch.zeros(1, 8, 4, 4)] + [torch.zeros(1, 16, 4, 4)] * 2
DOWN += [torch.zeros(1, 16, 2, 2)] * 3
"""What a control network adds to the UNet on its way down."""


def test_two_control_networks_in_turns(pipe):
    """Two calls an evaluation, which nothing but their residuals tells apart, and those are new at each evaluation."""
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)
    with DeepCache(pipe, cache_interval=2) as cache:
        for t in torch.arange(5).flip(0):
            for strength in (1, 2):
                residual = torch.full((1, 16, 2, 2), float(strength * (t + 1)))
                pipe.unet(x, t, context, down_block_additional_residuals=DOWN, mid_block_additional_residual=residual)
    report = cache.report().passes[0]
    assert (report.fraction, report.misses) == ("5 of 5 full", {Reason.UNCLEAR: 4})


def test_gradients_are_asked_for_by_a_control_network(pipe):
    """Its residuals are no part of what calls are compared by."""
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)
    with torch.no_grad():
        middle = [torch.zeros_like(pipe.unet.mid_block(torch.zeros(1, 16, 2, 2), torch.zeros(1, 32)))]
    pipe.unet.requires_grad_(False)
    with torch.enable_grad(), DeepCache(pipe, cache_interval=2) as cache:
        for t in torch.arange(5).flip(0):
            residual = middle[0].clone().requires_grad_()
            given = {"down_block_additional_residuals": DOWN, "mid_block_additional_residual": residual}
            pipe.unet(x, t, context, **given).sample.sum().backward()
            assert residual.grad is not None and residual.grad.any()
    pipe.unet.requires_grad_(True)
    assert cache.report().passes[0].cached_calls == 0 and cache.report().passes[0].misses[Reason.GRADIENT]


def test_a_replaced_forward_is_left_alone(pipe):
    plain = run(pipe, SD)
    own = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: own(*args, **kwargs)
    with DeepCache(pipe, cache_interval=3) as cache:
        assert torch.equal(run(pipe, SD), plain)
    del pipe.unet.forward
    assert "replaced" in str(cache.report())


@pytest.mark.parametrize(
    "made",
    [
        lambda unet: torch.compile(unet, backend="eager"),
        lambda unet: unet.compile(backend="eager") or unet,
        lambda unet: torch.nn.Linear(2, 2),
    ],
    ids=["wrapped", "in-place", "no-unet"],
)
def test_a_unet_that_cannot_be_cached_runs_as_ever(made, caplog, monkeypatch):
    monkeypatch.setattr(compiled, "OLDEST", (99, 0))  # a compiled one needs a torch that is new enough
    unet = made(unets.make("sd1"))
    with DeepCache(unet, cache_interval=3) as cache:
        assert not unet._forward_pre_hooks
    assert str(cache.report()).startswith("not active: ") and "not active" in caplog.text


def test_weights_that_change_in_mid_run(pipe):
    """A LoRA that is fused between two steps, or another checkpoint in the same UNet."""
    pipe = build(SD)

    def change(pipe, step, timestep, kwargs):
        if step == 3:
            for parameter in pipe.unet.parameters():
                parameter.mul_(1.01)
        return kwargs

    with DeepCache(pipe, cache_interval=3) as cache:
        run(pipe, SD, steps=9, callback_on_step_end=change)
    assert cache.report().passes[0].misses == {Reason.WEIGHTS: 1}


# Settings and the helper's interface ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache_interval": 0}, "cache_interval = 0 is not allowed: a whole number from 1 to 50"),
        ({"cache_branch_id": 9}, "cache_branch_id = 9 is not allowed: a whole number from 0 to 8 for this UNet"),
        ({"deeper_branch_id": 9}, "deeper_branch_id = 9 is not allowed: a whole number from 0 to 8 for this UNet"),
        ({"estimator": "magic"}, "estimator = 'magic' is not allowed: one of auto, copy, forecast"),
        ({"start": 0.6, "end": 0.4}, "start = 0.6"),
        ({"preset": 3}, "preset = 3 is not allowed: one of Quality, Balanced, Fast, Custom"),
    ],
)
def test_bad_settings(pipe, settings, words):
    with pytest.raises(SettingsError, match=words):
        DeepCache(pipe, **settings)


@pytest.mark.parametrize("unknown", ["passes", "enabled", "cache_intervall"])
def test_unknown_settings(pipe, unknown):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
        DeepCache(pipe, **{unknown: 3})


def test_presets(pipe):
    assert DeepCache(pipe, preset="Fast").settings.speed_up == 2.6


def test_enabling_twice(pipe):
    with DeepCache(pipe), pytest.raises(ValueError, match="already"):
        DeepCache(pipe.unet).enable()
    helper = DeepCacheSDHelper(pipe)
    helper.enable()
    with pytest.raises(ValueError, match="already"):
        helper.enable()
    helper.disable()
    helper.disable()


def test_no_unet():
    with pytest.raises(TypeError, match="no pipeline with a UNet"):
        DeepCache(object())
    with pytest.raises(ValueError, match="no pipeline"):
        DeepCacheSDHelper().enable()
    with pytest.raises(SettingsError, match="skip_mode"):
        DeepCacheSDHelper().set_params(skip_mode="quadratic")
    with pytest.raises(SettingsError, match="cache_interval"):
        DeepCacheSDHelper().set_params(cache_interval=0)


def test_helper_takes_new_parameters_at_once(pipe):
    plain = run(pipe, SD)
    helper = DeepCacheSDHelper(pipe)
    helper.enable()
    assert torch.equal(run(pipe, SD), plain)  # interval 1, as its default
    helper.set_params(cache_interval=3)
    changed = run(pipe, SD)
    helper.disable()
    assert not torch.equal(changed, plain)
    with DeepCache(pipe, cache_interval=3, estimator="copy") as cache:
        assert torch.equal(run(pipe, SD), changed)
    assert str(cache.report()).startswith("3 of 7 full")
    assert str(DeepCache(pipe).report()) == "nothing has run yet"


def test_importing_the_package_imports_no_diffusers():
    code = (
        "import sys, deepcache_ext;"
        "print(sorted({'diffusers', 'transformers', 'accelerate', 'gradio', 'modules'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Other people's hooks ---------------------------------------------------------------------------------------


def offload_sequentially(pipe):
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"), offload_buffers=True)


def offload_model(pipe):
    cpu_offload_with_hook(pipe.unet, execution_device="cpu")


def hook_anew_at_every_step(pipe):
    """SD.Next's balanced offload hooks again while a picture is made."""

    def hook(*_):
        remove_hook_from_module(pipe.unet, recurse=True)
        for module in (pipe.unet, *pipe.unet.down_blocks, *pipe.unet.up_blocks):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))

    pipe.text_encoder.register_forward_hook(hook)
    pipe.scheduler.step = functools.partial(then, pipe.scheduler.step, hook)


def then(first, second, *args, **kwargs):
    result = first(*args, **kwargs)
    second()
    return result


@pytest.mark.sample
@pytest.mark.parametrize("early", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("offload", [offload_sequentially, offload_model, hook_anew_at_every_step])
def test_offloading(offload, early):
    """accelerate's hooks, put up before DeepCache is enabled or after."""
    with DeepCache(shared(SD), cache_interval=3, cache_branch_id=1) as cache:
        expected = run(shared(SD), SD)
    pipe = build(SD)
    cache = DeepCache(pipe, cache_interval=3, cache_branch_id=1)
    if early:
        cache.enable()
    offload(pipe)
    if not early:
        cache.enable()
    pictures = [run(pipe, SD) for _ in range(2)]
    cache.disable()
    assert all(torch.equal(picture, expected) for picture in pictures)
    assert [(p.full_calls, p.cached_calls) for p in cache.report().passes] == [(3, 4)] * 2


def test_lora_layers_and_freeu():
    """Linear layers that somebody wraps in a LoRA of his own; peft's are in test_lora.py."""
    pipe = build(SD)

    class Low(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down, self.up = torch.randn(2, base.in_features) / 4, torch.randn(base.out_features, 2) / 4
            self.in_features, self.out_features = base.in_features, base.out_features

        def forward(self, x):
            return self.base(x) + x @ self.down.T @ self.up.T

    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in list(pipe.unet.modules()):
            if type(module).__name__ == "Attention":
                module.to_q, module.to_v = Low(module.to_q), Low(module.to_v)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    settings = {"cache_interval": 3, "cache_branch_id": 4, "estimator": "copy"}
    with DeepCache(pipe, **settings) as cache:
        run(pipe, SD)
    assert cache.report().passes[0].off == "`tests.python.test_deepcache` watches layers that a cached call would skip"
    with DeepCache(pipe, **settings, trusted=["tests.python.test_deepcache"]):
        cached = run(pipe, SD)
    with Naive(pipe.unet, 3, 4):
        assert torch.equal(cached, run(pipe, SD))
    pipe.disable_freeu()
    assert not torch.equal(cached, run(shared(SD), SD))
