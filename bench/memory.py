"""Peak memory of what runs between `start` and `read`: torch's on a GPU, the whole process's on Linux without one."""

from __future__ import annotations

from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def start(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    elif (PROCESS / "clear_refs").exists():
        (PROCESS / "clear_refs").write_text("5")


def read(device: torch.device) -> int | None:
    """Bytes, or None where nobody counts them."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not (PROCESS / "clear_refs").exists():
        return None
    return _line(PROCESS / "status", "VmHWM")


def available(device: torch.device) -> int | None:
    """Bytes that could still be taken, or None where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    return _line(meminfo, "MemAvailable") if meminfo.exists() else None


def _line(file: Path, name: str) -> int:
    found = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024
