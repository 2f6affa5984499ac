"""The trained checkpoint in demo/checkpoint/, as files and inside the host; the training's own parts."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from demo.webui.autoencoder import Autoencoder, Widths
from demo.webui.boot import boot
from demo.webui.checkpoints import TRAINED, autoencoder, available, make_unet, state_dict, text_encoder
from demo.webui.toys import CHUNK, TextEncoder

NAME = "demo-sd1"
LIMIT = 8_000_000
SIZE = 256
MIDDLE = np.s_[106:150, 106:150]

needs_weights = pytest.mark.skipif(
    not (TRAINED / f"{NAME}.safetensors").exists(), reason="no trained checkpoint (make train)"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with boot(extension_dir=None, model=NAME) as host:
        yield host.serve(None)
    torch.set_num_threads(threads)


def generate(url: str, **request: object) -> np.ndarray:
    """[height, width, 3] of one txt2img call at the size of the training."""
    body = {"steps": 20, "sampler_name": "Euler", "seed": 1, "width": SIZE, "height": SIZE, "cfg_scale": 5, **request}
    with httpx.Client(timeout=300, trust_env=False) as client:
        answer = client.post(f"{url}/sdapi/v1/txt2img", json=body).raise_for_status().json()
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))), dtype=np.float32)


def test_text_encoder_gives_77_places_a_chunk() -> None:
    encoder = TextEncoder(64, 16)
    assert encoder.encode("").shape == (CHUNK + 2, 16)
    assert encoder.encode("a red apple").shape == (CHUNK + 2, 16)
    assert encoder.encode("word " * (CHUNK + 1)).shape == (2 * (CHUNK + 2), 16)
    assert encoder.encode("a BREAK b").shape == (2 * (CHUNK + 2), 16)
    assert torch.equal(encoder.encode("(Red:1.2) apple"), encoder.encode("red apple"))
    assert not torch.equal(encoder.encode("red apple"), encoder.encode("green apple"))


def test_autoencoder_has_eight_pixels_for_a_place_of_the_latent_at_any_size() -> None:
    code = Autoencoder(Widths(encoder=8, decoder=(8, 4, 4), blocks=1))
    picture = torch.rand(2, 3, 64, 48) * 2 - 1
    latent = code.encode(picture)
    assert latent.shape == (2, 4, 8, 6)
    assert code.decode(latent).shape == picture.shape
    code.mean.fill_(0.5)
    code.spread.fill_(2.0)
    assert torch.allclose(code.encode(picture), (latent - 0.5) / 2, atol=1e-5)
    assert torch.allclose(code.decode((latent - 0.5) / 2), code.decoder(latent).clamp(-1, 1), atol=1e-5)


def test_widths_come_back_from_json() -> None:
    widths = Widths(8, (8, 4, 2), 3)
    assert Widths.of(json.loads(json.dumps(widths.as_json()))) == widths


@needs_weights
def test_files_are_small_and_named_as_ldm_names_them() -> None:
    from safetensors import safe_open

    assert sum(path.stat().st_size for path in TRAINED.iterdir()) < LIMIT
    with safe_open(TRAINED / f"{NAME}.safetensors", "pt") as file:
        names = list(file.keys())
    assert "model.diffusion_model.input_blocks.11.0.in_layers.2.weight" in names
    assert "model.diffusion_model.output_blocks.11.0.in_layers.2.weight" in names
    assert {name.partition(".")[0] for name in names} == {"model", "cond_stage_model", "first_stage_model"}


@needs_weights
def test_weights_fit_the_layout() -> None:
    checkpoint = available()[NAME]
    assert checkpoint.weights is not None
    unet = make_unet(checkpoint)
    assert (len(unet.input_blocks), len(unet.output_blocks)) == (12, 12)
    unet.load_state_dict(state_dict(checkpoint, unet))
    assert text_encoder(checkpoint) is not None
    assert autoencoder(checkpoint) is not None
    assert checkpoint.trained["prediction"] == "eps"


@needs_weights
def test_host_draws_what_the_prompt_says(url: str) -> None:
    """Colours in the middle of the picture, on white."""
    apple, heart = generate(url, prompt="red apple"), generate(url, prompt="blue heart")
    for picture in (apple, heart):
        assert picture.shape == (SIZE, SIZE, 3)
        assert picture[:8, :8].mean() > 225
    red, _, blue = apple[MIDDLE].mean((0, 1))
    assert red > blue + 50
    red, _, blue = heart[MIDDLE].mean((0, 1))
    assert blue > red + 50


@needs_weights
def test_colours_do_not_hang_on_the_seed(url: str) -> None:
    """Each seed's noise has a mean of its own; a UNet that cannot tell it leaves it in the picture as a tint."""
    suns = [generate(url, prompt="sun", seed=seed) for seed in (3, 4, 1004)]
    for red, green, blue in (sun[MIDDLE].mean((0, 1)) for sun in suns):
        assert red > 230 and 150 < green < 220 and blue < 100
    assert min(sun[:8, :8].mean((0, 1)).min() for sun in suns) > 240


@needs_weights
@pytest.mark.parametrize("t", [999, 900, 800])
def test_the_unet_tells_the_mean_of_the_noise(t: int) -> None:
    checkpoint = available()[NAME]
    unet, text = make_unet(checkpoint), text_encoder(checkpoint)
    assert text is not None
    unet.load_state_dict(state_dict(checkpoint, unet))
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    context = text.encode("sun")[None].repeat(2, 1, 1)
    said = [unet(noise + mean, torch.full((2,), t), context=context).mean((2, 3)) for mean in (-0.05, 0.05)]
    assert ((said[1] - said[0]) / 0.1 - 1).abs().max() < 0.3


@pytest.mark.sample("DDIM")
@needs_weights
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "UniPC"])
def test_other_samplers_draw_it_too(url: str, sampler: str) -> None:
    apple = generate(url, prompt="red apple", sampler_name=sampler)
    red, _, blue = apple[MIDDLE].mean((0, 1))
    assert red > blue + 50
    assert apple[:8, :8].mean() > 215


@needs_weights
@pytest.mark.parametrize(
    "words",
    [
        {"prompt": "red apple AND pizza :0.5"},
        {"prompt": "red apple", "negative_prompt": "blue heart"},
        {"prompt": "red apple " + "and " * 90},
        {"prompt": "[sun:red apple:0.3]"},
    ],
)
def test_all_kinds_of_prompts_run(url: str, words: dict[str, str]) -> None:
    picture = generate(url, steps=8, **words)
    assert np.isfinite(picture).all()
    assert picture.std() > 10


@needs_weights
def test_description_names_its_prompts() -> None:
    known = json.loads((TRAINED / f"{NAME}.json").read_text(encoding="utf-8"))
    card = (TRAINED / "README.md").read_text(encoding="utf-8")
    assert all(prompt in card for prompt in known["trained"]["prompts"])


@needs_weights
def test_a_learned_picture_comes_back_from_its_latent(url: str) -> None:
    """As img2img has it: coded, and decoded again; with edges, which a mean over 8x8 pixels would not keep."""
    code = autoencoder(available()[NAME])
    assert code is not None
    drawn = torch.from_numpy(generate(url, prompt="soccer ball")).permute(2, 0, 1)[None] / 127.5 - 1
    back = code.decode(code.encode(drawn))
    assert -10 * ((back - drawn) / 2).square().mean().log10() > 26


@pytest.mark.slow
def test_training_runs_and_resumes(tmp_path: Path) -> None:
    from train import learn
    from train.data import VOCABULARY

    latents = torch.randn(len(VOCABULARY), 4, 32, 32)
    _, first = learn.train(latents, tmp_path, 0.001, "cpu", 2, resume=True)
    model, second = learn.train(latents, tmp_path, (first.seconds + 0.1) / 60, "cpu", 2, resume=True)
    assert 0 < first.step < second.step == len(second.losses)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
