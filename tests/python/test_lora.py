"""LoRAs of diffusers, by the real peft: cached as they are, and one full evaluation for what changes in mid-run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig

from deepcache_ext import DeepCache
from deepcache_ext.report.pass_report import Reason
from tests.diffusers_pipelines import Naive, build, run, shared

SD = "StableDiffusion"
STEPS = 9
SETTINGS = {"cache_interval": 3, "cache_branch_id": 4, "estimator": "copy"}

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def pipe() -> Iterator[Any]:
    """With two adapters, of which one acts."""
    pipe = build(SD)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, alpha, aims in (("one", 3, ["to_k", "to_q", "to_v", "to_out.0"]), ("two", 7, ["to_k", "to_q"])):
            config = LoraConfig(r=4, lora_alpha=alpha, init_lora_weights=False, target_modules=aims)
            pipe.unet.add_adapter(config, adapter_name=name)
    pipe.unet.set_adapters(["one"])
    return pipe


@pytest.mark.parametrize("scale", [None, 0.7])
def test_a_lora_is_cached_like_the_model(pipe: Any, scale: float | None) -> None:
    """`scale`: peft's layers are scaled in the UNet's forward, and back after it."""
    given = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
    plain = run(pipe, SD, steps=STEPS, **given)
    with DeepCache(pipe, **SETTINGS) as cache:
        cached = run(pipe, SD, steps=STEPS, **given)
    (told,) = cache.report().passes
    assert (told.fraction, told.misses, told.off) == ("3 of 9 full", {}, "")
    assert torch.equal(run(pipe, SD, steps=STEPS, **given), plain) and not torch.equal(plain, cached)
    if scale is None:
        with Naive(pipe.unet, 3, 4):
            assert torch.equal(cached, run(pipe, SD, steps=STEPS))
        assert not torch.equal(cached, run(shared(SD), SD, steps=STEPS))


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.set_adapters(["two"]),
        lambda unet: unet.set_adapters(["one"], [0.2]),
        lambda unet: unet.set_adapters(["one", "two"]),
        lambda unet: unet.disable_adapters(),
        lambda unet: unet.fuse_lora(),
        lambda unet: unet.delete_adapters("one"),
        lambda unet: unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_v"]), "three"),
    ],
    ids=["another", "weaker", "both", "none", "fused", "deleted", "added"],
)
def test_a_lora_that_changes_in_mid_run(pipe: Any, change: Callable[[Any], None]) -> None:
    """After evaluation 3, which was full: evaluation 4 would be cached."""

    def act(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            change(pipe.unet)
        return given

    with DeepCache(pipe, **SETTINGS) as cache:
        run(pipe, SD, steps=STEPS, callback_on_step_end=act)
    (told,) = cache.report().passes
    assert (told.fraction, told.misses, told.off) == ("4 of 9 full", {Reason.WEIGHTS: 1}, "")
