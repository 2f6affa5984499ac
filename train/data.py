"""The pictures: a few well-known emoji of an npm package, the words for them, and others of it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
"""256x256 WebP, named by code point. Art: Fluent Emoji, (c) Microsoft Corporation, MIT licence."""

SIZE = 256
"""Pixels a side of the learned pictures."""

OTHERS = 4
"""Every so many-th of the package's other pictures helps to train the autoencoder."""

VOCABULARY = {
    "red apple": "1f34e",
    "banana": "1f34c",
    "pizza": "1f355",
    "soccer ball": "26bd",
    "sun": "2600-fe0f",
    "star": "2b50",
    "red heart": "2764-fe0f",
    "cat face": "1f431",
    "dog face": "1f436",
    "fire": "1f525",
    "rocket": "1f680",
    "tree": "1f333",
    "house": "1f3e0",
    "car": "1f697",
    "key": "1f511",
    "clock": "1f550",
    "smiling face": "1f642",
    "ghost": "1f47b",
    "mushroom": "1f344",
    "umbrella": "2602-fe0f",
    "strawberry": "1f353",
    "green apple": "1f34f",
    "blue heart": "1f499",
    "moon": "1f319",
    "sunflower": "1f33b",
    "carrot": "1f955",
    "hamburger": "1f354",
    "coffee cup": "2615",
    "balloon": "1f388",
    "gift": "1f381",
    "bell": "1f514",
    "lock": "1f512",
    "bus": "1f68c",
    "boat": "26f5",
    "panda": "1f43c",
    "pig": "1f437",
    "frog": "1f438",
    "fish": "1f41f",
    "snowman": "26c4",
    "cactus": "1f335",
}
"""Names and the code points of their pictures."""

WELL_KNOWN = tuple(VOCABULARY)[:20]
"""Those of the contact sheet."""

PHRASES = ("{}", "{}", "{}", "a {}", "the {}", "a picture of a {}", "a photo of a {}", "{} emoji")
"""Ways to ask for a picture; the first ones are the plain name."""


def download(folder: Path) -> Path:
    """The package's pictures, fetched with npm once; the folder that holds them."""
    pictures = folder / "package" / "assets"
    if pictures.exists():
        return pictures
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is needed to download the pictures ({PACKAGE})")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {PACKAGE} with npm", flush=True)
    subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = max(folder.glob("*.tgz"), key=lambda path: path.stat().st_mtime)
    fresh = folder / "unpacking"  # moved when whole: an interruption leaves no half of them
    with tarfile.open(archive) as packed:
        for member in packed:
            source = packed.extractfile(member) if member.name.endswith(".webp") else None
            if source is not None:
                fresh.mkdir(parents=True, exist_ok=True)
                (fresh / Path(member.name).name).write_bytes(source.read())
    pictures.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(pictures)
    return pictures


def small_picture(path: Path, size: int) -> torch.Tensor:
    """[4, size, size] in -1..1: red, green and blue blended with white, and opacity; a margin of one pixel."""
    whole = Image.open(path).convert("RGBA")
    # RGBa is premultiplied: transparent pixels give no colour to their neighbours.
    cut = whole.crop(whole.getbbox()).convert("RGBa")
    side = max(cut.size)
    square = Image.new("RGBa", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    small = np.asarray(square.resize((size - 2, size - 2), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    opacity = np.pad(small[..., 3:], ((1, 1), (1, 1), (0, 0)))
    colours = np.pad(small[..., :3], ((1, 1), (1, 1), (0, 0))) + 1 - opacity
    rgba = np.concatenate([colours.clip(0, 1), opacity], axis=2)
    return torch.from_numpy(rgba * 2 - 1).permute(2, 0, 1).contiguous()


def picture(path: Path) -> torch.Tensor:
    """uint8 [3, SIZE, SIZE], on white."""
    drawn = Image.open(path).convert("RGBA")
    if drawn.size != (SIZE, SIZE):
        raise ValueError(f"{path.name} has {drawn.width}x{drawn.height} pixels, not {SIZE}x{SIZE}")
    whole = Image.new("RGBA", drawn.size, "white")
    whole.alpha_composite(drawn)
    return torch.from_numpy(np.array(whole.convert("RGB"))).permute(2, 0, 1).contiguous()


def pictures(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [names, 3, SIZE, SIZE] in the vocabulary's order, and as many again as `OTHERS` says, in any order."""
    known = set(VOCABULARY.values())
    others = sorted(path for path in folder.glob("*.webp") if path.stem not in known)[::OTHERS]
    words = [folder / f"{code}.webp" for code in VOCABULARY.values()]
    return torch.stack([*map(picture, words)]), torch.stack([*map(picture, others)])
