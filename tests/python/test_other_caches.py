"""Another cache on a diffusers UNet: ours stays out, and calls nothing full that it does not know to be."""

from types import SimpleNamespace

import pytest
import torch
from DeepCache import DeepCacheSDHelper as Published
from diffusers.hooks import (
    HookRegistry,
    ModelHook,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)

from deepcache_ext import DeepCache
from tests import diffusers_unets as unets
from tests.python.loops import call, same

TIMESTEPS = torch.arange(900, 200, -100)

pytestmark = pytest.mark.usefixtures("quiet")


class EverySecond(ModelHook):
    """Runs the UNet at every second call alone."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None

    def new_forward(self, module, *args, **kwargs):
        if not self.calls % 2:
            self.last = self.fn_ref.original_forward(*args, **kwargs)
        self.calls += 1
        return self.last


def instead_of_the_unet(unet):
    HookRegistry.check_if_exists_or_initialize(unet).register_hook(EverySecond(), "every second")


def published(unet):
    helper = Published(SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=TIMESTEPS)))
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()


def attention_broadcast(unet):
    always = (-1, 2000)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=always,
        cross_attention_timestep_skip_range=always,
        spatial_attention_block_identifiers=("blocks",),
        cross_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(unet, config)


def outputs(unet, begins=-1, other=None):
    found = []
    for k, t in enumerate(TIMESTEPS):
        if k == begins:
            other(unet)
        found.append(call(unet, k, t))
    return found


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("begins", [-1, 0, 3])
@pytest.mark.parametrize("other", [instead_of_the_unet, published, attention_broadcast])
def test_nothing_is_called_full_that_another_cache_may_skip(other, begins, interval):
    """It is there before ours (-1), or comes at an evaluation. A pass that caches nothing looks at the single layers
    only when it begins.
    """
    if (other, begins, interval) == (attention_broadcast, 3, 1):
        return
    plain, unet = unets.make("sd1"), unets.make("sd1")
    if begins < 0:
        other(plain)
        other(unet)
    with DeepCache(unet, cache_interval=interval, cache_branch_id=1, estimator="copy") as cache:
        cached = outputs(unet, begins, other)
    expected = outputs(plain, begins, other)
    assert same(cached[max(begins, 0) :], expected[max(begins, 0) :])
    report = cache.report()
    if begins < 0 and other is attention_broadcast:
        assert "caches this UNet already" in report.inactive and not report.passes
        return
    (told,) = report.passes
    assert told.is_blind and told.off
    seen = max(begins, 0)
    assert (told.evaluations, told.full_calls + told.cached_calls) == (seen, seen)
