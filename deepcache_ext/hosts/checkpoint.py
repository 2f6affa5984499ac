"""What a host says of its checkpoint. Common to all hosts; imports none."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any


def checkpoint_of(model: Any) -> tuple[str, str]:
    """Name, without folder and ending, and the beginning of the file's SHA-256; "" for what the host does not tell."""
    info = getattr(model, "sd_checkpoint_info", None)
    name = getattr(info, "name_for_extra", None) or PurePath(str(getattr(info, "name", None) or "")).stem
    return str(name), str(getattr(info, "shorthash", None) or "")[:10]


def prediction_of(model: Any) -> str:
    """What the checkpoint's UNet says, "eps" or "v". A1111's models tell it themselves, as ldm and sgm have it; Forge's
    model beside the UNet has a `predictor`, that of reForge and Classic a `model_type`.
    """
    inner = getattr(getattr(getattr(model, "forge_objects", None), "unet", None), "model", None)
    kind = getattr(inner, "model_type", None)
    told = (
        getattr(model, "parameterization", None)
        or getattr(getattr(inner, "predictor", None), "prediction_type", None)
        or getattr(kind, "name", kind)
    )
    return "v" if str(told).lower().startswith("v") else "eps"
