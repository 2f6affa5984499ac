"""`python -m bench.contact`: docs/without_and_with.png, several prompts without DeepCache and with a preset below.

The prompts are the first ones of the demo's list, not chosen ones. Shown at half their size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from bench.demo_studio import DemoStudio, checkpoint_called, pairs_for
from demo.webui.boot import REPOSITORY

PATH = REPOSITORY / "docs" / "without_and_with.png"
PROMPTS, STEPS, SAMPLER, PRESET = 8, 30, "Euler", "Balanced"
SIDE, MARGIN, HEAD, FOOT = 128, 6, 92, 18


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], names: Sequence[str]) -> Image.Image:
    """A row of pictures for each name, the prompts below."""
    font = ImageFont.load_default(13)
    size = HEAD + len(names) * (SIDE + MARGIN), len(rows) * (SIDE + MARGIN) + MARGIN + FOOT
    made = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(made)
    for y, (name, pictures) in enumerate(rows):
        top = MARGIN + y * (SIDE + MARGIN)
        draw.text((MARGIN, top + SIDE // 2 - 8), name, "black", font)
        for x, picture in enumerate(pictures):
            made.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (HEAD + x * (SIDE + MARGIN), top))
    for x, name in enumerate(names):
        words = font.getbbox(name)[2]
        left = HEAD + x * (SIDE + MARGIN) + (SIDE - words) // 2
        draw.text((left, size[1] - FOOT), name, "black", font)
    return made


def main() -> int:
    torch.set_num_threads(1)
    checkpoint = checkpoint_called("sd1")
    pairs = pairs_for(checkpoint, PROMPTS)
    rows = []
    with DemoStudio(checkpoint, int(checkpoint.trained["size"])) as studio:
        for name, settings in (("without", None), (PRESET, {"preset": PRESET})):
            made = studio.make(SAMPLER, STEPS, pairs, settings)
            rows.append((name, [_image(one) for one in made.pictures]))
    made = sheet(rows, [pair.prompt for pair in pairs])
    made.save(PATH, optimize=True)
    print(f"wrote {PATH.relative_to(REPOSITORY)}")
    return 0


def _image(picture: torch.Tensor) -> Image.Image:
    """[3, h, w] in 0..1."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    sys.exit(main())
