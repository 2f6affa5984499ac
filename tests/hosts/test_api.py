"""The extension through the embedded host's HTTP API: good and bad input."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import requests
from PIL import Image

from demo.webui.boot import boot

REQUEST = {"prompt": "a cat", "steps": 6, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}


@pytest.fixture(scope="module")
def url():
    with boot(model="tinyA") as host:
        yield host.serve()


def picture(answer):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))


def post(url, *args, kind="txt2img", **changes):
    request = {**REQUEST, **changes}
    if args:
        request["alwayson_scripts"] = {"deepcache": {"args": list(args)}}
    response = requests.post(f"{url}/sdapi/v1/{kind}", json=request, timeout=120)
    assert response.status_code == 200, response.text
    answer = response.json()
    return picture(answer), json.loads(answer["info"])


@pytest.mark.parametrize(
    ("args", "full"),
    [
        ([{"enabled": True, "cache_interval": 3, "cache_branch_id": 0}], "2 of 6 full"),
        ([True, "Custom", 2, 1, "copy", 0, 1, "both", 0, -1, "uniform"], "3 of 6 full"),
        ([True, "Custom", 2, 1, "copy", 0.5, 1, "both", 0, -1, "uniform"], "5 of 6 full"),
        ([{"enabled": True, "full_evaluations": "0, 4"}], "2 of 6 full"),
        ([{"enabled": True, "strategy": "non-uniform", "cache_interval": 2}], "3 of 6 full"),
    ],
)
def test_good_input(url, args, full):
    plain, info = post(url)
    assert "DeepCache" not in info["infotexts"][0]
    cached, info = post(url, *args)
    assert info["extra_generation_params"]["DeepCache"] == full
    assert f"DeepCache: {full}" in info["infotexts"][0]
    assert not np.array_equal(plain, cached)


@pytest.mark.parametrize(
    ("args", "full"),
    # For about 1.6, 2.0 and 2.6 times the speed: 14 / (n + 0.673 m + (14 - n - m) 0.0787) with m medium ones
    [
        ([True], (8, 0)),
        ([{"enabled": True}], (8, 0)),
        ([True, "Balanced"], (6, 0)),
        ([{"enabled": True, "preset": "Fast"}], (4, 0)),
        ([{"enabled": True, "preset": "Fast", "deeper_branch_id": 5}], (3, 2)),
    ],
)
def test_presets(url, args, full):
    whole, medium = full
    _, info = post(url, *args, steps=14)
    expected = f"{whole} of 14 full" + (f" + {medium} medium" if medium else "")
    assert info["extra_generation_params"]["DeepCache"] == expected


@pytest.mark.parametrize("args", [[], [False], [{"enabled": False}], [{}]])
def test_off(url, args):
    plain, _ = post(url)
    same, info = post(url, *args)
    assert np.array_equal(plain, same)
    assert "DeepCache" not in info["infotexts"][0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([{"enabled": True, "cache_interval": 0}], "cache_interval = 0 is not allowed: a whole number from 1 to 50"),
        ([{"enabled": True, "speed": "high"}], "speed = 'high' is not allowed: the known settings are enabled, preset"),
        ([True, "Custom", None], "cache_interval = None"),
        (["yes"], "enabled = 'yes' is not allowed: true or false"),
        ([[True]], "enabled = [True]"),
    ],
)
def test_bad_input_makes_the_picture_and_says_why(url, args, words):
    plain, _ = post(url)
    same, info = post(url, *args)
    assert np.array_equal(plain, same)
    assert words in info["extra_generation_params"]["DeepCache error"]
    assert "DeepCache error" in info["infotexts"][0]


def test_img2img(url):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 140, 200)).save(buffer, "PNG")
    start = base64.b64encode(buffer.getvalue()).decode()
    _, info = post(url, {"enabled": True}, kind="img2img", init_images=[start], denoising_strength=1.0)
    assert info["extra_generation_params"]["DeepCache"].endswith("full")


def test_script_info(url):
    scripts = requests.get(f"{url}/sdapi/v1/script-info", timeout=30).json()
    ours = [s for s in scripts if s["name"] == "deepcache"]
    assert [s["is_img2img"] for s in ours] == [False, True] and all(s["is_alwayson"] for s in ours)
    args = ours[0]["args"]
    assert [a["label"] for a in args] == [
        "DeepCache",
        "Preset",
        "Interval",
        "Branch",
        "Estimator",
        "Start",
        "End",
        "Passes",
        "Hires interval",
        "Hires branch",
        "Strategy",
        "Speed-up",
        "Hires speed-up",
        "Full steps",
        "Center",
        "Power",
        "Medium branch",
        "Measure request",
    ]
    assert args[1]["choices"] == ["Quality", "Balanced", "Fast", "Custom"]
    assert (args[2]["minimum"], args[2]["maximum"], args[2]["value"]) == (1, 50, 3)


def test_the_kill_switch():
    with boot(model="tinyA", arguments=["--deepcache-disable", "--deepcache-log-level", "LOUD"]) as host:
        wishes = {"alwayson_scripts": {"deepcache": {"args": [{"enabled": True}]}}}
        done = host.txt2img(**REQUEST, **wishes)
        assert "DeepCache" not in done.infotexts[0]
        plain = host.txt2img(**REQUEST)
        assert np.array_equal(np.asarray(done.images[0]), np.asarray(plain.images[0]))


def test_the_installer_says_nothing_here_and_warns_of_an_old_torch(monkeypatch, capsys):
    import importlib.metadata
    import runpy

    runpy.run_path("install.py")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.13.1+cu117")
    runpy.run_path("install.py")
    assert capsys.readouterr().out == ("DeepCache needs torch 2.0 or newer and found 1.13.1+cu117: it will not work.\n")
