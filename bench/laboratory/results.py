"""What was measured on each network, kept as JSON beside this module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


class Results:
    """Of one network: for each cell (sampler, steps, guidance) and way its speed-up and the PSNR in dB of each picture
    to the uncached one.
    """

    def __init__(self, network: str, folder: Path = FOLDER) -> None:
        self.network, self.path = network, folder / f"{network}.json"
        self.cells: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.cells = json.loads(self.path.read_text(encoding="utf-8"))

    def has(self, sampler: str, steps: int, guidance: float, key: str, count: int) -> bool:
        """Whether it was measured with at least so many pictures."""
        found = self.cells.get(_cell(sampler, steps, guidance), {}).get(key)
        return found is not None and len(found["psnr"]) >= count

    def add(
        self, sampler: str, steps: int, guidance: float, key: str, speed_up: float, likeness: Sequence[float]
    ) -> None:
        cell = self.cells.setdefault(_cell(sampler, steps, guidance), {})
        cell[key] = {"speed_up": speed_up, "psnr": list(likeness)}

    def mean(self, sampler: str, steps: int, guidance: float, key: str) -> tuple[float, float] | None:
        """Speed-up and mean PSNR over the pictures."""
        found = self.cells.get(_cell(sampler, steps, guidance), {}).get(key)
        return None if found is None else (found["speed_up"], sum(found["psnr"]) / len(found["psnr"]))

    def keys(self, sampler: str, steps: int, guidance: float) -> list[str]:
        return list(self.cells.get(_cell(sampler, steps, guidance), {}))

    def save(self) -> None:
        """A way on a line, so that two states can be told apart."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cells = [
            f"{json.dumps(name)}: {{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in cell.items()) + "}"
            for name, cell in self.cells.items()
        ]
        fresh = self.path.with_suffix(".new")
        fresh.write_text("{" + ",\n".join(cells) + "}\n", encoding="utf-8")
        fresh.replace(self.path)


def _cell(sampler: str, steps: int, guidance: float) -> str:
    return f"{sampler}, {steps} steps, guidance {guidance:g}"
