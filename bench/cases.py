"""Which architectures are measured, at which sizes and settings; and what others reported for them."""

from __future__ import annotations

from dataclasses import dataclass

from . import unets
from .loops import Setting


@dataclass(frozen=True)
class Architecture:
    """`scale`: pixels to a latent's side. `guided`: two rows a picture, with the prompt and without."""

    title: str
    scale: int
    guided: bool
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Case:
    """One architecture at one size. Sides in pixels."""

    net: str
    height: int
    width: int
    pictures: int = 1
    frames: int = 1

    @property
    def name(self) -> str:
        frames = f"-{self.frames}-frames" if self.frames > 1 else ""
        return f"{self.net}-{self.height}x{self.width}-{self.pictures}{frames}"

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.net]

    @property
    def latent(self) -> tuple[int, int]:
        return self.height // self.architecture.scale, self.width // self.architecture.scale

    @property
    def rows(self) -> int:
        return self.pictures * (2 if self.architecture.guided else 1)

    @property
    def branches(self) -> list[int]:
        return sorted({setting.branch for setting in self.architecture.settings})

    @property
    def in_webui(self) -> bool:
        """Whether there is a UNet of ldm or sgm; else only diffusers has it."""
        return self.net in unets.LAYOUTS


@dataclass(frozen=True)
class Reported:
    """A speed-up that the method's authors reported, and with what (research of 2312.00858 and its repository)."""

    net: str
    interval: int
    branch: int
    speed_up: float
    where: str
    height: int = 0
    pictures: int = 0


SD = (Setting(50, 3, 0), Setting(50, 5, 0), Setting(50, 5, 1))
LDM = tuple(Setting(250, n, 0) for n in (2, 3, 5, 10))
DDPM = tuple(Setting(100, n, 2) for n in (2, 3, 5))

ARCHITECTURES = {
    "sd15": Architecture("SD1.5", 8, True, SD),
    "sd21": Architecture("SD2.1", 8, True, SD),
    "sdxl": Architecture("SDXL", 8, True, SD),
    "sdxl-refiner": Architecture("SDXL refiner", 8, True, SD),
    "svd": Architecture("SVD", 8, True, (Setting(25, 3, 0), Setting(25, 5, 0))),
    "ldm-4-g": Architecture("LDM-4-G", 4, True, LDM),
    "ddpm-cifar10": Architecture("DDPM CIFAR-10", 1, False, DDPM),
    "ddpm-lsun": Architecture("DDPM LSUN", 1, False, DDPM),
    "tiny": Architecture("tiny", 8, True, SD),
}
REPORTED = (
    *(
        Reported("sd21", n, branch, speed_up, f"A5000, {side} px, batch {pictures}", side, pictures)
        for side, pictures, all_three in (
            (512, 1, (2.33, 3.24, 2.35)),
            (512, 8, (2.32, 3.18, 2.20)),
            (1024, 8, (2.24, 3.02, 1.92)),
        )
        for (n, branch), speed_up in zip(((3, 0), (5, 0), (5, 1)), all_three, strict=True)
    ),
    Reported("sd15", 5, 1, 2.11, "512 px, PLMS", 512),
    Reported("sdxl", 3, 0, 2.6, "1024 px, its uncached run without warm-up", 1024),
    Reported("svd", 3, 0, 1.66, "SVD-XT, 1024x576", 576),
    *(Reported("ldm-4-g", n, 0, s, "256 px, DDIM 250", 256) for n, s in ((2, 1.88), (3, 2.65), (5, 4.12), (10, 6.96))),
    *(Reported("ddpm-cifar10", n, 2, s, "DDIM 100", 32) for n, s in ((2, 1.40), (3, 1.61), (5, 1.85))),
    Reported("ddpm-lsun", 5, 2, 1.48, "DDIM 100", 256),
)

ON_GPU = tuple(
    [
        Case(net, side, side, pictures)
        for net in ("sd15", "sd21", "sdxl")
        for side in (512, 768, 1024)
        for pictures in (1, 4, 8)
    ]
    + [Case("sdxl-refiner", 1024, 1024, pictures) for pictures in (1, 4)]
    + [Case("svd", 576, 1024, 1, 14), Case("svd", 576, 1024, 1, 25)]
    + [
        Case(net, side, side, pictures)
        for net, side in (("ldm-4-g", 256), ("ddpm-cifar10", 32), ("ddpm-lsun", 256))
        for pictures in (1, 4, 8)
    ]
)
ON_CPU = (
    Case("ldm-4-g", 256, 256),
    Case("ddpm-cifar10", 32, 32),
    Case("ddpm-cifar10", 32, 32, 8),
    Case("sd15", 256, 256),
    Case("sd21", 256, 256),
    Case("svd", 128, 128, 1, 2),
    Case("sd15", 512, 512),
    Case("sdxl", 256, 256),
    Case("sd21", 512, 512),
    Case("svd", 256, 256, 1, 2),
    Case("ddpm-lsun", 256, 256),
    Case("sdxl-refiner", 256, 256),
    Case("sdxl", 512, 512),
)
"""What a CPU can run, the quick ones first; from 512 px on a case takes many minutes."""

TINY = Case("tiny", 64, 64)
"""Of no use but to try a benchmark."""


def reported(case: Case, interval: int, branch: int) -> tuple[Reported, bool] | None:
    """What others found at this setting, and whether at this size; None where nothing is known."""
    known = [r for r in REPORTED if (r.net, r.interval, r.branch) == (case.net, interval, branch)]
    same = [r for r in known if r.height == case.height and r.pictures in (0, case.pictures)]
    return (same[0], True) if same else (known[0], False) if known else None
