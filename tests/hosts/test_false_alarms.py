"""Runs of a trained checkpoint in which nobody touches the latents: none is taken for another picture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.webui.boot import Host, boot
from demo.webui.checkpoints import TRAINED
from tests.pictures import infotext

NAME = "demo-sd1"
RUN = {"seed": 11, "steps": 30, "width": 256, "height": 256, "cfg_scale": 7}

pytestmark = pytest.mark.skipif(
    not (TRAINED / f"{NAME}.safetensors").exists(), reason="no trained checkpoint (make train)"
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with boot(model=NAME) as running:
        yield running


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ("DPM++ 2M SDE Heun", "6 of 19 full + 6 medium"),
        ("DPM++ 3M SDE", "6 of 19 full + 6 medium"),
        ("PLMS", "8 of 18 full"),
    ],
)
def test_a_picture_that_becomes_another_one(host: Host, sampler: str, said: str) -> None:
    """A house that becomes an apple, by samplers that overshoot: these ran in full in the real A1111."""
    house = host.txt2img(prompt="house", sampler_name="Euler", **RUN).images[0]
    made = host.img2img(
        prompt="a red apple",
        init_images=[house],
        denoising_strength=0.6,
        sampler_name=sampler,
        alwayson_scripts={"DeepCache": {"args": [{"enabled": True, "preset": "Balanced"}]}},
        **RUN,
    )
    assert infotext(host, made)["DeepCache"] == said
