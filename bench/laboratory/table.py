"""Tables of what was measured: worst network and mean over networks, above plain DeepCache and above fewer steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from . import ways
from .results import Results

PLAIN = "uniform copy b0"
"""DeepCache as published, at the same speed."""

Cell = tuple[float, int, str]
"""Guidance, steps, sampler."""


def whole(results: Sequence[Results], cells: Iterable[Cell]) -> str:
    """A line for each cell, speed-up and way that all networks have."""
    lines = [
        f"Networks: {', '.join(one.network for one in results)}. PSNR in dB: mean (worst network).",
        "",
        "| guidance | steps | sampler | speed | way | PSNR | above plain DeepCache | above fewer steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for guidance, steps, sampler in cells:
        for wanted in ways.SPEED_UPS:
            for name in names(results, (guidance, steps, sampler), wanted):
                found = [Compared.of(one, (guidance, steps, sampler), name, wanted) for one in results]
                told = (spread(c.psnr for c in found), spread(c.plain for c in found), spread(c.fewer for c in found))
                lines.append(
                    f"| {guidance:g} | {steps} | {sampler} | {wanted:g}x | {name} | " + " | ".join(told) + " |"
                )
    return "\n".join(lines)


def names(results: Sequence[Results], cell: Cell, wanted: float) -> list[str]:
    """Ways that were measured at that speed on all networks."""
    guidance, steps, sampler = cell
    ending = f" @{wanted:g}"
    first, *others = [one.keys(sampler, steps, guidance) for one in results]
    found = [key for key in first if key.endswith(ending) and all(key in keys for keys in others)]
    return [key.removesuffix(ending) for key in found]


class Compared:
    """One way on one network, dB: its PSNR, and what that is above plain DeepCache and above fewer steps (None where
    those give another picture).
    """

    def __init__(self, psnr: float, plain: float | None, fewer: float | None) -> None:
        self.psnr, self.plain, self.fewer = psnr, plain, fewer

    @classmethod
    def of(cls, results: Results, cell: Cell, name: str, wanted: float) -> Compared:
        guidance, steps, sampler = cell
        found = results.mean(sampler, steps, guidance, f"{name} @{wanted:g}")
        if found is None:
            raise KeyError(f"{results.network}: {name} at {wanted:g}x, {cell}")
        plain = results.mean(sampler, steps, guidance, f"{PLAIN} @{wanted:g}")
        rivals = ways.fewer_at(uncached(results, cell), steps, found[0])
        return cls(
            found[1], None if plain is None else found[1] - plain[1], None if rivals is None else found[1] - rivals
        )


def uncached(results: Results, cell: Cell) -> dict[int, float]:
    """PSNR of fewer uncached steps, by their number."""
    guidance, steps, sampler = cell
    found = {}
    for key in results.keys(sampler, steps, guidance):
        match = re.fullmatch(r"(\d+) steps", key)
        known = results.mean(sampler, steps, guidance, key) if match else None
        if match and known:
            found[int(match[1])] = known[1]
    return found


def spread(values: Iterable[float | None]) -> str:
    """Mean and worst; a dash where nothing is known."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f} ({min(known):.1f})" if known else "–"
