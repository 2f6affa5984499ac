"""The extension in the embedded Forge: what stands above the UNet's calls there, and what its text says when.

What it caches is proved by replays (test_replay_forge.py).
"""

from __future__ import annotations

import pytest

from deepcache_ext.report.pass_report import Reason
from demo.webui.boot import boot
from tests import neighbours
from tests.driver import TRUSTED
from tests.neighbours import forge
from tests.neighbours.__main__ import cases, outcome
from tests.pictures import infotext, same

REQUEST = {"prompt": "a cat", "steps": 9, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
SETTINGS = {"enabled": True, "preset": "Custom", "cache_interval": 3, "cache_branch_id": 1, "estimator": "copy"}

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA", host="forge") as running:
        running.txt2img(**REQUEST)  # the first generation loads the checkpoint
        adapter(running).trusted = TRUSTED
        yield running


def adapter(host):
    return next(one.module.host for one in host.module("scripts").scripts_data if one.path.endswith("deepcache.py"))


def make(host, settings=SETTINGS, **changes):
    scripts = {"alwayson_scripts": {"DeepCache": {"args": [settings]}}} if settings else {}
    return host.txt2img(**{**REQUEST, **changes, **scripts})


# LoRAs that are added on the fly -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moves", [False, True])
def test_a_lora_whose_strength_moves_in_mid_run(host, moves):
    """As Forge Neo's schedules and Regional Prompter move it: one evaluation more is full, and the picture's own is the
    same as with the same evaluations full by hand."""

    def move(params):
        if moves and params.sampling_step == 4:
            lora.move(0.2)

    with forge.online_lora(host, 0.8) as lora, neighbours.callback(host, "cfg_denoiser", move):
        done = make(host)
    with forge.online_lora(host, 0.8) as lora, neighbours.callback(host, "cfg_denoiser", move):
        typed = {"strategy": "custom", "full_evaluations": "0,3,5,6" if moves else "0,3,6"}
        by_hand = make(host, {**SETTINGS, **typed})
    report = adapter(host).last_run.passes[0].report
    assert report.full_evaluations == (4 if moves else 3)
    assert same(done, by_hand) and not same(done, make(host))
    assert infotext(host, done)["DeepCache"] == ("4 of 9 full" if moves else "3 of 9 full")


# Noise levels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "UniPC"])
def test_levels_are_those_of_the_run(host, sampler):
    """Samplers of timesteps hand noise levels over here."""
    asked = []
    with neighbours.callback(host, "cfg_denoiser", lambda params: asked.append(float(params.sigma[0]))):
        make(host, {"enabled": True, "preset": "Balanced"}, steps=20, sampler_name=sampler)
    (one,) = adapter(host).last_run.passes
    assert one.planned.ahead.sigmas == pytest.approx(asked, rel=2e-3)
    assert not one.report.misses and one.report.fraction == one.planned.fraction


# What is told, and when ----------------------------------------------------------------------------------------------


@pytest.fixture
def written(host, monkeypatch):
    """What stands in p's text of ours whenever sampling has ended: ersatzForge writes the text under a picture there,
    before any hook that ends a pass."""
    kind, texts = host.module("processing").StableDiffusionProcessingTxt2Img, []
    sample = kind.sample

    def sampled(p, *args):
        result = sample(p, *args)
        texts.append({k: str(v) for k, v in p.extra_generation_params.items() if k.startswith("DeepCache")})
        return result

    monkeypatch.setattr(kind, "sample", sampled)
    return texts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.7, "hr_upscaler": "Latent"},
        {"n_iter": 2},
        {"sampler_name": "DDIM"},
        {"sampler_name": "Heun"},
    ],
    ids=str,
)
def test_the_text_is_known_when_sampling_has_ended(host, written, changes):
    done = make(host, **changes)
    for index, text in enumerate(written):
        later = infotext(host, done, index)
        assert text == {k: v for k, v in later.items() if k.startswith("DeepCache")}
        assert " full" in text["DeepCache"] and text["DeepCache estimator"] == "copy"
    assert len(written) == changes.get("n_iter", 1)


def test_the_text_of_an_interrupted_run(host, written):
    def interrupt(params):
        if params.sampling_step == 4:
            host.module("shared").state.interrupt()

    with neighbours.callback(host, "cfg_after_cfg", interrupt):
        make(host)
    assert [text["DeepCache"] for text in written] == ["2 of 6 full"]


def test_the_text_of_what_cannot_be_cached(host, written):
    with forge.spectrum(host):
        make(host)
    assert written[0]["DeepCache"].startswith("off (another extension caches this UNet already")


# Above the UNet's calls ----------------------------------------------------------------------------------------------


def test_spectrum_is_refused_by_name(host):
    """At the first evaluation: none of ours was cached when it is seen to be there, and its picture is its own."""
    with forge.spectrum(host):
        alone = make(host, None)
    with forge.spectrum(host):
        done = make(host)
    (only,) = adapter(host).last_run.passes
    assert only.report.cached_calls == only.report.evaluations == 0
    assert infotext(host, done)["DeepCache"] == (
        "off (another extension caches this UNet already (spectrum_unet_wrapper); use one of the two)"
    )
    assert same(done, alone) and not same(done, make(host))


def test_where_ours_skips_nothing_it_is_not_called_full(host):
    """Nor is a compiled UNet called anything but full there."""
    one = {**SETTINGS, "cache_interval": 1}
    with forge.spectrum(host):
        assert infotext(host, make(host, one))["DeepCache"].startswith("off (another extension caches this UNet")
    with forge.forecaster_without_a_name(host):
        assert Reason.NO_CALL.value in infotext(host, make(host, one))["DeepCache"]
    with forge.compiled(host):
        assert infotext(host, make(host, one))["DeepCache"] == "9 of 9 full"
    assert infotext(host, make(host, one))["DeepCache"] == "9 of 9 full"


def test_a_forecaster_that_nobody_knows_is_noticed(host):
    with forge.forecaster_without_a_name(host):
        done = make(host)
    assert Reason.NO_CALL.value in infotext(host, done)["DeepCache"]


def test_a_unet_that_is_compiled_for_each_call(host):
    """No cache is blamed for calls that no hook of ours is asked about."""
    with forge.compiled(host):
        done = make(host)
    assert infotext(host, done)["DeepCache"] == "9 of 9 full (the UNet is compiled)"
    assert same(done, make(host, None)) and infotext(host, make(host))["DeepCache"] == "3 of 9 full"


def test_the_table_of_neighbours(host):
    """What `python -m tests.neighbours` prints of this host."""
    rows = {who: outcome(host, *rest) for who, *rest in cases("forge")}
    adapter(host).trusted = TRUSTED
    assert rows["nobody"] == rows["MultiDiffusion"] == rows["LoRA on the fly"] == ("6", "3", "")
    assert rows["a hook on the middle block"][:2] == rows["blocks that count their calls"][:2] == ("0", "9")
    assert "watches layers that a cached call would skip" in rows["a hook on the middle block"][2]
    assert rows["Spectrum"][:2] == ("0", "0") and "caches this UNet already" in rows["Spectrum"][2]


def test_a_wrapper_that_skips_nothing_may_stay(host):
    with forge.forge_tiles(host):
        done, off = make(host, width=128), make(host, None, width=128)
    assert infotext(host, done)["DeepCache"] == "3 of 9 full" and not same(done, off)
