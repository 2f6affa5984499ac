"""Which samplers add noise, and noise levels by timestep."""

import math

import pytest
import torch

from deepcache_ext.plan.noise import adds_noise_by_name, replaces_noise_by_name, sigma_at


@pytest.mark.parametrize(
    "name",
    [
        "Euler a",
        "DPM++ 2S a Karras",
        "DPM++ 3M SDE",
        "LCM",
        "Restart",
        "TCD",
        "Euler Ancestral CFG++",  # reForge's spelling
        "RES Multistep Ancestral",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
        "ScoreSdeVeScheduler",
        "SASolverScheduler",
        "CosineDPMSolverMultistepScheduler",
        "RePaintScheduler",
    ],
)
def test_samplers_that_add_noise(name):
    assert adds_noise_by_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "Euler",
        "Heun",
        "DPM++ 2M",
        "DPM fast",
        "UniPC",
        "PLMS",
        "LMS",
        "DDIM",
        "DEISMultistepScheduler",
        "PNDMScheduler",
    ],
)
def test_samplers_that_add_none(name):
    assert not adds_noise_by_name(name)


@pytest.mark.parametrize(
    "name",
    ["LCM", "LCMScheduler", "TCDScheduler", "TDDScheduler", "UFOGenScheduler", "CMStochasticIterativeScheduler"],
)
def test_samplers_that_replace_all_noise(name):
    assert replaces_noise_by_name(name) and adds_noise_by_name(name)


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE", "DDPMScheduler", "SASolverScheduler", "VDMScheduler"])
def test_samplers_that_add_some(name):
    assert not replaces_noise_by_name(name)


def test_the_sigma_of_a_timestep():
    alphas = torch.tensor([1.0, 0.8, 0.5, 0.0])
    assert sigma_at(alphas, 1) == pytest.approx(0.5)
    assert sigma_at(alphas, 1.8) == pytest.approx(1.0)  # the nearest one's
    assert [sigma_at(alphas, t) for t in (0, 3, -1, 4, math.nan)] == [None] * 5
    assert sigma_at(None, 1) is None and sigma_at([0.5, 0.5], 1) is None
