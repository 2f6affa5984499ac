"""What a full and a cached call of SD1.5's real UNet cost, measured once or counted, and the speed-up from it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import unets
from bench.__main__ import main as bench

LAYOUT, SIDE, ROWS = "sd15", 64, 2
"""Stable Diffusion 1.5 at 512 x 512 pixels; cond and uncond of one picture in one call."""

BENCH = [
    "--layout",
    LAYOUT,
    "--size",
    str(SIDE),
    "--batch",
    str(ROWS),
    "--dtype",
    "fp32",
    "--pairs",
    "3",
    "--threads",
    "1",
    "--clock",
    "processor",
    "--device",
    "cpu",
]
"""Processor time with one thread: what else the machine does then matters least. Some minutes."""


class NotUsable(ValueError):
    """Call times that say nothing about the speed-up wanted here."""


@dataclass(frozen=True)
class CallTimes:
    """`plain`: a full call without DeepCache; `full`: one whose feature is kept; `cached`: by branch and estimator.

    In seconds, or in FLOPs where `measured` is False; only their ratios count.
    """

    plain: float
    full: float
    cached: Mapping[int, Mapping[str, float]]
    measured: bool
    machine: Mapping[str, Any]

    def speed_up(
        self,
        plain_calls: int,
        calls: int,
        full: int,
        branch: int,
        estimator: str,
        deeper: int = 0,
        deeper_branch: int = 0,
    ) -> float:
        """Of the UNet's time for a picture: `plain_calls` calls without against `calls` with DeepCache, of which
        `deeper` run another branch than the rest of the cached ones.
        """
        cached = self.cached[branch][estimator] if full + deeper < calls else 0.0
        between = self.cached[deeper_branch][estimator] if deeper else 0.0
        spent = full * self.full + deeper * between + (calls - full - deeper) * cached
        return plain_calls * self.plain / spent

    def in_words(self) -> str:
        if not self.measured:
            return (
                "**counted, not measured**: FLOPs of the calls, the attention products included; a machine that runs "
                "the shallow blocks at a lower rate than the deep ones gains less"
            )
        m = self.machine
        clock = "processor time" if m.get("clock") == "processor" else "wall time"
        busy = f", busy with other work (load {m['load']:.1f})" if m["load"] > m["cpus"] + 0.5 else ""
        return (
            f"measured with the real `ldm` class at SD1.5's widths, random weights, fp32, {clock}, "
            f"{m['threads']} thread(s) on {m['name']} ({m['device']}, {m['cpus']} CPUs, torch {m['torch']}){busy}: "
            f"{self.plain:.2f} s a full call; of that a cached one takes "
            + ", ".join(f"{100 * min(times.values()) / self.plain:.1f} %" for _, times in sorted(self.cached.items()))
            + " at branch "
            + ", ".join(str(branch) for branch in sorted(self.cached))
        )

    def as_json(self) -> dict[str, Any]:
        cached = {str(branch): dict(times) for branch, times in self.cached.items()}
        return {
            "plain": self.plain,
            "full": self.full,
            "cached": cached,
            "measured": self.measured,
            "machine": dict(self.machine),
        }

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> CallTimes:
        cached = {int(branch): times for branch, times in known["cached"].items()}
        return cls(known["plain"], known["full"], cached, known["measured"], known["machine"])


def from_bench(path: Path) -> CallTimes:
    """What `python -m bench --json` wrote. Raises `NotUsable` for another layout, or figures it does not trust."""
    known = json.loads(path.read_text(encoding="utf-8"))
    made = known["settings"]
    if (made["layout"], made["size"], made["batch"]) != (LAYOUT, SIDE, ROWS):
        raise NotUsable(
            f"measured for {made['layout']}, latents {made['size']}x{made['size']}, batch {made['batch']}; "
            f"wanted: {LAYOUT}, {SIDE}x{SIDE}, {ROWS}"
        )
    if known["doubts"]:
        raise NotUsable("; ".join(known["doubts"]))
    cached: dict[int, dict[str, float]] = {}
    for one in known["cached"]:
        cached.setdefault(one["branch"], {})[one["estimator"]] = one["seconds"]
    machine = known["machine"] | {"clock": made["clock"]}
    plain, full, apart = known["full"]["plain"], known["full"]["hooked"], known["full"]["ratio"]
    if apart["low"] <= 1 <= apart["high"]:  # not to be told apart: then their difference may not count as a gain
        plain = full = median(known["samples"]["full"]["plain"] + known["samples"]["full"]["hooked"])
    return CallTimes(plain, full, cached, True, machine)


def measure(branches: Sequence[int]) -> CallTimes:
    """Run the benchmark of the calls on this machine's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        bench([*BENCH, "--branches", ",".join(map(str, branches)), "--json", str(path)])
        return from_bench(path)


def counted(branches: Sequence[int], estimators: Sequence[str]) -> CallTimes:
    """By FLOPs, in which the estimators' own few do not show."""
    whole, live = unets.count_flops(LAYOUT, ROWS, SIDE, branches)
    cached = {branch: dict.fromkeys(estimators, float(live[branch])) for branch in branches}
    return CallTimes(float(whole), float(whole), cached, False, {})


def recorded(path: Path) -> CallTimes | None:
    """The `call_times` of an earlier report, if they were measured."""
    known = json.loads(path.read_text(encoding="utf-8")).get("call_times") if path.exists() else None
    return CallTimes.from_json(known) if known and known["measured"] else None


def covers(times: CallTimes, wanted: set[tuple[int, str]]) -> bool:
    return all(estimator in times.cached.get(branch, {}) for branch, estimator in wanted)
