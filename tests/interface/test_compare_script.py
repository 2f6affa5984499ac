"""The compare script in the embedded WebUI, through the API's `script_name`."""

import base64
import csv
import io
import json

import numpy as np
import pytest
import requests
from PIL import Image

from deepcache_ext.interface.compare import MARGIN
from demo.webui.boot import boot

REQUEST = {
    "prompt": "a cat <b>",
    "steps": 14,
    "seed": 7,
    "width": 64,
    "height": 64,
    "sampler_name": "Euler",
    "script_name": "DeepCache: compare",
}


@pytest.fixture(scope="module")
def host():
    with boot(model="tinyA") as host:
        yield host


@pytest.fixture(scope="module")
def url(host):
    return host.serve()


def post(url, tmp_path, *args, kind="txt2img", **changes):
    request = {**REQUEST, "script_args": list(args), "outpath_grids": str(tmp_path), **changes}
    return requests.post(f"{url}/sdapi/v1/{kind}", json=request, timeout=120)


def made(response):
    assert response.status_code == 200, response.text
    answer = response.json()
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in answer["images"]]
    return images, json.loads(answer["info"])


def test_without_arguments_it_compares_the_presets(url, tmp_path):
    (_, *pictures), _ = made(post(url, tmp_path))
    assert len(pictures) == 4


def test_pictures_side_by_side_and_tables(url, tmp_path):
    typed = "cache_interval=2, estimator=copy"
    (sheet, *pictures), info = made(post(url, tmp_path, ["Quality", "Fast"], typed, 8, True))
    assert len(pictures) == 4
    for k, picture in enumerate(pictures):
        left = MARGIN + k * (64 + MARGIN)
        assert np.array_equal(sheet[MARGIN : MARGIN + 64, left : left + 64], picture)
    alone = requests.post(f"{url}/sdapi/v1/txt2img", json={**REQUEST, "script_name": None}, timeout=120)
    assert np.array_equal(made(alone)[0][0], pictures[0])
    assert not any(np.array_equal(pictures[0], other) for other in pictures[1:])
    # Each picture has its own infotext; the sheet that of the first.
    texts = info["infotexts"]
    assert len(texts) == 5 and "DeepCache" not in texts[0] + texts[1]
    assert "DeepCache: 8 of 14 full" in texts[2] and "DeepCache interval: 2" in texts[4]
    page, table = (next(tmp_path.glob(f"deepcache_compare-*.{kind}")) for kind in ("html", "csv"))
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["settings"] for row in rows] == ["without DeepCache", "Quality", "Fast", typed]
    assert [row["steps"] for row in rows] == [
        "",
        "8 of 14 full",
        "4 of 14 full",
        "7 of 14 full",
    ]
    assert all(float(row["seconds"]) > 0 and row["speed-up"].endswith("x") for row in rows)
    text = page.read_text(encoding="utf-8")
    assert "a cat &lt;b&gt;" in text and f'src="{page.stem}.png"' in text
    assert page.with_suffix(".png").exists()


def test_it_leaves_the_accordions_settings_alone(url, tmp_path):
    accordion = {"deepcache": {"args": [{"enabled": True, "cache_interval": 7, "start": 0.5, "end": 0.5}]}}
    (_, *pictures), info = made(post(url, tmp_path, ["Balanced"], "", 0, False, alwayson_scripts=accordion))
    assert len(pictures) == 2 and "DeepCache" not in info["infotexts"][1]
    assert "DeepCache start: 0.5" in info["infotexts"][2]  # what a preset does not set stays as it is on the page


@pytest.mark.slow
def test_hires_and_img2img(url, tmp_path):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.9, "hr_upscaler": "Latent"}
    (_, *pictures), info = made(post(url, tmp_path, ["Balanced"], "", 8, True, **hires))
    assert [picture.shape for picture in pictures] == [(96, 96, 3)] * 2
    assert "hires" in info["infotexts"][2]
    buffer = io.BytesIO()
    Image.fromarray(pictures[0]).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    (_, *pictures), info = made(
        post(
            url,
            tmp_path,
            ["Balanced"],
            "",
            8,
            True,
            kind="img2img",
            init_images=[picture],
            denoising_strength=0.9,
            steps=20,
        )
    )
    assert len(pictures) == 2 and "full" in info["infotexts"][2]


def test_a_wrong_wish_names_what_is_wrong(url, tmp_path):
    response = post(url, tmp_path, [], "cache_interval=0", 8, False)
    assert response.status_code == 500 and "from 1 to 50" in response.text
    assert not list(tmp_path.iterdir())


def test_interrupted_it_keeps_what_there_is(host, url, tmp_path):
    state, seen = host.module("shared").state, []

    def interrupt(_):
        seen.append(True)
        if len(seen) == 14 + 5:  # in the second picture
            state.interrupt()

    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoiser(interrupt)
    try:
        (_, *pictures), _ = made(post(url, tmp_path, ["Quality", "Fast"], "", 8, False))
    finally:
        callbacks.remove_callbacks_for_function(interrupt)
    assert len(pictures) == 1 and len(seen) < 2 * 14


def test_a_host_whose_saving_gives_three_values(host, url, tmp_path, monkeypatch):
    images = host.module("images")
    save = images.save_image
    monkeypatch.setattr(images, "save_image", lambda *args, **keywords: (*save(*args, **keywords), "SD.Next's third"))
    (_, *pictures), _ = made(post(url, tmp_path, ["Fast"], "", 8, False))
    assert len(pictures) == 2 and list(tmp_path.glob("deepcache_compare-*.csv"))
