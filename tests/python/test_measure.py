"""`DeepCache.measure`: a real pipeline measured, what it is used for afterwards, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepcache_ext import DeepCache, NotMeasured, SettingsError
from deepcache_ext.measure.profile import MadeFor, Profile
from deepcache_ext.measure.store import Held
from deepcache_ext.plan.ageing import SOUNDED
from tests.diffusers_pipelines import run, with_scheduler

SD = "StableDiffusion"
STEPS = 14

pytestmark = pytest.mark.usefixtures("quiet")


def make(pipe: Any, steps: int = STEPS) -> Any:
    return lambda seed: run(pipe, SD, steps=steps, seed=seed)


@pytest.fixture
def euler(pipe: Any) -> Any:
    return with_scheduler(pipe, "EulerDiscreteScheduler")


def likeness(made: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """PSNR in dB."""
    span = float(plain.max() - plain.min())
    return 10 * torch.log10(span**2 / (plain.double() - made.double()).square().mean())


def test_what_it_returns_is_what_caching_by_hand_gives(euler: Any) -> None:
    asked = []

    def noted(seed: int) -> torch.Tensor:
        asked.append(seed)
        return make(euler)(seed)

    cache = DeepCache(euler, speed_up=2.0, start=0.5)
    ageing = cache.measure(noted, seed=5)
    assert asked == [5, 6] * 4 and tuple(ageing) == SOUNDED[9]
    assert cache.report().passes == (), "what it was measured by is none of the user's runs"
    means = {}
    for branch in SOUNDED[9]:
        scores = []
        for seed in (5, 6):
            plain = make(euler)(seed)
            with DeepCache(euler, cache_interval=2, cache_branch_id=branch, estimator="forecast"):
                scores.append(float(likeness(make(euler)(seed), plain)))
        means[branch] = sum(scores) / 2
    wanted = {branch: 10 ** ((means[0] - mean) / 20) for branch, mean in means.items()}
    assert ageing == pytest.approx({branch: min(max(one, 0.01), 3.0) for branch, one in wanted.items()}, rel=0.01)


def test_plans_follow_it_with_schedulers_of_the_same_kind_alone(pipe: Any) -> None:
    cache, plain = DeepCache(pipe, speed_up=2.0), DeepCache(pipe, speed_up=2.0)
    euler, other = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"

    def pictures(one: DeepCache, scheduler: str, steps: int) -> torch.Tensor:
        with one:
            return make(with_scheduler(pipe, scheduler), steps)(9)

    before = {name: pictures(plain, name, 20) for name in (euler, other)}
    cache.measure(make(with_scheduler(pipe, euler)), pictures=1)
    ageing = {0: 1.0, 3: 3.0, 5: 3.0}  # whose plans are others than the usual ones
    cache._profiles = Held(Profile(MadeFor("", "", 9, False, euler, STEPS), ageing, 1))
    assert not torch.equal(pictures(cache, euler, 20), before[euler])
    assert cache.report().passes[-1].full_evaluations != plain.report().passes[0].full_evaluations
    assert torch.equal(pictures(cache, other, 20), before[other])
    # The other kind, measured too, does not take the first one's place.
    cache.measure(make(with_scheduler(pipe, other)), pictures=1)
    assert [one.made_for.fresh_noise for one in cache._profiles.known()] == [True, False]
    assert not torch.equal(pictures(cache, euler, 20), before[euler])


def test_the_settings_are_as_before_and_a_branch_of_ones_own_is_kept(euler: Any) -> None:
    cache = DeepCache(euler, speed_up=2.0, cache_branch_id=1)
    cache.measure(make(euler), pictures=1)
    assert cache.settings == DeepCache(euler, speed_up=2.0, cache_branch_id=1).settings
    with cache:
        mine = make(euler)(9)
    with DeepCache(euler, speed_up=2.0, cache_branch_id=1):
        assert torch.equal(make(euler)(9), mine)


def test_it_is_enabled_afterwards_where_it_was_before(euler: Any) -> None:
    with DeepCache(euler, speed_up=2.0) as cache:
        make(euler)(1)
        cache.measure(make(euler), pictures=1)
        make(euler)(1)
        assert len(cache.report().passes) == 2
    with DeepCache(euler):
        pass


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (lambda pipe, seed: (make(pipe)(seed), make(pipe)(seed))[0], "took 2"),
        (lambda pipe, seed: None, "took 0"),
        (lambda pipe, seed: make(pipe, 6)(seed), "only 6 steps: it needs 12 or more"),
        (lambda pipe, seed: make(pipe, STEPS + seed % 2)(seed), "15 instead of 14"),
        (lambda pipe, seed: [make(pipe)(seed), None], "not a picture"),
    ],
)
def test_what_cannot_be_measured_is_said_and_changes_nothing(euler: Any, picture: Any, why: str) -> None:
    cache = DeepCache(euler, speed_up=2.0)
    with pytest.raises(NotMeasured, match=why):
        cache.measure(lambda seed: picture(euler, seed))
    assert cache.settings == DeepCache(euler, speed_up=2.0).settings


def test_an_error_in_the_middle_leaves_it_as_it_was(euler: Any) -> None:
    cache, made = DeepCache(euler, speed_up=2.0), []

    def fails(seed: int) -> torch.Tensor:
        made.append(seed)
        if len(made) > 3:
            raise KeyboardInterrupt
        return make(euler)(seed)

    with pytest.raises(KeyboardInterrupt):
        cache.measure(fails)
    assert cache.settings == DeepCache(euler, speed_up=2.0).settings
    with cache:
        make(euler)(1)
    assert len(cache.report().passes) == 1


def test_numbers_that_cannot_be_used_are_named(euler: Any) -> None:
    with pytest.raises(SettingsError, match="pictures"):
        DeepCache(euler).measure(make(euler), pictures=0)
