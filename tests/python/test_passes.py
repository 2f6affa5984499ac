"""`DeepCache(pipe)`: which calls of a pipeline's UNet make a pass, an evaluation, a call of the same picture."""

import diffusers
import pytest
import torch

from deepcache_ext import DeepCache
from deepcache_ext.report.pass_report import Reason
from tests import diffusers_pipelines as pipelines
from tests import diffusers_unets as unets
from tests.diffusers_pipelines import Naive, Output, run, shared, with_scheduler

SD = "StableDiffusion"

pytestmark = pytest.mark.usefixtures("quiet")


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


def test_a_preset_without_a_list_of_timesteps(unet, caplog):
    """Plain numbers: as fast as was asked for, and a word about it."""
    x, prompt = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with DeepCache(unet, preset="Quality") as cache, torch.no_grad():
        for k in range(20):
            unet(x * 0.98**k, 980.0 - 49 * k, prompt)
    (told,) = cache.report().passes
    assert told.full_evaluations == 13 and "number of steps is not known" in caplog.text
    assert cache._outcomes[0].planned.speed_up() is None


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


def line(points, place):
    """The feature at a place in log sigma that the last of these (place, feature) lead to."""
    feature = points[-1][1]
    if len(points) < 2:
        return feature
    ratio, trust = (place - points[-1][0]) / (points[-1][0] - points[-2][0]), 0.5
    if len(points) > 2:
        (first, one), (second, two), (third, three) = points[-3:]
        step = (third - second) / (second - first) * (two - one)
        trust = ((three - two) * step).sum((2, 3), True) / step.square().sum((2, 3), True)
        trust = trust.clamp(-1, 1)
    return feature + ratio * trust * (feature - points[-2][1])


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_forecast(pipe, name):
    """First order in log sigma, as far as it was right before, and a fifth of what that was wrong by: this UNet has
    SDXL's nine output blocks. Sigma is worked out here from the training schedule.
    """
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
            feature = line(points, place)
            if len(points) > 1:
                feature = feature + 0.2 * (points[-1][1] - line(points[:-1], points[-1][0]))
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
