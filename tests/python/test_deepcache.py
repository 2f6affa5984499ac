"""`DeepCache` and `DeepCacheSDHelper`: passes and evaluations, odd loops, errors, other people's hooks, settings."""

import copy
import functools
import gc
import subprocess
import sys
import weakref

import diffusers
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

from deepcache_ext import DeepCache, DeepCacheSDHelper, SettingsError
from deepcache_ext.report.pass_report import Reason
from tests import diffusers_pipelines as pipelines
from tests import diffusers_unets as unets
from tests.diffusers_pipelines import Naive, Output, build, run, shared, with_scheduler

SD = "StableDiffusion"

pytestmark = pytest.mark.usefixtures("quiet")


# Passes and evaluations -------------------------------------------------------------------------------------


def test_each_run_of_a_pipeline_is_a_pass(pipe):
    alone = []
    for seed in (0, 1):
        with DeepCache(pipe, cache_interval=4) as cache:
            alone.append(run(pipe, SD, seed=seed))
    with DeepCache(pipe.unet, cache_interval=4) as cache:
        together = [run(pipe, SD, seed=seed) for seed in (0, 1)]
    assert all(map(torch.equal, alone, together))
    assert [(p.evaluations, p.full_evaluations) for p in cache.report().passes] == [(7, 2), (7, 2)]


@pytest.mark.parametrize("only_unet", [False, True], ids=["pipeline", "unet"])
def test_passes_of_one_step_share_nothing(pipe, only_unet):
    """The same prompt, timestep and shape, but another picture."""
    plain = [run(pipe, SD, steps=1, seed=seed) for seed in range(3)]
    with DeepCache(pipe.unet if only_unet else pipe, cache_interval=5):
        assert all(map(torch.equal, plain, [run(pipe, SD, steps=1, seed=seed) for seed in range(3)]))


def test_a_shorter_pass_after_a_longer_one_shares_nothing():
    """img2img begins at the timestep where the pass before it may have been broken off."""
    pipe = shared("StableDiffusionImg2Img")
    options = {"steps": 10, "strength": 0.3}
    alone = run(pipe, "StableDiffusionImg2Img", seed=1, **options)

    def stop(pipe, step, timestep, kwargs):
        pipe._interrupt = step == 3
        return kwargs

    with DeepCache(pipe.unet, cache_interval=50):
        run(pipe, "StableDiffusionImg2Img", steps=10, callback_on_step_end=stop)
        pipe._interrupt = False
        again = run(pipe, "StableDiffusionImg2Img", seed=1, **options)
    with Naive(pipe.unet, 50, 0):
        assert torch.equal(again, run(pipe, "StableDiffusionImg2Img", seed=1, **options))
    assert not torch.equal(again, alone)


def test_batch_that_shrinks_in_mid_run(pipe):
    """Guidance that ends early halves the batch."""

    def end_guidance(pipe, step, timestep, kwargs):
        if step == 3:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    changes = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with DeepCache(pipe, cache_interval=3, cache_branch_id=2, estimator="copy") as cache:
        cached = run(pipe, SD, steps=9, **changes)
    with Naive(pipe.unet, 3, 2):
        assert torch.equal(cached, run(pipe, SD, steps=9, **changes))
    (report,) = cache.report().passes
    assert (report.full_calls, report.cached_calls, dict(report.misses)) == (4, 5, {Reason.FIRST_SEEN: 1})


def guided_by_hand(pipe, steps=7, as_number=False, seed=0):
    """A loop that asks for cond and uncond apart, as modular guiders do; of timesteps that are their own tensors."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    cond, uncond = torch.randn(2, 1, 7, 16, generator=torch.Generator().manual_seed(5))
    pipe.scheduler.set_timesteps(steps)
    x = x * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        scaled = pipe.scheduler.scale_model_input(x, t)
        given = float(t) if as_number else t
        noises = [pipe.unet(scaled, given, encoder_hidden_states=context).sample for context in (cond, uncond)]
        x = pipe.scheduler.step(noises[1] + 3 * (noises[0] - noises[1]), t, x).prev_sample
    return x


class NaiveApart(Naive):
    """Cond and uncond come in turn; each has a feature of its own."""

    def forward(self, sample, timestep, encoder_hidden_states=None, **given):
        role, evaluation = self.count % 2, self.count // 2
        self.count += 1
        is_full = evaluation % self.interval == 0
        output, self.features[role] = unets.by_hand(
            self.unet,
            self.branch,
            None if is_full else self.features[role],
            sample=sample,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
        )
        return Output((output,))


@pytest.mark.parametrize("as_number", [False, True], ids=["tensor", "number"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_cond_and_uncond_apart(pipe, name, as_number):
    with_scheduler(pipe, name)
    with DeepCache(pipe, cache_interval=3, estimator="copy") as cache:
        cached = guided_by_hand(pipe, as_number=as_number)
    with NaiveApart(pipe.unet, 3, 0):
        assert torch.equal(cached, guided_by_hand(pipe, as_number=as_number))
    (report,) = cache.report().passes
    assert report.evaluations == len(pipe.scheduler.timesteps) and report.cached_calls > 7 and not report.misses


def test_numbers_that_repeat_are_not_trusted(pipe):
    """Without a scheduler a repeated number with another x may be another picture's: all that was kept goes."""
    with_scheduler(pipe, "HeunDiscreteScheduler")
    plain = guided_by_hand(pipe, as_number=True)
    with DeepCache(pipe.unet, cache_interval=2) as cache:
        guided_by_hand(pipe, as_number=True)
    # Heun: 1000, then each timestep twice: every second call is a first one again.
    assert max(p.evaluations for p in cache.report().passes) == 2
    with DeepCache(pipe.unet, cache_interval=2):
        pictures = [guided_by_hand(pipe, steps=1, as_number=True, seed=seed) for seed in (0, 1)]
    expected = [guided_by_hand(pipe, steps=1, as_number=True, seed=seed) for seed in (0, 1)]
    assert all(map(torch.equal, pictures, expected))
    assert torch.equal(guided_by_hand(pipe, as_number=True), plain)


@pytest.mark.parametrize("as_value", [float, lambda t: torch.full((2,), t)], ids=["numbers", "tensors"])
def test_a_lower_value_may_be_another_pictures(pipe, as_value):
    """Without a scheduler: picture 1 is broken off, picture 2 (same prompt, other noise) begins further down."""
    given = unets.inputs("sd1")
    x = [torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]

    def call(picture, timestep):
        return pipe.unet(**{**given, "sample": x[picture], "timestep": as_value(timestep)}).sample

    plain = call(1, 801)
    with DeepCache(pipe.unet, cache_interval=3, estimator="copy") as cache:
        call(0, 981)
        assert torch.equal(call(1, 801), plain)
    assert len(cache.report().passes) == 2


def test_saying_that_a_run_begins(pipe):
    """Two pictures from one image at low noise are alike; their program says where the second begins."""
    given = unets.inputs("sd1")

    def call(timestep, more):
        return pipe.unet(**{**given, "sample": given["sample"] + more, "timestep": timestep}).sample

    plain = call(101, 0.1)
    for told in (False, True):
        with DeepCache(pipe.unet, cache_interval=3, estimator="copy") as cache:
            call(201, 0.0)
            if told:
                cache.new_run()
            assert torch.equal(call(101, 0.1), plain) is told


def test_perturbed_attention_guidance():
    pipe = diffusers.StableDiffusionPAGPipeline(
        **pipelines._sd(unets.make("sd1")), requires_safety_checker=False, pag_applied_layers="mid"
    )
    pipe.set_progress_bar_config(disable=True)
    options = {
        "prompt": pipelines.PROMPT,
        "height": 16,
        "width": 16,
        "num_inference_steps": 6,
        "pag_scale": 3.0,
        "output_type": "latent",
    }

    def picture():
        return pipe(**options, generator=torch.Generator().manual_seed(0)).images

    plain = picture()
    with DeepCache(pipe, cache_interval=2, estimator="copy"):
        cached = picture()
    with Naive(pipe.unet, 2, 0):
        assert torch.equal(cached, picture())
    assert not torch.equal(cached, plain)


def test_tiles_run_in_full_but_for_the_first():
    """A panorama asks about one window after the other in one evaluation; which one a call holds cannot be known."""
    parts = pipelines._sd(unets.make("sd1"))
    pipe = diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    options = {"prompt": pipelines.PROMPT, "height": 16, "width": 160, "num_inference_steps": 4}

    def picture():
        return pipe(**options, output_type="latent", generator=torch.Generator().manual_seed(0)).images

    plain = picture()
    with DeepCache(pipe, cache_interval=2, estimator="copy") as cache:
        picture()
    (report,) = cache.report().passes
    assert report.evaluations == 4
    assert torch.equal(picture(), plain)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_forecast(pipe, name):
    """First order in log sigma, as far as it was right before; sigma is worked out here from the training schedule."""
    with_scheduler(pipe, name)
    with DeepCache(pipe, cache_interval=2, estimator="forecast"):
        forecast = run(pipe, SD)
    trained = diffusers.DDIMScheduler(**pipelines.TRAINED).alphas_cumprod.double()
    log_sigma = (((1 - trained) / trained).sqrt()).log()
    points, calls = [], []

    def forward(sample, timestep, encoder_hidden_states, **_):
        place, k = float(log_sigma[round(float(timestep))]), len(calls)
        calls.append(k)
        feature = None
        if k % 2:
            feature = points[-1][1]
            if len(points) > 1:
                ratio = (place - points[-1][0]) / (points[-1][0] - points[-2][0])
                trust = 0.5
                if len(points) > 2:
                    (first, one), (second, two), (third, three) = points[-3:]
                    step = (third - second) / (second - first) * (two - one)
                    trust = ((three - two) * step).sum((2, 3), True) / step.square().sum((2, 3), True)
                    trust = trust.clamp(-1, 1)
                feature = feature + ratio * trust * (feature - points[-2][1])
        output, kept = unets.by_hand(
            pipe.unet, 0, feature, sample=sample, timestep=timestep, encoder_hidden_states=encoder_hidden_states
        )
        if feature is None:
            points.append((place, kept))
        return Output((output,))

    pipe.unet.forward = forward
    expected = run(pipe, SD)
    del pipe.unet.forward
    torch.testing.assert_close(forecast, expected, rtol=1e-3, atol=1e-3)
    with DeepCache(pipe, cache_interval=2, estimator="copy"):
        assert (run(pipe, SD) - expected).abs().max() > 10 * (forecast - expected).abs().max()


@pytest.mark.parametrize(
    ("name", "only_unet", "interval", "estimator"),
    [
        ("DDIMScheduler", False, 2, "forecast"),
        ("DDIMScheduler", False, 4, "copy"),
        ("EulerAncestralDiscreteScheduler", False, 2, "copy"),
        ("LCMScheduler", False, 4, "copy"),
        ("DDIMScheduler", True, 4, "copy"),
    ],
)
def test_auto(pipe, name, only_unet, interval, estimator):
    """It forecasts where full evaluations lie close and no noise is added."""
    with_scheduler(pipe, name)
    with DeepCache(pipe.unet if only_unet else pipe, cache_interval=interval):
        automatic = run(pipe, SD, steps=20)
    with DeepCache(pipe, cache_interval=interval, estimator=estimator):
        assert torch.equal(automatic, run(pipe, SD, steps=20))


def test_window(pipe):
    with DeepCache(pipe.unet, cache_interval=2, start=0.3, end=0.7) as cache:
        run(pipe, SD, steps=10)
    assert (cache.report().passes[0].cached_calls, cache.report().passes[0].evaluations) == (2, 10)
    with DeepCache(pipe.unet, cache_interval=2, start=0.3) as cache:
        guided_by_hand(pipe, as_number=True)
    assert "number of steps" in cache.report().passes[0].off


# What is left behind, and what goes wrong --------------------------------------------------------------------


def alive(*names):
    """Of our classes: torch's compiler has a Slot, too."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return [k.__name__ for k in kinds if k.__name__ in names and str(k.__module__).startswith("deepcache_ext.")]


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


def test_gradients_are_asked_for_by_a_control_network(pipe):
    """Its residuals are no part of what calls are compared by."""
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)
    with torch.no_grad():
        middle = [torch.zeros_like(pipe.unet.mid_block(torch.zeros(1, 16, 2, 2), torch.zeros(1, 32)))]
    down = [torch.zeros(1, 8, 8, 8)] * 3 + [torch.zeros(1, 8, 4, 4)] + [torch.zeros(1, 16, 4, 4)] * 2
    down += [torch.zeros(1, 16, 2, 2)] * 3
    pipe.unet.requires_grad_(False)
    with torch.enable_grad(), DeepCache(pipe, cache_interval=2) as cache:
        for t in torch.arange(5).flip(0):
            residual = middle[0].clone().requires_grad_()
            given = {"down_block_additional_residuals": down, "mid_block_additional_residual": residual}
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
    "compiled",
    [
        lambda unet: torch.compile(unet, backend="eager"),
        lambda unet: unet.compile(backend="eager") or unet,
        lambda unet: torch.nn.Linear(2, 2),
    ],
    ids=["wrapped", "in-place", "no-unet"],
)
def test_a_unet_that_cannot_be_cached_runs_as_ever(compiled, caplog):
    unet = compiled(unets.make("sd1"))
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
    """LoRA wraps linear layers; here by hand, since peft is not among the tests' packages."""
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
