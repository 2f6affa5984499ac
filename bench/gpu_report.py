"""speed-gpu.json and speed-gpu.md of what `bench.gpu` has found so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from deepcache_ext.plan import cost

from . import speed_report
from .calls import PLAIN, Measured
from .tables import markdown


def shares(found: Measured, depth: int) -> dict[str, Any]:
    """Of a full call's time, by branch, beside the share that the engine's plans are made with."""
    full = median(found.full[PLAIN])
    measured = {branch: median(seconds["copy"]) / full for branch, seconds in found.cached.items()}
    foreseen = {branch: cost.share(branch, depth) for branch in measured}
    return {"full_seconds": full, "measured": measured, "foreseen": foreseen, "doubts": found.doubts}


def wrong(state: Mapping[str, Any]) -> Iterator[str]:
    """What was not equal, step by step; a step that was not done is not wrong."""
    for name, step in state["steps"].items():
        for text in step.get("figures", {}).get("wrong", ()):
            yield f"{name}: {text}"


def write(out: Path, state: Mapping[str, Any]) -> str:
    """Both files, each whole or as it was; returns the text."""
    out.mkdir(parents=True, exist_ok=True)
    text = report(state)
    for name, content in (("speed-gpu.json", json.dumps(state, indent=1) + "\n"), ("speed-gpu.md", text)):
        partial = out / f"{name}.part"
        partial.write_text(content, encoding="utf-8")
        partial.replace(out / name)
    return text


def report(state: Mapping[str, Any]) -> str:
    steps = state["steps"]
    done = {name: step["figures"] for name, step in steps.items() if "figures" in step}
    m, errors = state["machine"], list(wrong(state))
    checked = [name for name in done if name.startswith("right")]
    parts = [
        "# Speed and rightness on one card",
        "For whoever wants to know what DeepCache does on a GPU. Written by `make gpu`. Random weights"
        + (", a UNet far too small for any figure here to mean anything" if state["tiny"] else "")
        + ". The UNet's time alone, on a GPU by its own clock; in brackets the 95 % interval.",
        f"{m['name']}, torch {m['torch']}, Python {m['python']}.",
        "## Right",
        "\n".join(f"- **wrong**: {text}" for text in errors)
        or (
            f"{len(checked)} arrangements were compared bit for bit, and equal." if checked else "Nothing compared yet."
        ),
        *(f"- {name.removeprefix('right: ')}" for name in checked),
        *_waits(done),
        *_fast(done),
    ]
    left = [f"- {name}: {step['not_done']}" for name, step in steps.items() if "not_done" in step]
    parts += ["## Not done", "\n".join(left)] if left else []
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def _waits(done: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for name, figures in done.items():
        if name.startswith("waits") and "synchronisations" in figures:
            rows = [(what, str(count)) for what, count in figures["synchronisations"].items()]
            part = figures["comparison_over_cached"]
            text = f"{part['value']:.2%} [{part['low']:.2%}, {part['high']:.2%}]"
            parts += [
                "\n".join(markdown(("synchronisations of ours in a call", "number"), rows, numbers=True)),
                f"One comparison of the conditioning takes {text} of a cached call.",
            ]
        elif name.startswith("waits"):
            rows = [(kind, *(f"{seconds * 1e6:.0f}" for seconds in one.values())) for kind, one in figures.items()]
            head = ("our own Python, µs a call", *next(iter(figures.values())))
            parts.append("\n".join(markdown(head, [row[: len(head)] for row in rows], numbers=True)))
    return ["## Nothing waits", *parts] if parts else []


def _fast(done: Mapping[str, Any]) -> list[str]:
    parts, cases, gains, found_shares = [], [], [], []
    for name, figures in done.items():
        if "gains" in figures:
            values = (f"{g['value']:.2f}x [{g['low']:.2f}, {g['high']:.2f}]" for g in figures["gains"].values())
            gains.append((name.removeprefix("fast: presets, "), *values))
            head = ("20 evaluations, Euler", *figures["gains"])
        elif "compiled_gains" in figures:
            values = [
                f"{g['value']:.2f}x [{g['low']:.2f}, {g['high']:.2f}]" for g in figures["compiled_gains"].values()
            ]
            own = median(figures["seconds"][" 0"]) / median(figures["seconds"]["compiled 0"])
            where, took = name.removeprefix("fast: compiled, "), figures["first_loops_seconds"]
            parts.append(
                f"Interval 3, branch 0, {where}: {values[0]}; {values[1]} of what is compiled, which is {own:.2f}x as "
                f"fast uncached. The first loops took {took:.0f} s, compiling included."
            )
        elif "foreseen" in figures:
            for branch, measured in figures["measured"].items():
                foreseen = figures["foreseen"][branch]
                found_shares.append(
                    (name.removeprefix("fast: shares, "), str(branch), f"{measured:.3f}", f"{foreseen:.3f}")
                )
        elif "flops" in figures:
            cases.append(json.loads(json.dumps(figures)))  # keys as they are after a resumed run
    if gains:
        parts.append("\n".join(markdown(head, gains, numbers=True)))
    if found_shares:
        table = markdown(
            ("share of a full call", "branch", "measured", "foreseen by plans"), found_shares, numbers=True
        )
        parts.append("\n".join(table))
    if cases:
        rows = [row for found in cases for row in speed_report.rows_of(found)]
        doubts = [f"- {found['case']}: {doubt}" for found in cases for doubt in found["doubts"]]
        parts += [*speed_report.speed_table(rows), "\n".join(speed_report.targets(rows))]
        parts += ["Do not trust:\n\n" + "\n".join(doubts)] if doubts else []
    return ["## Fast", *parts] if parts else []
