"""Pictures to tensors and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFont


def get_font(size: int) -> Any:
    """For text in grids."""
    return ImageFont.load_default(size)


def save_image(
    image: Image.Image,
    path: str,
    basename: str,
    seed: Any = None,
    prompt: Any = None,
    extension: str = "png",
    info: Any = None,
    grid: bool = False,
    p: Any = None,
    **_: Any,
) -> tuple[str, None]:
    """Write under the next free number; the file's name and (the host's text file) None."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"{basename}-{len(list(folder.glob(f'{basename}-*.{extension}'))):04}.{extension}"
    image.save(name)
    return str(name), None


def to_tensor(image: Image.Image) -> torch.Tensor:
    """[1, 3, h, w] in 0..1."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def to_image(sample: torch.Tensor) -> Image.Image:
    """From [3, h, w] in 0..1."""
    return Image.fromarray((sample.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def mask_tensor(mask: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """[h, w] of zeros (keep) and ones (make anew), `size` as PIL has it."""
    return (torch.from_numpy(np.asarray(mask.convert("L").resize(size), dtype=np.float32)) > 127).float()


def resize_image(mode: int, image: Image.Image, width: int, height: int, upscaler_name: Any = None) -> Image.Image:
    """`image` at another size; `mode` (stretch, crop, fill) makes no difference here."""
    method = Image.Resampling.NEAREST if upscaler_name == "Nearest" else Image.Resampling.LANCZOS
    return image.resize((width, height), method)
