"""`python -m bench.pictures`: pictures of docs/which_settings.md, from the demo's trained checkpoint, and the table of
controls in docs/settings.md. With `--tables` the table alone, in no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from bench.demo_studio import DemoStudio, checkpoint_called, pairs_for
from bench.likeness import PSNR_CAP, psnr
from bench.tables import between, markdown
from deepcache_ext.interface.shown import HIRES, UNSET
from deepcache_ext.plan.preview import fraction
from deepcache_ext.settings.fields import FIELDS
from demo.webui.boot import REPOSITORY

DOCS = REPOSITORY / "docs"
SETTINGS = DOCS / "settings.md"
GAIN = 10
"""Of the differences."""
LEVELS = 24
"""Of a difference's channels: enough to see, and the file is half as large."""
SIDE, MARGIN, COLUMNS = 192, 10, 3
"""Pixels: of a picture as shown (a sheet of whole ones would be half a megabyte), and between pictures."""


@dataclass(frozen=True)
class Arm:
    """One way to make a picture sooner: the extension's `args`, and what a user would call it."""

    name: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def preset(name: str) -> Arm:
    return Arm(name, {"preset": name})


def plain(interval: int) -> Arm:
    """DeepCache as published: every Nth step full, copies in between."""
    return Arm(f"plain 1:{interval}", {"cache_interval": interval, "estimator": "copy"})


USUAL = (preset("Quality"), preset("Balanced"), preset("Fast"), plain(3), plain(5))


@dataclass(frozen=True)
class Strip:
    """One prompt and seed, the `pair`-th of the demo's: without DeepCache, then with each of `arms`."""

    sampler: str
    steps: int
    pair: int
    arms: tuple[Arm, ...]


SHEETS = {
    "euler": (Strip("Euler", 30, 0, USUAL),),
    "dpmpp-2m-karras": (Strip("DPM++ 2M Karras", 20, 1, USUAL),),
    "euler-a": (Strip("Euler a", 30, 2, USUAL),),
    "wrong": (
        Strip("Euler", 8, 0, (preset("Fast"), plain(3))),
        Strip("Euler", 30, 0, (plain(10), Arm("weighted 5x", {"speed_up": 5.0}))),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A picture [3, h, w] in 0..1, what stands below it, and its amplified difference, which the first has not."""

    picture: torch.Tensor
    lines: tuple[str, ...]
    difference: torch.Tensor | None = None


def cells(studio: DemoStudio, strip: Strip) -> list[Cell]:
    pair = pairs_for(studio.checkpoint, strip.pair + 1)[strip.pair]
    reference = studio.make(strip.sampler, strip.steps, [pair])
    head = (f"{strip.sampler}, {strip.steps} steps", "without DeepCache", f"“{pair.prompt}”, seed {pair.seed}")
    found = [Cell(_shown(reference.pictures[0]), head)]
    for arm in strip.arms:
        made = studio.make(strip.sampler, strip.steps, [pair], arm.args)
        likeness = float(psnr(made.pictures, reference.pictures)[0])
        alike = "the same picture" if likeness >= PSNR_CAP else f"{likeness:.1f} dB"
        lines = (arm.name, f"{made.speed_up:.2f}x, {alike}", fraction(made.kinds))
        difference = _coarse(_shown((made.pictures[0] - reference.pictures[0]).abs()))
        found.append(Cell(_shown(made.pictures[0]), lines, difference))
    return found


def sheet(strips: Sequence[Sequence[Cell]]) -> Image.Image:
    """All cells, `COLUMNS` in a row, on white: each picture, its lines, and below them its difference."""
    rows = [one[i : i + COLUMNS] for one in strips for i in range(0, len(one), COLUMNS)]
    side = rows[0][0].picture.shape[-1]
    font, line = ImageFont.load_default(14), 18
    text = 3 * line + MARGIN
    height = 2 * side + text + MARGIN
    made = Image.new("RGB", (COLUMNS * (side + MARGIN) + MARGIN, len(rows) * (height + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(made)
    for y, row in enumerate(rows):
        top = MARGIN + y * (height + MARGIN)
        for x, cell in enumerate(row):
            left = MARGIN + x * (side + MARGIN)
            made.paste(_image(cell.picture), (left, top))
            for n, words in enumerate(cell.lines):
                draw.text((left + 1, top + side + 4 + n * line), words, "black", font)
            if cell.difference is not None:
                made.paste(_image(cell.difference), (left, top + side + text))
            else:
                words = f"Differences from\nthis picture,\n{GAIN} times as strong"
                draw.text((left + 1, top + side + text), words, "black", font, spacing=5)
    return made


def _image(picture: torch.Tensor) -> Image.Image:
    """[3, h, w] in 0..1."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _shown(picture: torch.Tensor) -> torch.Tensor:
    """[3, h, w] -> [3, SIDE, SIDE]."""
    return functional.interpolate(picture[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]


def _coarse(difference: torch.Tensor) -> torch.Tensor:
    """Amplified, in `LEVELS` steps up from black."""
    return (difference * GAIN).clamp(0, 1).mul(LEVELS).round() / LEVELS


def controls() -> str:
    """Each setting in its own words."""
    lines = []
    for field in FIELDS:
        ticked = isinstance(field.default, bool)
        at_first = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        if field.name in UNSET:
            at_first += f": {'same as first pass' if field.name in HIRES else 'none of your own'}"
        allowed = ("off", "on or off") if ticked else (at_first, field.allowed)
        lines.append((field.label, *allowed, field.info))
    return "\n".join(markdown(("control", "at first", "may be", "what it does"), lines))


def with_controls(page: str) -> str:
    """docs/settings.md with the table as it is now."""
    return between(page, "<!-- controls: python -m bench.pictures --tables -->", "<!-- end of controls -->", controls())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", action="store_true", help="the tables alone, no pictures")
    options = parser.parse_args(argv)
    if not options.tables:
        torch.set_num_threads(1)
        checkpoint = checkpoint_called("sd1")
        with DemoStudio(checkpoint, int(checkpoint.trained["size"])) as studio:
            for name, strips in SHEETS.items():
                made = sheet([cells(studio, strip) for strip in strips])
                path = DOCS / "which_settings" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                made.save(path, optimize=True)
                print(f"wrote {os.path.relpath(path)}", flush=True)
    SETTINGS.write_text(with_controls(SETTINGS.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {os.path.relpath(SETTINGS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
