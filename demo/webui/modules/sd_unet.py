"""Replacements of the whole UNet (TensorRT and the like). This host has none."""

from __future__ import annotations

from typing import Any

current_unet: Any = None
current_unet_option: Any = None


class SdUnetOption:
    model_name: str | None = None
    label: str | None = None

    def create_unet(self) -> Any:
        raise NotImplementedError


def apply_unet(option: str | None = None) -> None:
    """Nothing to apply."""
