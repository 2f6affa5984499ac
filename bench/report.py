"""The figures in words: tables with the targets beside what was measured, and the same as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from .calls import BY_HAND, HOOKED, PLAIN, Measured
from .overhead import Overhead
from .tables import columns
from .timing import Ratio, ratio

CACHED_TARGET, FULL_TARGET, PYTHON_TARGET = 1.03, 1.01, 150e-6
INTERVALS = (2, 3, 5)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    processor = platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        "device": device.type,
        "name": name,
        "cpus": usable,
        "threads": torch.get_num_threads(),
        "load": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def verdict(value: float, target: float, unit: str = "", scale: float = 1.0, decimals: int = 3) -> str:
    """`target at most 1.030: reached`."""
    text = f"target at most {target * scale:.{decimals}f}{unit}: "
    if value <= target:
        return text + "reached"
    return text + f"missed by {(value - target) * scale:.{decimals}f}{unit}"


def verdict_of(found: Ratio, target: float) -> str:
    """The verdict on a ratio, with a word on whether its interval would allow the other one."""
    unsure = found.low <= target < found.high
    return verdict(found.value, target) + (" (not certain: see the interval)" if unsure else "")


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def interval_text(found: Ratio) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def cached_section(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            str(f["branch"]),
            f["estimator"],
            ms(f["seconds"]),
            ms(f["by_hand"]),
            f"{f['ratio'].value:.3f}",
            interval_text(f["ratio"]),
            str(f["ratio"].samples),
            verdict_of(f["ratio"], CACHED_TARGET),
        )
        for f in figures
    ]
    head = ("branch", "estimator", "cached ms", "by hand ms", "ratio", "95 %", "rounds", "")
    return ["1. Cached call in a session against the live blocks by hand", *columns(head, rows)]


def full_section(measured: Measured, found: Ratio) -> list[str]:
    row = (
        ms(median(measured.full[HOOKED])),
        ms(median(measured.full[PLAIN])),
        f"{found.value:.3f}",
        interval_text(found),
        str(found.samples),
        verdict_of(found, FULL_TARGET),
    )
    head = ("hooked ms", "plain ms", "ratio", "95 %", "rounds", "")
    return ["2. Full call that keeps its feature against the same call, no session", *columns(head, [row])]


def python_section(overhead: Mapping[str, Overhead]) -> list[str]:
    parts = list(next(iter(overhead.values())).parts)
    rows = [
        (
            kind,
            f"{o.total * 1e6:.0f}",
            *(f"{o.parts[part] * 1e6:.0f}" for part in parts),
            f"{(o.total - sum(o.parts.values())) * 1e6:.0f}",
            verdict(o.total, PYTHON_TARGET, " us", 1e6, 0),
        )
        for kind, o in overhead.items()
    ]
    lines = [
        "3. Our own Python, microseconds a call (blocks do nothing; at work: they compute)",
        *columns(("call", "in all", *parts, "rest", ""), rows),
    ]
    for kind, o in overhead.items():
        if o.hot:
            lines.append(f"  where a {kind} call's own time goes (profiler):")
        lines += [f"    {share:5.1%}  {where}" for where, share in o.hot]
    return lines


def speed_up(full: float, cached: float, interval: int) -> float:
    """How much faster a loop becomes with one full call in `interval`."""
    return interval * full / (full + (interval - 1) * cached)


def gain_section(figures: Sequence[Mapping[str, Any]], full: float) -> list[str]:
    rows = []
    for f in figures:
        row = [str(f["branch"]), f["estimator"], ms(full), ms(f["seconds"])]
        for n in INTERVALS:
            gain = f["gain"][n]
            row.append(f"{gain['measured']:.2f}x of {gain['limit']:.2f}x = {gain['share']:.0%}")
        rows.append((*row, ""))
    head = ("branch", "estimator", "full ms", "cached ms", *(f"interval {n}" for n in INTERVALS), "")
    return ["4. Speed-up of the loop: measured, of what the FLOPs allow, share reached", *columns(head, rows)]


def memory_section(kept: Mapping[int, Mapping[str, int]]) -> list[str]:
    names = list(next(iter(kept.values())))
    rows = [(str(branch), *(f"{kept[branch][name] / 2**20:.1f}" for name in names), "") for branch in kept]
    return ["5. Kept features, MiB", *columns(("branch", *names, ""), rows)]


class Report:
    """All figures of a run."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        measured: Measured,
        flops: tuple[int, Mapping[int, int]],
        overhead: Mapping[str, Overhead],
        device: torch.device,
    ) -> None:
        self.settings, self.measured, self.overhead, self.flops = settings, measured, overhead, flops
        self.machine = machine(device)
        self.full = median(measured.full[HOOKED])
        self.full_ratio = ratio(measured.full, HOOKED, PLAIN)
        self.cached = [
            self._cached(branch, name, samples)
            for branch, samples in measured.cached.items()
            for name in samples
            if name != BY_HAND
        ]

    def _cached(self, branch: int, name: str, samples: dict[str, list[float]]) -> dict[str, Any]:
        whole, live = self.flops
        cached, gain = median(samples[name]), {}
        # A loop without caching has plain full calls; one with caching has hooked ones.
        for n in INTERVALS:
            reached = n * median(self.measured.full[PLAIN]) / (self.full + (n - 1) * cached)
            limit = speed_up(whole, live[branch], n)
            gain[n] = {"measured": reached, "limit": limit, "share": reached / limit}
        return {
            "branch": branch,
            "estimator": name,
            "seconds": cached,
            "by_hand": median(samples[BY_HAND]),
            "ratio": ratio(samples, name, BY_HAND),
            "gain": gain,
        }

    def text(self) -> str:
        m, s = self.machine, self.settings
        head = [
            f"{s['layout']}: latents {s['size']}x{s['size']}, batch {s['batch']}, {s['dtype']}, "
            f"{s['attention']} attention; random weights; {s['clock']} time",
            f"on {m['name']} ({m['device']}), {m['cpus']} CPUs, {m['threads']} threads, "
            f"load {m['load']:.1f}, torch {m['torch']}, Python {m['python']} on {m['system']}",
        ]
        if m["device"] == "cpu" and m["load"] > m["cpus"] + 0.5:
            head.append("The machine is busy with other work as well: trust the ratios more than the times.")
        sections = [
            head,
            cached_section(self.cached),
            full_section(self.measured, self.full_ratio),
            python_section(self.overhead),
            gain_section(self.cached, self.full),
            memory_section(self.measured.kept_bytes),
        ]
        doubts = [f"  {doubt}" for doubt in self.measured.doubts]
        sections.append(
            ["DO NOT TRUST these figures:", *doubts]
            if doubts
            else [
                "Checked: every call ran as it was meant to; full calls, and cached calls on a copy, gave bit "
                "for bit what the forwards by hand give."
            ]
        )
        return "\n\n".join("\n".join(section) for section in sections)

    def as_json(self) -> dict[str, Any]:
        whole, live = self.flops
        return {
            "machine": self.machine,
            "settings": dict(self.settings),
            "targets": {"cached": CACHED_TARGET, "full": FULL_TARGET, "python_seconds": PYTHON_TARGET},
            "cached": [{**f, "ratio": f["ratio"].as_json()} for f in self.cached],
            "full": {
                "hooked": self.full,
                "plain": median(self.measured.full[PLAIN]),
                "ratio": self.full_ratio.as_json(),
            },
            "python": {kind: asdict(overhead) for kind, overhead in self.overhead.items()},
            "flops": {"full": whole, "live": dict(live)},
            "kept_bytes": self.measured.kept_bytes,
            "samples": {"full": self.measured.full, "cached": self.measured.cached},
            "doubts": self.measured.doubts,
        }
