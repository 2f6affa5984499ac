"""Real diffusers pipelines with tiny random networks, built in code: nothing is downloaded."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests import diffusers_unets as unets

diffusers.logging.set_verbosity_error()

WIDTH = 16
"""Of every text and image embedding."""

TRAINED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
PROMPT = "lower newer"


@functools.cache
def tokenizer() -> CLIPTokenizer:
    words = [
        "l",
        "o",
        "w",
        "e",
        "r",
        "s",
        "t",
        "i",
        "d",
        "n",
        "lo",
        "l</w>",
        "w</w>",
        "r</w>",
        "t</w>",
        "low</w>",
        "er</w>",
        "lowest</w>",
        "newer</w>",
        "wider",
        "<unk>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
        merges.write_text("#version: 0.2\nl o\nlo w</w>\ne r</w>\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def made(make: Any, *args: Any, **options: Any) -> Any:
    """A network with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args, **options).eval().requires_grad_(False)


def text_encoder(projection: bool = False) -> Any:
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=23,
        projection_dim=WIDTH,
        bos_token_id=21,
        eos_token_id=22,
        pad_token_id=22,
    )
    return made(CLIPTextModelWithProjection if projection else CLIPTextModel, config)


def vae(**changes: Any) -> Any:
    return made(
        diffusers.AutoencoderKL,
        **{
            "block_out_channels": [4, 8],
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "norm_num_groups": 2,
            "sample_size": 16,
            **changes,
        },
    )


def picture(seed: int = 0, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def scheduler(name: str = "DDIMScheduler") -> Any:
    kind = getattr(diffusers, name)
    known = {key: value for key, value in TRAINED.items() if key in kind.__init__.__wrapped__.__code__.co_varnames}
    return kind(**known)


def with_scheduler(pipe: Any, name: str) -> Any:
    """The pipeline with a scheduler of this class."""
    pipe.scheduler = scheduler(name)
    return pipe


def _sd(unet: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": unet,
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _xl(unet: Any, refiner: bool = False) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": None if refiner else text_encoder(),
        "text_encoder_2": text_encoder(True),
        "tokenizer": None if refiner else tokenizer(),
        "tokenizer_2": tokenizer(),
        "unet": unet,
        "scheduler": scheduler(),
    }


def _controlnet(unet: Any) -> Any:
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return net.eval().requires_grad_(False)


def _animatediff(make: Any) -> Any:
    unet = make("sd1")
    adapter = diffusers.MotionAdapter(
        block_out_channels=unet.config.block_out_channels,
        motion_layers_per_block=2,
        motion_norm_num_groups=unet.config.norm_num_groups,
        motion_num_attention_heads=2,
    )
    parts = _sd(unet)
    del parts["safety_checker"]
    pipe = diffusers.AnimateDiffPipeline(**parts, motion_adapter=adapter)
    for parameter in pipe.unet.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return pipe


def _svd(make: Any) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        intermediate_size=WIDTH,
        patch_size=8,
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=made(
            diffusers.AutoencoderKLTemporalDecoder,
            block_out_channels=[32, 32],
            in_channels=3,
            out_channels=3,
            down_block_types=["DownEncoderBlock2D"] * 2,
            latent_channels=4,
            sample_size=16,
        ),
        image_encoder=made(CLIPVisionModelWithProjection, vision),
        unet=make("svd"),
        scheduler=diffusers.EulerDiscreteScheduler(
            **{key: TRAINED[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")},
            interpolation_type="linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
    )


REFINER = {"cross_attention_dim": WIDTH, "projection_class_embeddings_input_dim": WIDTH + 5 * 4}

BUILD: dict[str, tuple[Any, dict[str, Any]]] = {
    "StableDiffusion": (
        lambda make: diffusers.StableDiffusionPipeline(
            **_sd(make("sd1")),
            requires_safety_checker=False,
        ),
        {"prompt": PROMPT, "height": 16, "width": 16},
    ),
    "StableDiffusionImg2Img": (
        lambda make: diffusers.StableDiffusionImg2ImgPipeline(
            **_sd(make("sd2")),
            requires_safety_checker=False,
        ),
        {"prompt": PROMPT, "image": picture(), "strength": 0.9},
    ),
    "StableDiffusionInpaint": (
        lambda make: diffusers.StableDiffusionInpaintPipeline(
            **_sd(make("inpaint")),
            requires_safety_checker=False,
        ),
        {"prompt": PROMPT, "image": picture(), "mask_image": picture(1, 1).round(), "height": 16, "width": 16},
    ),
    "StableDiffusionInstructPix2Pix": (
        lambda make: diffusers.StableDiffusionInstructPix2PixPipeline(
            **_sd(make("instruct-pix2pix")),
            requires_safety_checker=False,
        ),
        {"prompt": PROMPT, "image": picture()},
    ),
    "StableDiffusionControlNet": (
        lambda make: diffusers.StableDiffusionControlNetPipeline(
            **_sd(unet := make("sd1")),
            controlnet=made(_controlnet, unet),
            requires_safety_checker=False,
        ),
        {"prompt": PROMPT, "image": picture()},
    ),
    "StableDiffusionXL": (
        lambda make: diffusers.StableDiffusionXLPipeline(
            **_xl(make("sdxl", cross_attention_dim=2 * WIDTH)),
        ),
        {"prompt": PROMPT, "height": 16, "width": 16},
    ),
    "StableDiffusionXLImg2Img": (
        lambda make: diffusers.StableDiffusionXLImg2ImgPipeline(
            **_xl(make("sdxl", cross_attention_dim=2 * WIDTH)),
        ),
        {"prompt": PROMPT, "image": picture(), "strength": 0.9},
    ),
    "StableDiffusionXLInpaint": (
        lambda make: diffusers.StableDiffusionXLInpaintPipeline(
            **_xl(make("sdxl", cross_attention_dim=2 * WIDTH)),
        ),
        {
            "prompt": PROMPT,
            "image": picture(),
            "mask_image": picture(1, 1).round(),
            "height": 16,
            "width": 16,
            "strength": 0.9,
        },
    ),
    "StableDiffusionXL refiner": (
        lambda make: diffusers.StableDiffusionXLImg2ImgPipeline(
            **_xl(make("refiner", **REFINER), refiner=True),
            requires_aesthetics_score=True,
        ),
        {"prompt": PROMPT, "image": picture(), "strength": 0.9},
    ),
    "StableVideoDiffusion": (
        _svd,
        {
            "image": picture(),
            "num_frames": 2,
            "height": 16,
            "width": 16,
            "min_guidance_scale": 1.0,
            "max_guidance_scale": 2.5,
            "decode_chunk_size": 2,
        },
    ),
    "AnimateDiff": (_animatediff, {"prompt": PROMPT, "num_frames": 2, "height": 16, "width": 16}),
    "TextToVideoZero": (
        lambda make: diffusers.TextToVideoZeroPipeline(
            **_sd(make("sd1")),
            requires_safety_checker=False,
        ),
        {"prompt": PROMPT, "video_length": 2, "height": 16, "width": 16, "t0": 2, "t1": 4},
    ),
    "TextToVideoSD": (
        lambda make: diffusers.TextToVideoSDPipeline(
            **{
                key: part
                for key, part in _sd(make("3d")).items()
                if key in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
            },
        ),
        {"prompt": PROMPT, "num_frames": 2, "height": 16, "width": 16},
    ),
    "DDPM": (lambda make: diffusers.DDPMPipeline(make("ddpm"), scheduler("DDPMScheduler")), {}),
    "LDMTextToImage": (
        lambda make: diffusers.LDMTextToImagePipeline(
            vqvae=vae(),
            bert=text_encoder(),
            tokenizer=tokenizer(),
            unet=make("sd1"),
            scheduler=scheduler(),
        ),
        {"prompt": PROMPT, "height": 64, "width": 64},
    ),
}

PICTURES_ONLY = ("DDPM", "LDMTextToImage")


def build(name: str, make: Any = unets.make) -> Any:
    """`make`: of a layout's name and changes to it, the UNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = BUILD[name][0](make)
    pipe.set_progress_bar_config(disable=True)
    return pipe


shared = functools.cache(build)
"""One pipeline of each name for tests that leave no trace on it."""


def enlarged(name: str, scale: int, frames: int) -> dict[str, Any]:
    """What to give `run` for pictures with sides `scale` times as long, and so many frames of a video."""
    given = dict(BUILD[name][1])
    for key, value in given.items():
        if key in ("height", "width"):
            given[key] = value * scale
        elif key in ("image", "mask_image") and name != "StableVideoDiffusion":  # which resizes it itself
            given[key] = value.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        elif key in ("num_frames", "video_length"):
            given[key] = frames
    return given


def run(pipe: Any, name: str, steps: int = 7, seed: int = 0, **changes: Any) -> torch.Tensor:
    """The latent that a pipeline makes, or the picture where it does not show it."""
    options = {**BUILD[name][1], "num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}
    options["output_type"] = "np" if name in PICTURES_ONLY else "latent"
    result = pipe(**{**options, **changes})
    return torch.as_tensor(result["frames" if "frames" in result else "images"])


class Output(tuple):
    """What a UNet returns, whether it is asked for a tuple or not."""

    @property
    def sample(self) -> torch.Tensor:
        return self[0]


class Naive:
    """What a cached run must give, found by another way: the UNet's forward is replaced, counts its calls and works
    the live layers by hand. Each call is an evaluation; a timestep that rises begins a new pass; calls of another
    shape have features of their own, and the first of each is full. With a `deeper` branch every second full call runs
    that instead. `loops`: calls, counted from the first, at which the pipeline begins another loop.
    """

    def __init__(
        self, unet: Any, interval: int, branch: int, deeper: int | None = None, loops: Sequence[int] = ()
    ) -> None:
        self.unet, self.interval, self.branch, self.deeper = unet, interval, branch, deeper
        self.loops, self.calls = loops, 0
        self.features: dict[Any, dict[int, torch.Tensor]] = {}
        self.count, self.full, self.last = 0, 0, None

    def __enter__(self) -> Naive:
        self.unet.forward = self.forward
        return self

    def __exit__(self, *_: Any) -> None:
        del self.unet.forward

    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: Any = None, **given: Any) -> Any:
        if self.last is None or float(timestep) > self.last or self.calls in self.loops:
            self.count, self.features = 0, {}
        self.calls += 1
        self.last = float(timestep)
        names = {
            "down_block_additional_residuals": "control",
            "mid_block_additional_residual": "middle",
            "down_intrablock_additional_residuals": "adapter",
        }
        given = {names.get(name, name): value for name, value in given.items() if value is not None}
        for ignored in ("return_dict", "cross_attention_kwargs"):
            given.pop(ignored, None)
        renewal, between = divmod(self.count, self.interval)
        branch = self.deeper if self.deeper is not None and renewal % 2 and not between else self.branch
        is_full = sample.shape not in self.features or (not between and branch == self.branch)
        self.count, self.full = self.count + 1, self.full + is_full
        known, found = self.features.setdefault(sample.shape, {}), {}
        output, _ = unets.by_hand(
            self.unet,
            (self.deeper or self.branch) if is_full else branch,
            None if is_full else known[branch],
            sample=sample,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            features=found,
            **given,
        )
        known.update({one: feature for one, feature in found.items() if is_full or one < branch})
        return Output((output,))
