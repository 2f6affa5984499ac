"""The extension beside others: whole pictures in the embedded A1111, each against the naive DeepCache under the same
neighbour. `docs/compatibility.md` says which test stands for which row of the matrix.
"""

from __future__ import annotations

import base64
import copy
import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from deepcache_ext.interface import last_run
from demo.webui.boot import boot
from tests import neighbours
from tests.controlnet import ControlNet, Pluggable, Unit, counted
from tests.driver import TRUSTED
from tests.hosts.beside import REQUEST, SETTINGS, host_module, make, running
from tests.pictures import infotext, pixels, same
from tests.replay.recording import load
from tests.replay.scenario import MAIN, replay
from tests.soak.__main__ import TRACES
from tests.soak.generations import FittedHook
from tests.soak.naive import Naive, on

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(scope="module")
def host():
    with running() as one:
        yield one


BESIDE = {
    "ToMe": (neighbours.tome, {}),
    "HyperTile": (neighbours.hypertile, {}),
    "Regional Prompter, attention": (neighbours.regional_attention, {"prompt": "a cat " * 60}),
    "Regional Prompter, latent": (None, {"prompt": "a cat AND a dog AND grass"}),
    "IP-Adapter": (neighbours.ip_adapter, {}),
    "another attention": (neighbours.other_attention, {}),
    "tiling": (neighbours.tiling, {}),
    "FreeU": (neighbours.freeu, {}),
    "fp8 storage": (neighbours.low_precision_storage, {}),
    "channels last": (neighbours.channels_last, {}),
    "dynamic thresholding": (neighbours.dynamic_thresholding, {}),
    "MultiDiffusion": (neighbours.tiles, {"width": 128}),
    "PAG": (neighbours.guided_twice, {}),
    "odd size": (None, {"width": 136, "height": 120}),
}
"""The neighbour, and the request where another than the plain one shows it better."""


@pytest.mark.sample("ToMe", "IP-Adapter", "FreeU", "MultiDiffusion", "PAG", "Regional Prompter, latent")
@pytest.mark.parametrize("name", BESIDE)
def test_beside(host, name):
    """The picture is the rule's, all planned calls are cached, and the neighbour acts on it."""
    neighbour, changes = BESIDE[name]
    naive = Naive(SETTINGS)
    if neighbour is None:
        done = make(host, **changes)
        with on(host, naive):
            expected = make(host, None, **changes)
    else:
        with neighbour(host):
            done = make(host, **changes)
        with neighbour(host), on(host, naive):
            expected = make(host, None, **changes)
        assert not same(done, make(host, **changes))
    assert same(done, expected)
    assert infotext(host, done)["DeepCache"] == "3 of 7 full"
    assert naive.cached * 3 == naive.full * 4  # of 7 evaluations 4 are cached, whatever calls each of them makes
    assert "not active" not in str(done.comments)


def test_controlnet_in_the_host(host):
    """Live by itself: the adapter finds the units. A unit that ends in mid-run costs one full evaluation more, and the
    next picture without ControlNet is as before."""
    plain, unet = make(host), host.unet
    plugged = Pluggable(ControlNet(copy.deepcopy(unet), seed=3))
    counts = counted(plugged.control_model)
    hint = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def with_controlnet(settings, hook, naive=None):
        progress = lambda params: hook.begin_evaluation(params.sampling_step / params.total_sampling_steps)  # noqa: E731
        hook.hook(unet)
        try:
            with neighbours.callback(host, "cfg_denoiser", progress):
                if naive is None:
                    return make(host, settings)
                with on(host, naive):
                    del unet.forward
                    return make(host, None)
        finally:
            unet.__dict__.pop("forward", None)

    for end, full in ((1.0, 3), (0.4, 4)):
        hook = FittedHook([Unit(plugged, hint, weight=0.8, end=end)])
        counts.clear()
        done = with_controlnet(SETTINGS, hook)
        runs = counts["input_blocks.0"]
        assert infotext(host, done)["DeepCache"] == f"{full} of 7 full"
        assert counts["input_blocks.2"] == runs > counts["input_blocks.3"] == counts["middle_block"] > 0
        naive = Naive(SETTINGS, hook)
        expected = with_controlnet(None, hook, naive)
        assert same(done, expected) and naive.full == full
        assert not same(done, plain)
    assert same(make(host), plain)


# What a prompt costs: measured, and in docs/compatibility.md ---------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "steps", "full"),
    [
        ("a [cat:dog:0.5]", 12, "5 of 12 full"),  # one more full evaluation, where the prompt changes
        ("[a:b:3] [c:d:7]", 12, "6 of 12 full"),
    ],
)
def test_prompts_that_change_in_mid_run(host, prompt, steps, full):
    naive = Naive(SETTINGS)
    done = make(host, prompt=prompt, steps=steps)
    with on(host, naive):
        expected = make(host, None, prompt=prompt, steps=steps)
    assert same(done, expected)
    assert infotext(host, done)["DeepCache"] == full


def test_words_that_alternate():
    """As the host says when they change: at nearly every evaluation. A recording of Euler a with such a prompt."""
    recording = load(TRACES / "euler_a.json")
    (generation,) = recording.generations
    generation = replace(generation, request={**generation.request, "prompt": "a [cat|dog]"})
    outcome = replay(replace(recording, generations=[generation]), (MAIN,))
    assert not outcome.failures, "\n".join(outcome.failures)
    assert (outcome.main.cached, outcome.main.planned) == (1, 5)


def test_conditioning_that_another_extension_changes(host):
    naive = Naive(SETTINGS)
    with neighbours.changed_conditioning(host):
        done = make(host)
    with neighbours.changed_conditioning(host), on(host, naive):
        expected = make(host, None)
    assert same(done, expected)
    assert infotext(host, done)["DeepCache"] != "3 of 7 full"


def test_lowvram_moves_only_what_runs(host):
    """`--lowvram` moves a block whenever it is called: 25 of them at a full call, 2 at a cached one of branch 0."""
    moves = []
    unet = host.unet
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    handles = [block.register_forward_pre_hook(lambda *_: moves.append(1)) for block in blocks]
    done = make(host, {**SETTINGS, "cache_branch_id": 0})
    for handle in handles:
        handle.remove()
    assert infotext(host, done)["DeepCache"] == "3 of 7 full"
    assert len(blocks) == 25 and len(moves) == 3 * 25 + 4 * 2


def test_where_a_neighbour_forbids_it_that_stands_beside_the_picture(host):
    """Code in the deepest block of which nothing is known: in comments below the picture and in the last run."""
    ours = host_module(host)
    handle = host.unet.middle_block.register_forward_hook(lambda *_: None)
    ours.trusted = ()
    try:
        done = make(host)
    finally:
        handle.remove()
        ours.trusted = TRUSTED
    told = "`tests.hosts.test_compatibility` watches layers that a cached call would skip"
    assert infotext(host, done)["DeepCache"] == f"7 of 7 full ({told})" and f"not active: {told}" in str(done.comments)
    assert f"No speed-up: {told}. If you know that it is harmless" in last_run.line(ours.last_run)
    assert "not active" not in str(make(host).comments)


# The host's life -----------------------------------------------------------------------------------------------------


def test_one_p_for_several_pictures(host):
    """Loopback and SD upscale run `process_images` again and again on one p."""
    processing, alone = host.module("processing"), make(host)

    def again(settings):
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=host.module("shared").sd_model, **REQUEST)
        p.scripts = host.module("scripts").scripts_txt2img
        p.script_args = host.api._script_args("txt2img", p.scripts, {"DeepCache": {"args": [settings]}})
        return [processing.process_images(p) for _ in range(3)]

    for done in again(SETTINGS):
        assert same(done, alone)
        assert infotext(host, done)["DeepCache"] == "3 of 7 full"


def test_one_p_with_other_settings_each_time(host):
    """As an X/Y/Z plot does, whose copies of p share their infotext's values."""
    processing, texts = host.module("processing"), []
    p = processing.StableDiffusionProcessingTxt2Img(sd_model=host.module("shared").sd_model, **REQUEST)
    p.scripts = host.module("scripts").scripts_txt2img
    p.script_args = host.api._script_args("txt2img", p.scripts, {})
    for wanted in ({"enabled": True, "cache_interval": 3, "start": 0.2}, {"speed_up": 1.5}, {"enabled": False}):
        p.deepcache_overrides = wanted
        texts.append(processing.process_images(p).infotexts[0])
    assert "DeepCache interval: 3" in texts[0] and "DeepCache start: 0.2" in texts[0]
    assert "DeepCache speed up: 1.5" in texts[1] and "interval" not in texts[1] and "start" not in texts[1]
    assert "DeepCache" not in texts[2]


def test_skip(host):
    """The button ends one picture of a batch; the next one is made as alone."""
    seen = []

    def skip(_):
        seen.append(1)
        if len(seen) == 3:
            host.module("shared").state.skip()

    alone = make(host, seed=2)
    with neighbours.callback(host, "cfg_denoiser", skip):
        done = make(host, n_iter=2)
    assert len(seen) == 3 + 7
    assert np.array_equal(pixels(done)[-1], pixels(alone)[0])


@pytest.mark.slow
def test_requests_that_come_at_the_same_time():
    """The host's queue takes one after the other; each gets the picture that it gets alone."""

    def post(url, args):
        scripts = {"alwayson_scripts": {"DeepCache": {"args": args}}} if args else {}
        answer = requests.post(f"{url}/sdapi/v1/txt2img", json={**REQUEST, **scripts}, timeout=120).json()
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))

    wanted = [[SETTINGS], None, [{**SETTINGS, "cache_interval": 5}], [{"enabled": False}]] * 2
    with boot(model="tinyA") as serving:
        url = serving.serve()
        alone, together = [post(url, args) for args in wanted], [None] * len(wanted)

        def ask(place):
            together[place] = post(url, wanted[place])

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(wanted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(map(np.array_equal, alone, together))
    assert not np.array_equal(alone[0], alone[1]) and not np.array_equal(alone[0], alone[2])
    assert np.array_equal(alone[1], alone[3])
