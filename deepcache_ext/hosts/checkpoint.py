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
