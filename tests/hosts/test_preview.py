"""The plan that the page shows before a run is the plan of the run."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from deepcache_ext.interface.asked import passes_of
from deepcache_ext.plan.preview import PassAhead, planned, speed_up_of
from deepcache_ext.settings.fields import SettingsError
from deepcache_ext.settings.settings import Settings, parse
from demo.webui.boot import boot
from tests.hosts.test_a1111 import HIRES, host_object, make

PRESET = [True, "Balanced"]
SAMPLERS = [
    "Euler",
    "Euler a",
    "DPM++ 2M",
    "DPM++ 2M SDE",
    "DPM++ 3M SDE",
    "LMS",
    "UniPC",
    "PLMS",
    "DDIM",
    "LCM",
    "Heun",
    "DPM++ SDE",
    "DPM2",
    "Restart",
    "DPM fast",
]
FEW = ["Euler", "DPM++ 2M", "UniPC", "PLMS", "DDIM", "Heun"]


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA") as running:
        yield running


def foresight_of(host):
    """The module as the running host has loaded it."""
    assert host.unet is not None
    return sys.modules["deepcache_ext.hosts.a1111.preview"]


def compared(host, **request):
    """For each pass: what was foreseen of its request, and what the run then planned."""
    module = foresight_of(host)
    kind = request.pop("kind", "txt2img")
    asked = {key: value for key, value in request.items() if key not in ("init_images", "hr_upscaler")}
    wanted = module.Request(**{"steps": 14, **asked}, img2img=kind == "img2img")
    settings = parse(PRESET)
    foreseen = [planned(settings, ahead) for ahead in module.passes_ahead(wanted)]
    make(host, *PRESET, kind=kind, **{"steps": 14, **request})
    ran = [outcome.planned for outcome in host_object(host).last_run.passes]
    return foreseen, ran


def told(one):
    """What is said of a pass; what it keeps is foreseen alone, and counted in the run."""
    return {name: value for name, value in one.as_json().items() if name != "kept_bytes"}


@pytest.mark.sample
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 2, "width": 128},
        {**HIRES, "hr_second_pass_steps": 13},
        {**HIRES, "hr_resize_x": 128, "hr_resize_y": 192},
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"cache_interval": 2, "cache_branch_id": 4},
        {"preset": "Fast"},
        {"cache_interval": 9},
        {"cache_interval": 5, "estimator": "forecast", "deeper_branch_id": 11},
        {"cache_interval": 1},
        {"full_evaluations": "0-30", "deeper_branch_id": 5},
        {"cache_interval": 5, "estimator": "forecast", "end": 0.3},
        {"cache_interval": 30, "deeper_branch_id": 5, "start": 0.2},
    ],
    ids=str,
)
def test_what_is_kept_is_foreseen(host, settings, changes):
    """To the byte, where prompts are of one length: by the report of the run itself."""
    wanted = {"width": 64, "height": 64, "steps": 16, "sampler_name": "Euler", **changes}
    asked = {key: value for key, value in wanted.items() if key != "hr_upscaler"}
    ahead = foresight_of(host).passes_ahead(foresight_of(host).Request(**asked))
    foreseen = [planned(parse([{"enabled": True, **settings}]), one).kept_bytes() for one in ahead]
    make(host, {"enabled": True, **settings}, **wanted)
    assert foreseen == [outcome.report.kept_bytes for outcome in host_object(host).last_run.passes]


@pytest.mark.sample("Euler", "DDIM", "Heun")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_plan_shown_is_the_plan_run(host, sampler):
    foreseen, ran = compared(host, sampler_name=sampler, **HIRES, hr_second_pass_steps=13)
    assert [one.hires for one in ran] == [False, True]
    assert [one.branches for one in foreseen] == [one.branches for one in ran]
    assert list(map(told, foreseen)) == list(map(told, ran))
    assert "cached" in foreseen[0].kinds


@pytest.mark.sample("Euler", "DDIM")
@pytest.mark.parametrize("sampler", FEW)
def test_the_plan_of_img2img(host, sampler):
    picture = Image.new("RGB", (64, 64), (90, 140, 200))
    foreseen, ran = compared(
        host, kind="img2img", sampler_name=sampler, steps=20, init_images=[picture], denoising_strength=0.7
    )
    assert list(map(told, foreseen)) == list(map(told, ran))


@pytest.mark.sample("Karras")
@pytest.mark.parametrize("scheduler", ["Karras", "Exponential", "Uniform"])
def test_the_plan_follows_the_schedule(host, scheduler):
    foreseen, ran = compared(host, sampler_name="DPM++ 2M", scheduler=scheduler, steps=30)
    assert [one.branches for one in foreseen] == [one.branches for one in ran]


@pytest.mark.slow
def test_a_sampler_by_its_older_name(host):
    foreseen, ran = compared(host, sampler_name="DPM++ 2M Exponential", steps=30)
    assert [one.branches for one in foreseen] == [one.branches for one in ran]
    assert foreseen != compared(host, sampler_name="DPM++ 2M Karras", steps=30)[0]


def test_what_no_host_has(host):
    module = foresight_of(host)
    with pytest.raises(ValueError, match="no sampler 'Nonsense'"):
        module.passes_ahead(module.Request(20, "Nonsense"))


def test_without_a_model_only_the_number_is_known(host, monkeypatch):
    module = foresight_of(host)
    monkeypatch.setattr(module, "loaded_model", lambda: None)
    (ahead,) = module.passes_ahead(module.Request(20, "Heun"))
    assert (ahead.total, ahead.sigmas, ahead.depth, ahead.early) == (40, None, 0, True)
    early = PassAhead(False, 40, early=True)
    assert passes_of(Settings(strategy="weighted"), {}, lambda _: [early]) == []
    assert len(passes_of(Settings(strategy="uniform"), {}, lambda _: [early])) == 1
    ahead = PassAhead(False, 40)
    found = planned(parse([{"enabled": True, "cache_interval": 4}]), ahead)
    assert found.kinds.count("full") == 10 and found.speed_up() is None and speed_up_of([found]) is None


def test_a_pass_that_is_not_covered_is_whole():
    found = planned(
        parse([{"enabled": True, "cache_interval": 4, "passes": "hires only"}]), PassAhead(False, 20, None, 12)
    )
    assert set(found.kinds) == {"full"} and found.fraction == "20 of 20 full" and found.speed_up() == 1.0
    hires = planned(
        parse([{"enabled": True, "cache_interval": 4, "passes": "hires only"}]), PassAhead(True, 20, None, 12)
    )
    assert hires.fraction == "5 of 20 full"
    both = speed_up_of([found, hires])
    assert 1 < both < hires.speed_up()
    json.dumps([found.as_json(), hires.as_json()])


def test_full_evaluations_that_cannot_be_read():
    with pytest.raises(SettingsError):
        planned(Settings(enabled=True, strategy="custom", full_evaluations="x"), PassAhead(False, 20))
