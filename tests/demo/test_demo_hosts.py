"""The extension in each of the hosts that the demo plays: cached and uncached, infotext, API, report."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from demo.libraries import begin_again_with_those_of
from demo.webui.boot import Host, boot
from demo.webui.hosts import HOSTS
from tests.embedded import deepest
from tests.pictures import same

WISHES: dict[str, Any] = {
    "prompt": "a red car",
    "steps": 14,
    "width": 64,
    "height": 64,
    "sampler_name": "Euler",
    "seed": 1,
}
SHADOWED = {"input_blocks", "middle_block", "output_blocks", "down_blocks", "mid_block", "up_blocks"}


@pytest.fixture(scope="module", params=sorted(set(HOSTS) - {"a1111"}))
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with boot(model="tinyA", host=request.param) as running:
        running.serve()
        # As on the settings page: the hooks that look what a cached call runs are harmless.
        assert running.module("shared").opts.set("deepcache_trusted", __name__)
        yield running


@pytest.fixture(scope="module")
def plain(host: Host) -> Any:
    """The picture of a host that has no extension at all would be the same: see the first test."""
    return host.txt2img(**WISHES)


def cached(*args: Any, **settings: Any) -> dict[str, Any]:
    given = list(args) or [{"enabled": True, **settings}]
    return {**WISHES, "alwayson_scripts": {"DeepCache": {"args": given}}}


def assert_nothing_left(host: Host) -> None:
    assert not SHADOWED & set(vars(host.unet))
    assert not host.unet._forward_hooks and not host.unet._forward_pre_hooks


def test_it_speeds_up_and_leaves_no_trace(host: Host, plain: Any) -> None:
    seen: list[str] = []
    layer = [module for module in host.unet.modules() if not list(module.children())][-1]
    handles = [
        deepest(host).register_forward_hook(lambda *_: seen.append("deep")),
        layer.register_forward_hook(lambda *_: seen.append("call")),
    ]
    made = host.txt2img(**cached(cache_interval=3, estimator="copy"))
    for handle in handles:
        handle.remove()
    assert "DeepCache: 5 of 14 full" in made.infotexts[0]
    assert (seen.count("deep"), seen.count("call")) == (5, 14)
    assert not same(made, plain)
    assert_nothing_left(host)
    assert same(host.txt2img(**WISHES), plain)
    assert "DeepCache" not in plain.infotexts[0]


def test_interval_1_is_bit_identical(host: Host, plain: Any) -> None:
    made = host.txt2img(**cached(cache_interval=1))
    assert "DeepCache: 14 of 14 full" in made.infotexts[0]
    assert same(made, plain)


def test_an_infotext_makes_the_same_picture_again(host: Host) -> None:
    made = host.txt2img(**cached(cache_interval=4, cache_branch_id=1, estimator="copy", end=0.9))
    utils, runner = host.module("infotext_utils"), host.module("scripts").scripts_txt2img
    read = utils.parse_generation_parameters(made.infotexts[0])
    updates = utils.updates_for(runner.infotext_fields, read)
    fields = {control: update for (control, _), update in zip(runner.infotext_fields, updates, strict=True)}
    script = next(one for one in runner.alwayson_scripts if one.title() == "DeepCache")
    # The last control is none of the settings: the word of a press of Measure.
    values = [fields.get(control, {}).get("value", control.value) for control in script.controls]
    again = host.txt2img(**cached(*values))
    assert same(again, made) and again.infotexts == made.infotexts
    assert made.infotexts[0].count("DeepCache interval: 4") == 1 and "DeepCache branch: 1" in made.infotexts[0]


def test_a_hires_pass_is_a_pass_of_its_own(host: Host) -> None:
    hires = {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_second_pass_steps": 8,
        "hr_upscaler": "Latent",
        "hr_cfg": 7,
        "denoising_strength": 0.7,
    }
    made = host.txt2img(**cached(cache_interval=2), **hires)
    assert made.images[0].size == (96, 96)
    assert 'DeepCache: "7 of 14 full, hires 4 of 8 full"' in made.infotexts[0]
    assert same(host.txt2img(**cached(cache_interval=1), **hires), host.txt2img(**WISHES, **hires))
    assert_nothing_left(host)


def test_image_to_image(host: Host) -> None:
    plainly = {"init_images": [Image.new("RGB", (64, 64), (200, 80, 40))], "denoising_strength": 0.8}
    masked = {**plainly, "mask": Image.linear_gradient("L").resize((64, 64))}
    # The embedded SD.Next does not paint in masks.
    for request in (plainly,) if host.name == "sdnext" else (plainly, masked):
        whole = host.img2img(**WISHES, **request)
        made = host.img2img(**cached(cache_interval=2), **request)
        assert not same(made, whole) and "full" in made.infotexts[0]
        assert same(host.img2img(**cached(cache_interval=1), **request), whole)


def test_over_http_with_a_report(host: Host, plain: Any) -> None:
    with httpx.Client(trust_env=False, timeout=60, base_url=host.url) as client:
        answer = client.post("/sdapi/v1/txt2img", json=cached(cache_interval=2)).json()
        report = client.get("/deepcache/v1/report").json()["last_run"]
        planned = client.post("/deepcache/v1/plan", json=cached(cache_interval=2)).json()
    picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    infotext = json.loads(answer["info"])["infotexts"][0]
    assert picture.info["parameters"] == infotext and "DeepCache: 7 of 14 full" in infotext
    assert not np.array_equal(np.asarray(picture), np.asarray(plain.images[0]))
    (only,) = report["passes"]
    assert only["evaluations"] == 14 and only["full_evaluations"] == 7
    assert planned["enabled"]


def test_after_a_crash_and_an_interrupt(host: Host, plain: Any) -> None:
    seen = 0

    def stop(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            host.interrupt()

    def crash(*_: Any) -> None:
        raise RuntimeError("provoked")

    handle = deepest(host).register_forward_hook(stop)
    host.txt2img(**cached(cache_interval=2))
    handle.remove()
    assert_nothing_left(host)
    handle = deepest(host).register_forward_hook(crash)
    # SD.Next shows what there is.
    crashes = contextlib.nullcontext() if host.name == "sdnext" else pytest.raises(RuntimeError, match="provoked")
    with crashes:
        host.txt2img(**cached(cache_interval=2))
    handle.remove()
    assert same(host.txt2img(**WISHES), plain)
    assert_nothing_left(host)


@pytest.mark.sample("forge")
@pytest.mark.parametrize("name", sorted(set(HOSTS) - {"a1111"}))
def test_the_demo_once_with_the_hosts_own_gradio(name: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "DEEPCACHE_DEMO"))}
    ran = subprocess.run(
        [sys.executable, "-m", "demo", "--host", name, "--once", "--steps", "6", "--interval", "2", "--out", sheet],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{name} {HOSTS[name].version}, Gradio {HOSTS[name].pins['gradio']}" in ran.stdout
    assert "speed-up:" in ran.stdout and "full: 3/6" in ran.stdout
    assert sheet.exists()


def test_a_missing_gradio_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(SystemExit, match="make setup"):
        begin_again_with_those_of("forge")
