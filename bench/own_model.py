"""`python -m bench --model PATH --model_type TYPE`: times and likeness with a checkpoint of yours, through diffusers.

Uncached, our presets, plain intervals and the published DeepCacheSDHelper take turns; the pictures of one seed are
compared with the uncached one. PATH: a folder that diffusers saved, or a checkpoint file (then diffusers may want the
model's configuration from the internet, or --config FOLDER). Never fails because of a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from DeepCache import DeepCacheSDHelper as PublishedHelper
from PIL import Image

from deepcache_ext import DeepCache
from deepcache_ext.report.psnr import psnr
from deepcache_ext.settings.fields import CUSTOM, PRESETS

from .report import machine, ms
from .tables import columns
from .timing import Clock, Rival, Seconds, ratio, rounds

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INTERVALS = (3, 5)


@dataclass(frozen=True)
class ModelType:
    """A pipeline of diffusers and the pictures that it begins with."""

    pipeline: str
    image: bool = False
    mask: bool = False
    video: bool = False


MODEL_TYPES = {
    "sd1.5": ModelType("StableDiffusionPipeline"),
    "sd2.1": ModelType("StableDiffusionPipeline"),
    "sdxl": ModelType("StableDiffusionXLPipeline"),
    "svd": ModelType("StableVideoDiffusionPipeline", image=True, video=True),
    "sd-inpaint": ModelType("StableDiffusionInpaintPipeline", image=True, mask=True),
    "sdxl-inpaint": ModelType("StableDiffusionXLInpaintPipeline", image=True, mask=True),
    "sd-img2img": ModelType("StableDiffusionImg2ImgPipeline", image=True),
}


@dataclass
class Arm:
    """One way to run the pipeline. `remark`: what it said of itself, or why it failed."""

    name: str
    cached: Callable[[Any], contextlib.AbstractContextManager[Any]]
    remark: str = ""
    picture: np.ndarray | None = field(default=None, repr=False)


@contextlib.contextmanager
def uncached(pipe: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def published(pipe: Any, interval: int) -> Iterator[None]:
    helper = PublishedHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()
        for module in pipe.unet.modules():
            module.__dict__.pop("forward", None)  # it leaves them


def arms() -> list[Arm]:
    ours = [Arm(f"ours, {name}", lambda pipe, name=name: DeepCache(pipe, preset=name)) for name in PRESETS]
    plain = [
        Arm(
            f"ours, interval {n}, branch 0",
            lambda pipe, n=n: DeepCache(
                pipe,
                preset=CUSTOM,
                strategy="uniform",
                cache_interval=n,
                cache_branch_id=0,
                estimator="copy",
            ),
        )
        for n in INTERVALS
    ]
    helper = [Arm(f"helper, interval {n}, branch 0", lambda pipe, n=n: published(pipe, n)) for n in INTERVALS]
    return [Arm("uncached", uncached), *ours, *plain, *helper]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m bench --model", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder or file")
    add("--model_type", "--model-type", choices=MODEL_TYPES, required=True)
    add("--config", help="for a file: the folder of a model of its kind, as diffusers saves it")
    add("--prompt", default="a photo of a red car in the rain")
    add("--image", type=Path, help="what inpainting, img2img and svd begin with; default: a drawn one")
    add("--mask", type=Path, help="white where inpainting may draw; default: the middle")
    add("--steps", type=int, help="default: 50; svd: 25")
    add("--height", type=int, help="pixels; default: the model's own")
    add("--width", type=int, help="pixels; default: the model's own")
    add("--frames", type=int, help="svd; default: the model's own")
    add("--seed", type=int, default=0)
    add("--repeats", type=int, default=3, help="pictures of each kind; default: %(default)s")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"), help="default: %(default)s")
    add("--dtype", choices=DTYPES, help="default: fp16 on a GPU, fp32 on a CPU")
    add("--offload", action="store_true", help="keep what does not run in the computer's memory (diffusers)")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args(argv)
    options.dtype = options.dtype or ("fp16" if options.device.type == "cuda" else "fp32")
    if not options.model.exists():
        parser.error(f"there is no {options.model}")
    return options


def load(options: argparse.Namespace) -> Any:
    kind = getattr(diffusers, MODEL_TYPES[options.model_type].pipeline)
    if options.model.is_dir():
        pipe = kind.from_pretrained(options.model, torch_dtype=DTYPES[options.dtype], local_files_only=True)
    else:
        more = {"config": options.config} if options.config else {}
        pipe = kind.from_single_file(str(options.model), torch_dtype=DTYPES[options.dtype], **more)
    pipe.set_progress_bar_config(disable=True)
    if options.offload:
        pipe.enable_model_cpu_offload(device=options.device)
        return pipe
    return pipe.to(options.device)


def inputs(options: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """The arguments of the pipeline, without the generator."""
    kind = MODEL_TYPES[options.model_type]
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    height, width = options.height or (576 if kind.video else side), options.width or (1024 if kind.video else side)
    given: dict[str, Any] = {"output_type": "np", "num_inference_steps": options.steps or (25 if kind.video else 50)}
    if kind.video:
        given |= {"decode_chunk_size": 2} | ({"num_frames": options.frames} if options.frames else {})
    else:
        given["prompt"] = options.prompt
    if kind.image:
        image = Image.open(options.image).convert("RGB") if options.image else drawn(width, height)
        given["image"] = image.resize((width, height))
    if kind.mask:
        mask = Image.open(options.mask).convert("L") if options.mask else middle(width, height)
        given["mask_image"] = mask.resize((width, height))
    if options.model_type != "sd-img2img":  # there the picture has the size
        given |= {"height": height, "width": width}
    return given


def drawn(width: int, height: int) -> Image.Image:
    """A sky over a field."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    sky = np.stack([0.4 + 0.4 * down, 0.6 + 0.2 * down, 0.9 - 0.1 * across], axis=-1)
    field_ = np.stack([0.3 + 0.3 * across, 0.6 - 0.3 * down, 0.2 + 0 * down], axis=-1)
    return Image.fromarray((np.where(down[..., None] < 0.6, sky, field_) * 255).astype(np.uint8))


def middle(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    return mask


def measure(
    pipe: Any, given: dict[str, Any], options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[list[Arm], Seconds]:
    """All arms, each with its picture or why there is none, and the seconds of those that work."""

    def make(arm: Arm, **changes: Any) -> None:
        cache: Any
        with torch.no_grad(), arm.cached(pipe) as cache:
            made = pipe(**{**given, **changes}, generator=torch.Generator("cpu").manual_seed(options.seed))
            arm.picture = np.asarray(made.frames if "frames" in made else made.images)
        if isinstance(cache, DeepCache):
            report = cache.report()
            passes = report.passes
            arm.remark = (
                f"{sum(p.full_evaluations for p in passes)} of {sum(p.evaluations for p in passes)} full"
                if passes
                else report.inactive
            )

    found = arms()
    say("warming up")
    make(found[0], num_inference_steps=2)
    for arm in found:
        say(arm.name)
        try:
            make(arm)
        except Exception as error:
            if arm.name == "uncached":
                raise
            arm.picture, arm.remark = None, f"failed: {type(error).__name__}: {error}"
    say(f"{options.repeats} rounds")
    rivals = [Rival(arm.name, lambda arm=arm: make(arm)) for arm in found if arm.picture is not None]
    return found, rounds(Clock(options.device), rivals, options.repeats)


def report(found: Sequence[Arm], seconds: Seconds) -> tuple[list[str], list[dict[str, Any]]]:
    original = found[0].picture
    assert original is not None
    rows, figures = [], []
    for arm in found:
        if arm.picture is None:
            rows.append((arm.name, "", "", "", "", arm.remark))
            figures.append({"name": arm.name, "remark": arm.remark})
            continue
        times, gain = seconds[arm.name], ratio(seconds, "uncached", arm.name)
        near = psnr(arm.picture, original, peak=1.0)
        median = sorted(times)[len(times) // 2]
        rows.append(
            (
                arm.name,
                ms(median),
                f"{gain.value:.2f}x",
                f"{gain.low:.2f} to {gain.high:.2f}",
                "" if arm is found[0] else f"{near:.1f}",
                arm.remark,
            )
        )
        figures.append(
            {
                "name": arm.name,
                "seconds": times,
                "speed_up": gain.as_json(),
                "remark": arm.remark,
                "psnr": None if math.isinf(near) else near,
            }
        )
    return columns(("", "ms", "speed-up", "95 %", "PSNR dB", ""), rows), figures


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"loading {options.model.name}")
    pipe = load(options)
    given = inputs(options, pipe)
    found, seconds = measure(pipe, given, options, say)
    lines, figures = report(found, seconds)
    where = machine(options.device)
    print(
        f"{options.model.name} ({options.model_type}), {given['num_inference_steps']} steps, {options.dtype}, "
        f"{where['name']} ({where['device']}); whole pictures, text encoders and decoder included\n"
    )
    print("\n".join(lines))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": where, "arms": figures}, indent=1) + "\n", encoding="utf-8")
    return 0
