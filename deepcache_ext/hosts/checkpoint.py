"""What a host says of its checkpoint. Common to all hosts; imports none."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

ENDINGS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}


def checkpoint_of(model: Any) -> tuple[str, str]:
    """Name, without folder and ending, and the beginning of the file's SHA-256; "" for what the host does not tell."""
    info = getattr(model, "sd_checkpoint_info", None)
    path = PurePath(str(getattr(info, "name", None) or ""))  # SD.Next's may be a folder, with a dot in its name
    name = getattr(info, "name_for_extra", None) or (path.stem if path.suffix.lower() in ENDINGS else path.name)
    return str(name), str(getattr(info, "shorthash", None) or "")[:10]


def prediction_of(model: Any) -> str:
    """What the checkpoint's UNet predicts, "eps" or "v". A1111's models tell it themselves, as ldm and sgm have it. In
    Forge's family what samples decides: the `predictor` of the model beside the UNet, or in reForge and Classic its
    `model_sampling`, by the classes it is mixed of; there the shell of an SDXL checkpoint may say "eps" of v.
    """
    inner = getattr(getattr(getattr(model, "forge_objects", None), "unet", None), "model", None)
    sampling = getattr(inner, "model_sampling", None)
    told: list[Any]
    if sampling is not None:
        told = [kind.__name__ for kind in type(sampling).__mro__]
    else:
        predictor = getattr(inner, "predictor", None)
        told = [getattr(predictor, "prediction_type", None) or getattr(model, "parameterization", None)]
    return "v" if any(str(one).lower().startswith("v") for one in told) else "eps"
