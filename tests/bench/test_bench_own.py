"""The benchmarks with a model of the user's and with a running WebUI. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from bench import own_model
from bench.__main__ import main
from demo.webui.boot import boot
from tests import diffusers_pipelines as pipelines

SAVED = {
    "sd1.5": "StableDiffusion",
    "sd2.1": "StableDiffusion",
    "sdxl": "StableDiffusionXL",
    "svd": "StableVideoDiffusion",
    "sd-inpaint": "StableDiffusionInpaint",
    "sdxl-inpaint": "StableDiffusionXLInpaint",
    "sd-img2img": "StableDiffusionImg2Img",
}
SMALL = ["--height", "16", "--width", "16", "--repeats", "1", "--device", "cpu"]


def save(kind: str, folder: Path) -> None:
    pipe = pipelines.build(SAVED[kind])
    if kind == "svd":  # it scales its first frame to what CLIP's real encoder sees
        config = CLIPVisionConfig.from_dict(pipe.image_encoder.config.to_dict() | {"image_size": 224, "patch_size": 56})
        pipe.register_modules(image_encoder=pipelines.made(CLIPVisionModelWithProjection, config))
    pipe.save_pretrained(folder)


def figures(file: Path) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in json.loads(file.read_text())["arms"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", own_model.MODEL_TYPES)
def test_own_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(kind, tmp_path / "model")
    file, steps = tmp_path / "figures.json", 16
    frames = ["--frames", "2"] if kind == "svd" else []
    given = ["--model", str(tmp_path / "model"), "--model_type", kind, "--steps", str(steps), "--json", str(file)]
    assert main([*given, *SMALL, *frames]) == 0
    found = figures(file)
    assert [name for name in found if "helper" not in name] == [
        "uncached",
        "ours, Quality",
        "ours, Balanced",
        "ours, Fast",
        "ours, interval 3, branch 0",
        "ours, interval 5, branch 0",
    ]
    for name, arm in found.items():
        assert len(arm["seconds"]) == 1, arm["remark"]
        assert (arm["psnr"] is None) == (name == "uncached")
    for interval in (3, 5):
        ours, helpers = (found[f"{who}, interval {interval}, branch 0"] for who in ("ours", "helper"))
        assert ours["psnr"] == helpers["psnr"]
        evaluations = int(ours["remark"].split()[2])
        assert ours["remark"] == f"{-(-evaluations // interval)} of {evaluations} full"
    assert found["ours, interval 3, branch 0"]["psnr"] != found["ours, interval 5, branch 0"]["psnr"]
    text = capsys.readouterr().out
    assert all(name in text for name in found)


def test_a_pipeline_that_the_helper_cannot_run_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, pipe: Any = None) -> None:
        raise IndexError("no such timestep")

    monkeypatch.setattr(own_model.PublishedHelper, "enable", fail)
    pipelines.build("StableDiffusion").save_pretrained(tmp_path / "model")
    file = tmp_path / "figures.json"
    given = ["--model", str(tmp_path / "model"), "--model_type", "sd1.5", "--steps", "3", "--json", str(file)]
    assert main([*given, *SMALL]) == 0
    found = figures(file)
    assert found["helper, interval 3, branch 0"]["remark"] == "failed: IndexError: no such timestep"
    assert found["ours, interval 3, branch 0"]["psnr"] > 0


def test_own_pictures_are_used(tmp_path: Path) -> None:
    pipe = pipelines.shared("StableDiffusionInpaint")
    for name, mode in (("image.png", "RGB"), ("mask.png", "L")):
        Image.new(mode, (40, 24), 255 if mode == "L" else (9, 8, 7)).save(tmp_path / name)
    given = ["--model", str(tmp_path), "--model_type", "sd-inpaint", *SMALL]
    own = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    found = own_model.inputs(own_model.parse([*given, *own]), pipe)
    assert found["image"].size == found["mask_image"].size == (16, 16)
    assert found["image"].getpixel((3, 3)) == (9, 8, 7)
    assert np.asarray(found["mask_image"]).min() == 255
    drawn = own_model.inputs(own_model.parse(given), pipe)
    assert sorted(set(np.asarray(drawn["mask_image"]).flat)) == [0, 255]


@pytest.mark.slow
def test_running_webui(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    with boot(model="tinyA") as host:
        given = ["--steps", "14", "--width", "64", "--height", "64", "--repeats", "2", "--json", str(file)]
        assert main(["--url", host.serve() + "/", *given]) == 0
    found = figures(file)
    assert [arm["said"] for arm in found.values()] == [
        "",
        "8 of 14 full",
        "6 of 14 full",
        "4 of 14 full",
    ]
    assert found["uncached"]["psnr"] is None
    assert all(0 < found[name]["psnr"] < 80 for name in list(found)[1:])
    assert all(len(arm["seconds"]) == 2 for arm in found.values())
    assert "Balanced" in capsys.readouterr().out


def test_a_webui_without_the_extension(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with boot(extension_dir=None, model="tinyA") as host, pytest.raises(RuntimeError, match="the host answered 4"):
        main([f"--url={host.serve()}", "--steps", "2", "--width", "64", "--height", "64", "--repeats", "1"])
