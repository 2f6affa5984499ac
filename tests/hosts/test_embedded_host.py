"""The embedded host against the recordings of the real one: where they differ, the embedded host is wrong."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from demo.webui.boot import Host, boot
from tests.embedded import TRACES, Hosts, comparable, differences, load, outline, play, split

FOLDER = "a1111-1.10.1"

# Recorded with ControlNet, AnimateDiff or Tiled Diffusion, which the embedded host does not have.
OTHER_EXTENSIONS = {
    "after_animatediff",
    "after_controlnet",
    "after_controlnet_crash",
    "animatediff_3_windows",
    "animatediff_one_window",
    "controlnet",
    "controlnet_crash",
    "controlnet_end_half",
    "controlnet_my_prompt",
    "controlnet_reference_only",
    "extensions_present_but_off",
    "tiled_diffusion",
    "tiled_diffusion_tile_batch_1",
}
# Its noise levels follow from what the UNet says: see the test of its own.
FOLLOWS_THE_WEIGHTS = {"dpm_adaptive"}
SCENARIOS = sorted(path.stem for path in (TRACES / FOLDER).glob("*.json") if path.stem not in OTHER_EXTENSIONS)

# torchsde about the last digit of the outermost noise levels; k-diffusion's own doing.
pytestmark = pytest.mark.filterwarnings("ignore:Should have t")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these UNets are too small to share
    made = Hosts()
    yield made
    made.close()
    torch.set_num_threads(threads)


@pytest.mark.sample(
    "euler_a", "ddim", "dpmpp_sde", "batch_cond_uncond_off", "img2img", "crash", "refiner_inplace", "sdxl"
)
@pytest.mark.parametrize(
    "scenario", sorted(set(SCENARIOS) - FOLLOWS_THE_WEIGHTS, key=lambda name: (name.startswith("sdxl"), name))
)
def test_same_events_as_the_real_host(hosts: Hosts, scenario: str) -> None:
    trace = load(FOLDER, scenario)
    host = hosts("tinyXL" if scenario.startswith("sdxl") else "tinyA")
    host.module("sd_models").reload_model_weights()  # after a refiner
    requests = trace["request"] if isinstance(trace["request"], list) else [trace["request"]]
    recorded = [[comparable(event) for event in part if event["ev"] != "request"] for part in split(trace["events"])]
    whole = split(trace["events"])
    assert len(recorded) == len(requests)
    for request, theirs, provoked in zip(requests, recorded, whole, strict=True):
        ours = [comparable(event) for event in play(host, request, provoked)]
        assert outline(ours) == outline(theirs)
        wrong = [line for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for line in differences(a, b, str(i))]
        assert not wrong, "\n".join(wrong[:20])


@pytest.mark.slow
def test_dpm_adaptive_exceeds_the_expected_number_of_evaluations(hosts: Hosts) -> None:
    trace = load(FOLDER, "dpm_adaptive")
    ours = play(hosts("tinyA"), trace["request"], [])
    theirs = trace["events"]
    ticks, recorded = ([e for e in events if e.get("name") == "cfg_denoiser"] for events in (ours, theirs))
    assert outline(ours)[:11] == outline(theirs)[:11]
    assert not differences(ours[:16], theirs[:16])  # until the first answer of the UNet decides
    assert len(ticks) > ticks[-1]["denoiser_total_steps"] == recorded[-1]["denoiser_total_steps"]
    assert outline(ours)[-8:] == [
        "post_sample",
        "postprocess_batch",
        "postprocess_batch_list",
        "postprocess_image",
        "postprocess_maskoverlay",
        "postprocess_image_after_composite",
        "postprocess",
        "response",
    ]


@pytest.mark.sample("DPM++ 2M-8")
@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        ("Euler", 8),
        ("LMS", 8),
        ("DPM++ 2M", 8),
        ("DPM++ 2M SDE", 8),
        ("DPM++ 2M SDE Heun", 8),
        ("DPM++ 3M SDE", 8),
        ("DPM++ 2S a", 15),
        ("DPM2", 15),
        ("DPM2 a", 15),
    ],
)
def test_evaluations_of_samplers_without_a_recording(hosts: Hosts, sampler: str, evaluations: int) -> None:
    host = hosts("tinyA")
    host.restart_recording()
    host.txt2img(prompt="a cat", steps=8, width=64, height=64, sampler_name=sampler, seed=1)
    assert outline(host.events).count("cfg_denoiser") == evaluations


@pytest.mark.sample("DDIM", "UniPC", "DPM fast")
@pytest.mark.parametrize("sampler", ["DDIM", "PLMS", "UniPC", "Restart", "LCM", "DPM fast", "DPM adaptive"])
def test_img2img_with_every_kind_of_sampler(hosts: Hosts, sampler: str) -> None:
    picture = Image.new("RGB", (64, 64), (200, 80, 40))
    made = hosts("tinyA").img2img(
        prompt="a cat",
        steps=6,
        width=64,
        height=64,
        sampler_name=sampler,
        seed=1,
        init_images=[picture],
        mask=Image.new("L", (64, 64), 255),
        denoising_strength=0.6,
    )
    assert made.images[0].size == (64, 64)


@pytest.mark.slow
def test_restart_goes_back_up_once_from_20_steps_on(hosts: Hosts) -> None:
    host = hosts("tinyA")
    host.restart_recording()
    host.txt2img(prompt="a cat", steps=20, width=64, height=64, sampler_name="Restart", seed=1)
    sigmas = [event["sigma"][0] for event in host.events if event.get("name") == "cfg_denoiser"]
    assert sum(after > before for before, after in pairwise(sigmas)) == 1


def test_a_batch_gives_the_pictures_of_its_seeds(hosts: Hosts) -> None:
    host = hosts("tinyA")
    wishes = {"prompt": "a cat", "steps": 4, "width": 64, "height": 64, "sampler_name": "DPM++ 2M SDE"}
    both = host.txt2img(**wishes, seed=5, batch_size=2).images
    alone = host.txt2img(**wishes, seed=6).images[0]
    difference = np.asarray(both[1], dtype=int) - np.asarray(alone, dtype=int)
    assert abs(difference).max() <= 1  # another batch size may round otherwise


@pytest.mark.sample("tinyA")
@pytest.mark.parametrize("model", ["tinyA", "tinyXL", "tinyInpaint"])
def test_deep_features_matter(hosts: Hosts, model: str) -> None:
    """With ldm's zero-initialised layers left as they are no error in caching could be seen."""
    host = hosts(model)
    wishes = {"prompt": "a red car", "steps": 4, "width": 64, "height": 64, "seed": 1}
    whole = np.asarray(host.txt2img(**wishes).images[0], dtype=int)
    handle = host.unet.middle_block.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    try:
        shallow = np.asarray(host.txt2img(**wishes).images[0], dtype=int)
    finally:
        handle.remove()
    assert abs(whole - shallow).mean() > 1
    assert 20 < whole.mean() < 235 and whole.std() > 10 and (whole == 0).mean() < 0.4  # not black or white


FAULTY = """
from modules import script_callbacks, scripts
import gradio as gr

class Faulty(scripts.Script):
    def title(self):
        return "Faulty One"
    def show(self, is_img2img):
        return scripts.AlwaysVisible
    def ui(self, is_img2img):
        return [gr.Slider(0, 9, 4, step=1, label="Number"), gr.Textbox("x", label="Text")]
    def before_process(self, p, *args):
        p.extra_generation_params["Given"] = repr(args)
        p.comment("seen")
        raise ValueError("in a hook")

def broken(params):
    raise ValueError("in a callback")

script_callbacks.on_cfg_denoiser(broken)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> Iterator[Host]:
    """A served host with an extension that fails wherever it can, behind a password."""
    hosts.close()
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "faulty.py").write_text(FAULTY, encoding="utf-8")
    (folder / "scripts" / "worse.py").write_text("raise ImportError('while loading')", encoding="utf-8")
    (folder / "preload.py").write_text("def preload(parser):\n    parser.add_argument('--faulty', type=int)\n")
    (folder / "style.css").write_text(".faulty { color: red; }", encoding="utf-8")
    (folder / "javascript").mkdir()
    (folder / "javascript" / "faulty.js").write_text("// faulty here", encoding="utf-8")
    with boot(folder, "tinyA", ["--faulty", "3", "--api-auth", "me:secret"]) as host:
        host.serve()
        yield host


WISHES = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "sampler_name": "euler a", "seed": 1}


def ask(server: Host, path: str, body: Any = None, password: str = "secret") -> httpx.Response:
    with httpx.Client(auth=("me", password), trust_env=False, timeout=60) as client:
        url = f"{server.url}/sdapi/v1/{path}"
        return client.get(url) if body is None else client.post(url, json=body)


def test_errors_of_extensions_are_survived(server: Host) -> None:
    assert server.module("shared").cmd_opts.faulty == 3
    answer = ask(server, "txt2img", {**WISHES, "alwayson_scripts": {"faulty one": {"args": [7]}}})
    assert answer.status_code == 200
    info = json.loads(answer.json()["info"])
    assert info["extra_generation_params"]["Given"] == "(7, 'x')"  # the shorter list, filled up with defaults
    assert "Given: \"(7, 'x')\"" in info["infotexts"][0]
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0])))
    assert picture.size == (64, 64)
    assert picture.info["parameters"] == info["infotexts"][0]


def test_a_crash_in_the_unet_is_answered_with_500(server: Host) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("provoked")

    handle = server.unet.middle_block.register_forward_hook(crash)
    try:
        answer = ask(server, "txt2img", WISHES)
    finally:
        handle.remove()
    assert answer.status_code == 500
    assert answer.json()["error"] == "RuntimeError"
    assert ask(server, "txt2img", WISHES).status_code == 200


def test_other_routes(server: Host) -> None:
    assert ask(server, "scripts", password="wrong").status_code == 401
    assert ask(server, "scripts").json() == {"txt2img": ["faulty one"], "img2img": ["faulty one"]}
    described = ask(server, "script-info").json()[0]
    assert described["name"] == "faulty one"
    assert described["args"][0] == {"label": "Number", "value": 4, "minimum": 0, "maximum": 9, "step": 1}
    assert ask(server, "txt2img", {**WISHES, "alwayson_scripts": {"none": {}}}).status_code == 422
    assert ask(server, "options", {"batch_cond_uncond": False}).status_code == 200
    assert ask(server, "options").json()["batch_cond_uncond"] is False
    ask(server, "options", {"batch_cond_uncond": True})
    assert ask(server, "progress").json()["progress"] == 0.0
    assert ask(server, "interrupt", {}).status_code == 200
    encoded = base64.b64encode(ask(server, "txt2img", WISHES).content)  # no picture
    assert ask(server, "img2img", {**WISHES, "init_images": [encoded.decode()]}).status_code == 500


def test_the_page_holds_the_extensions_files_and_asks_nobody_else(server: Host) -> None:
    text = httpx.get(server.url, trust_env=False).text
    assert "// faulty here" in text and ".faulty { color: red; }" in text
    assert 'src="http' not in text and 'href="http' not in text


def test_nothing_stays_in_the_process() -> None:
    import sys

    before = {name for name in sys.modules if name.partition(".")[0] in ("modules", "deepcache_ext")}
    path = list(sys.path)
    with boot(model="tinyA") as host:
        assert host.module("scripts").scripts_data
        assert "modules.shared" in sys.modules
    assert {name for name in sys.modules if name.partition(".")[0] in ("modules", "deepcache_ext")} == before
    assert sys.path == path
