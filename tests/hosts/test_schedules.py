"""The noise levels that a plan goes by are those that the run asks at; where that is not known, the picture says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from demo.webui.boot import boot
from tests import neighbours
from tests.hosts.test_a1111 import HIRES, host_object, make
from tests.hosts.test_preview import compared, told
from tests.pictures import infotext

PRESET = [True, "Balanced"]
STEPS = 20


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA") as running:
        yield running


def kl_optimal(count, low, high):
    """A1111's schedule of that name: its last level is not 0."""
    shares = torch.arange(count + 1) / count
    return torch.tan(shares * math.atan(low) + (1 - shares) * math.atan(high))


@torch.no_grad()
def euler_dy(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0, s_tmin=0.0, s_tmax=1e9):
    """As the extension of that name: it raises the level at every step, and asks about a smaller picture in some."""
    ones = x.new_ones(len(x))
    for i in range(len(sigmas) - 1):
        raised = sigmas[i] * 2**0.5
        x = x - torch.randn_like(x) * (raised**2 - sigmas[i] ** 2) ** 0.5
        denoised = model(x, raised * ones, **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": raised, "denoised": denoised})
        x = x + (x - denoised) / raised * (sigmas[i + 1] - raised)
        if sigmas[i + 1] > 0 and i // 2 == 1:
            small = x[:, :, ::2, ::2]
            given = {**extra_args, "image_cond": extra_args["image_cond"][..., : small.shape[2], : small.shape[3]]}
            x[:, :, ::2, ::2] = small + 0.1 * (model(small, raised * ones, **given) - small)
    return x


def run(host, **request):
    """What was planned of a run's only pass, the levels at which it asked, and the text under its picture."""
    asked = []

    def listen(params):
        sigma = float(params.sigma[0])
        if type(params.denoiser).__name__ == "CFGDenoiserTimesteps":
            kept = host.module("shared").sd_model.alphas_cumprod[round(sigma)]
            sigma = float(((1 - kept) / kept) ** 0.5)
        asked.append(sigma)

    with neighbours.callback(host, "cfg_denoiser", listen):
        done = make(host, *PRESET, **{"steps": STEPS, **request})
    (one,) = host_object(host).last_run.passes
    return one.planned, asked, infotext(host, done)


def known(planned, asked, text, twice=False):
    """Every evaluation was planned at its own level; of steps of two, the first ones."""
    sigmas = planned.ahead.sigmas
    assert sigmas is not None and len(sigmas) == len(asked) == planned.ahead.evaluations
    step = 2 if twice else 1
    np.testing.assert_allclose(sigmas[::step], asked[::step], rtol=2e-3)
    assert "DeepCache note" not in text
    return True


@pytest.fixture
def options(host):
    """The host's options, as they were when the test ends."""
    opts = host.module("shared").opts
    before = dict(opts.data)
    yield opts
    opts.data.clear()
    opts.data.update(before)


@pytest.mark.sample("logSNR-txt2img", "time_uniform-img2img")
@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
@pytest.mark.parametrize("skip", ["time_uniform", "logSNR"])
def test_unipc(host, options, skip, kind):
    options.uni_pc_skip_type = skip
    begin = {"init_images": [Image.new("RGB", (64, 64), (90, 140, 200))], "denoising_strength": 0.7}
    changes = begin if kind == "img2img" else {}
    assert known(*run(host, kind=kind, sampler_name="UniPC", **changes))
    foreseen, ran = compared(host, kind=kind, sampler_name="UniPC", steps=STEPS, **changes)
    assert list(map(told, foreseen)) == list(map(told, ran))


@pytest.mark.sample("Euler a")
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Euler a"])
def test_a_schedule_that_does_not_end_at_zero(host, monkeypatch, sampler):
    sampling = host.module("sd_samplers_kdiffusion").sampling
    monkeypatch.setattr(sampling, "get_sigmas_kl optimal", kl_optimal, raising=False)
    assert known(*run(host, sampler_name=sampler, scheduler="KL Optimal"))
    foreseen, ran = compared(host, sampler_name=sampler, scheduler="KL Optimal", steps=STEPS, **HIRES)
    assert list(map(told, foreseen)) == list(map(told, ran))


@pytest.mark.sample("3.0-Heun")
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM2"])
@pytest.mark.parametrize("churn", [0.5, 3.0, 40.0])
def test_churn_is_known(host, options, sampler, churn):
    options.s_churn, options.s_tmin, options.s_tmax = churn, 0.3, 12.0
    assert known(*run(host, sampler_name=sampler), twice=sampler != "Euler")
    foreseen, ran = compared(host, sampler_name=sampler, steps=STEPS)
    assert list(map(told, foreseen)) == list(map(told, ran))


@pytest.mark.parametrize("changes", [{}, HIRES], ids=["one pass", "hires"])
def test_where_levels_cannot_be_known_the_picture_says_so(host, monkeypatch, changes):
    samplers = host.module("sd_samplers")
    config = samplers.find_sampler_config("Euler")
    constructor = config._replace(name="Euler Dy", constructor=lambda: type(config.constructor())(euler_dy, denoiser))
    denoiser = host.module("sd_samplers_kdiffusion").CFGDenoiserKDiffusion
    plain = samplers.find_sampler_config
    found = lambda name: constructor if name == "Euler Dy" else plain(name)  # noqa: E731
    monkeypatch.setattr(samplers, "find_sampler_config", found)
    done = make(host, *PRESET, steps=STEPS, sampler_name="Euler Dy", **changes)
    for one in host_object(host).last_run.passes:
        assert one.planned.ahead.sigmas is None and "spaced evenly" in one.planned.remark
        assert one.planned.speed_up() <= 2.0 + 1e-9
        # What comes unannounced is no faster.
        report = one.report
        assert report.full_evaluations * len(one.planned.kinds) >= report.evaluations * one.planned.kinds.count("full")
    text = infotext(host, done)
    assert text["DeepCache note"] == one.planned.remark
    assert "DeepCache note" not in infotext(host, make(host, *PRESET, steps=STEPS, sampler_name="Euler"))
