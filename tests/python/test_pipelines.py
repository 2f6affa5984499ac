"""`DeepCache` on every pipeline and scheduler; the same pictures as the helper that the method's authors published."""

import pytest
import torch
from DeepCache import DeepCacheSDHelper as PublishedHelper

from deepcache_ext import DeepCache, DeepCacheSDHelper
from tests import diffusers_pipelines as pipelines
from tests import diffusers_unets as unets
from tests.diffusers_pipelines import Naive, build, run, shared, with_scheduler

SD = "StableDiffusion"
SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "IPNDMScheduler",
)
REPEAT_TIMESTEPS = {"HeunDiscreteScheduler", "PNDMScheduler"}

pytestmark = pytest.mark.usefixtures("quiet")


LOOPS = {"TextToVideoZero": (2, 4)}
"""It goes on in a second loop where its first one ended, and then rewinds: each loop is a pass."""


@pytest.mark.sample(
    "StableDiffusion",
    "StableDiffusionXL",
    "StableDiffusionControlNet",
    "StableVideoDiffusion",
    "TextToVideoZero",
    "DDPM",
)
@pytest.mark.parametrize("name", pipelines.BUILD)
def test_every_pipeline(name):
    pipe = shared(name)
    before = unets.traces(pipe.unet)
    plain = run(pipe, name)
    assert plain.isfinite().all()
    with DeepCache(pipe, cache_interval=1) as cache:
        assert torch.equal(run(pipe, name), plain)
    assert cache.report().passes[-1].cached_calls == 0
    with DeepCache(pipe, cache_interval=3, cache_branch_id=1, estimator="copy") as cache:
        cached = run(pipe, name)
    report = cache.report().passes
    with Naive(pipe.unet, 3, 1, loops=LOOPS.get(name, ())) as reference:
        expected = run(pipe, name)
    assert torch.equal(cached, expected)
    assert (cached - plain).abs().mean() > 1e-4 * plain.abs().mean()
    assert sum(p.full_calls for p in report) == reference.full
    assert sum(p.cached_calls for p in report) > 2
    assert unets.traces(pipe.unet) == before
    assert torch.equal(run(pipe, name), plain)


@pytest.mark.sample("StableDiffusion", "StableDiffusionXL", "DDPM")
@pytest.mark.parametrize("name", pipelines.BUILD)
def test_every_pipeline_with_a_deeper_branch(name):
    pipe = shared(name)
    before = unets.traces(pipe.unet)
    with DeepCache(pipe, cache_interval=2, deeper_branch_id=3, estimator="copy") as cache:
        cached = run(pipe, name)
    report = cache.report().passes
    with Naive(pipe.unet, 2, 0, 3, LOOPS.get(name, ())) as reference:
        expected = run(pipe, name)
    assert torch.equal(cached, expected)
    assert sum(p.full_calls for p in report) == reference.full
    assert sum(p.medium_calls for p in report) > 0
    assert unets.traces(pipe.unet) == before
    with Naive(pipe.unet, 2, 0):
        assert not torch.equal(cached, run(pipe, name))


@pytest.mark.sample(
    "DDIMScheduler-unet",
    "DPMSolverMultistepScheduler-pipeline",
    "HeunDiscreteScheduler-pipeline",
    "HeunDiscreteScheduler-unet",
    "PNDMScheduler-pipeline",
    "LCMScheduler-unet",
)
@pytest.mark.parametrize("only_unet", [False, True], ids=["pipeline", "unet"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(pipe, name, only_unet):
    """Heun and PNDM repeat timesteps; some schedulers ask the UNet twice a step."""
    with_scheduler(pipe, name)
    plain = run(pipe, SD)
    with DeepCache(pipe.unet if only_unet else pipe, cache_interval=3, estimator="copy") as cache:
        cached = run(pipe, SD)
    with Naive(pipe.unet, 3, 0):
        expected = run(pipe, SD)
    assert torch.equal(cached, expected)
    assert not torch.equal(cached, plain)
    (report,) = cache.report().passes
    evaluations = len(pipe.scheduler.timesteps)
    assert (report.evaluations, report.full_evaluations) == (evaluations, -(-evaluations // 3))
    assert not report.misses


@pytest.mark.sample
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in REPEAT_TIMESTEPS])
@pytest.mark.parametrize("branch", [0, 4])
def test_same_pictures_as_the_published_helper(pipe, name, branch):
    with_scheduler(pipe, name)
    pictures = []
    for kind in (PublishedHelper, DeepCacheSDHelper):
        helper = kind(pipe=pipe)
        helper.set_params(cache_interval=3, cache_branch_id=branch)
        helper.enable()
        pictures.append(run(pipe, SD))
        helper.disable()
        for module in pipe.unet.modules():
            module.__dict__.pop("forward", None)  # the published one leaves them
    assert torch.equal(*pictures)


@pytest.mark.sample("StableDiffusionXL", "StableVideoDiffusion")
@pytest.mark.parametrize("name", [name for name in pipelines.BUILD if name not in (SD,)])
def test_same_pictures_as_the_published_helper_in_every_pipeline(name):
    """Not in TextToVideoZero, which rewinds, nor in LDMTextToImage, where it does not find the timestep."""
    pictures = []
    for kind in (PublishedHelper, DeepCacheSDHelper):
        pipe = build(name)
        helper = kind(pipe=pipe)
        helper.set_params(cache_interval=2, cache_branch_id=2)
        helper.enable()
        pictures.append(run(pipe, name))
        helper.disable()
    assert torch.equal(*pictures)
