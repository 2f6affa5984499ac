"""`DeepCache.calibrate`: plans tried on a real pipeline, what it is used for afterwards, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepcache_ext import DeepCache, NotCalibrated, SettingsError
from deepcache_ext.plan import cost
from deepcache_ext.settings.evaluation_list import custom
from deepcache_ext.unet.diffusers import DiffusersLadder
from tests.diffusers_pipelines import run, with_scheduler

SD = "StableDiffusion"
STEPS = 14

pytestmark = pytest.mark.usefixtures("quiet")


def make(pipe: Any, steps: int = STEPS) -> Any:
    return lambda seed: run(pipe, SD, steps=steps, seed=seed)


@pytest.fixture
def euler(pipe: Any) -> Any:
    return with_scheduler(pipe, "EulerDiscreteScheduler")


def test_what_was_found_is_run_and_is_as_near_as_it_says(euler: Any) -> None:
    cache = DeepCache(euler, speed_up=2.0)
    plain = make(euler)(9)
    found = cache.calibrate(make(euler), tries=6)
    assert found.tries == 6 and found.psnr >= found.weighted_psnr and found.pictures == 2
    full, _, _ = custom(found.evaluations, STEPS, found.branch)
    plan, blocks = [None if k in full else found.branch for k in range(STEPS)], DiffusersLadder(euler.unet).depth
    assert cost.speed_up(plan, blocks) >= cost.NEARLY * 2.0
    assert cache.report().passes == (), "the trials are none of the user's runs"
    with cache:
        calibrated = make(euler)(9)
    (told,) = cache.report().passes
    assert told.full_evaluations == len(full) and told.evaluations == STEPS and not told.off
    by_hand = DeepCache(
        euler, full_evaluations=found.evaluations, cache_branch_id=found.branch, estimator=found.estimator
    )
    with by_hand:
        assert torch.equal(make(euler)(9), calibrated)
    assert torch.equal(make(euler)(9), plain)


def test_its_scores_are_those_of_pictures_that_the_search_did_not_see(
    euler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(seed: int) -> torch.Tensor:
        asked.append(seed)
        return make(euler)(seed)

    found = DeepCache(euler, speed_up=2.0).calibrate(noted, tries=4, pictures=2, seed=5)
    searched, judged = asked[: 2 * 5], asked[2 * 5 :]
    assert set(searched) == {5, 6} and set(judged) == {7, 8}
    scores = []
    for seed in (7, 8):
        plain = make(euler)(seed)
        with DeepCache(euler, speed_up=2.0):
            weighted = make(euler)(seed)
        span = float(plain.max() - plain.min())
        scores.append(float(10 * torch.log10(span**2 / (plain.double() - weighted.double()).square().mean())))
    assert found.weighted_psnr == pytest.approx(sum(scores) / 2, abs=0.02)


def test_other_runs_than_those_it_was_made_for_are_weighted(euler: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache = DeepCache(euler, speed_up=2.0)
    cache.calibrate(make(euler), tries=4)
    with cache:
        longer = make(euler, 20)(3)
    with DeepCache(euler, speed_up=2.0):
        assert torch.equal(make(euler, 20)(3), longer)
    assert "made for 14 steps, this run has 20: weighted instead of calibrated" in caplog.text


def test_it_is_enabled_afterwards_where_it_was_before(euler: Any) -> None:
    with DeepCache(euler, speed_up=2.0) as cache:
        make(euler)(1)
        cache.calibrate(make(euler), tries=4)
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
def test_what_cannot_be_calibrated_is_said_and_changes_nothing(euler: Any, picture: Any, why: str) -> None:
    cache = DeepCache(euler, speed_up=2.0)
    with pytest.raises(NotCalibrated, match=why):
        cache.calibrate(lambda seed: picture(euler, seed), tries=4)
    assert cache.settings == DeepCache(euler, speed_up=2.0).settings


def test_an_error_in_the_middle_leaves_it_as_it_was(euler: Any) -> None:
    cache, made = DeepCache(euler, speed_up=2.0), []

    def fails(seed: int) -> torch.Tensor:
        made.append(seed)
        if len(made) > 3:
            raise KeyboardInterrupt
        return make(euler)(seed)

    with pytest.raises(KeyboardInterrupt):
        cache.calibrate(fails, tries=4)
    assert cache.settings == DeepCache(euler, speed_up=2.0).settings
    with cache:
        make(euler)(1)
    assert len(cache.report().passes) == 1


def test_numbers_that_cannot_be_used_are_named(euler: Any) -> None:
    with pytest.raises(SettingsError, match="tries"):
        DeepCache(euler).calibrate(make(euler), tries=1)
