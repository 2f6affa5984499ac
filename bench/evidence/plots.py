"""Likeness against speed-up, a picture for each sampler; told apart without colour."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .summary import Row, Section

SHAPES = {0: "o", 1: "s", 2: "^"}


def file_name(sampler: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", sampler.lower().replace("++", "pp")).strip("-") + ".png"


def draw(sections: Sequence[Section], path: Path) -> None:
    """The sections of one sampler, three beside each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, rows = min(3, len(sections)), math.ceil(len(sections) / 3)
    figure = Figure(figsize=(4.6 * columns + 0.6, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, section in enumerate(sections):
        axes = figure.add_subplot(rows, columns, i + 1, sharey=figure.axes[0] if i else None)
        _panel(axes, section)
        if i % columns == 0:
            axes.set_ylabel("PSNR to the uncached picture, dB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _panel(axes: Any, section: Section) -> None:
    if section.rivals:
        curve = [row.likeness["psnr"].mean for row in section.rivals]
        axes.plot([row.speed_up for row in section.rivals], curve, "k--x", linewidth=1.2, label="fewer steps")
        for row in section.rivals:
            _note(axes, row, str(row.arm.fewer), (0, -11))
    seen: set[str] = set()
    for row in sorted(section.rows, key=lambda row: _style(row)[0]):
        label, style = _style(row)
        psnr = row.likeness["psnr"]
        axes.errorbar(
            row.speed_up,
            psnr.mean,
            [[psnr.mean - psnr.low], [psnr.high - psnr.mean]],
            color="0.2",
            capsize=2,
            linewidth=0.9,
            label=None if label in seen else label,
            **style,
        )
        seen.add(label)
        args = row.arm.args
        if "strategy" not in args:
            _note(axes, row, args["preset"], (6, 5))
        elif (args.get("cache_branch_id"), args["estimator"]) == (0, "copy") and "cache_interval" in args:
            _note(axes, row, f"N={args['cache_interval']}", (7, 4))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xticks([1, 1.5, 2, 3, 4, 5])
    axes.minorticks_off()
    axes.set_xlabel("speed-up of SD1.5's UNet")
    axes.set_title(f"{section.task.title}, {section.pairs} pairs", fontsize=10)
    axes.grid(color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)


def _note(axes: Any, row: Row, text: str, offset: tuple[int, int]) -> None:
    at = (row.speed_up, row.likeness["psnr"].mean)
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=7, color="0.25")


def _style(row: Row) -> tuple[str, dict[str, Any]]:
    """Uniform: filled forecast, hollow copy, the shape tells the branch; weighted: crosses; a preset is a star."""
    args = row.arm.args
    if "strategy" not in args:
        star = {"fmt": "*", "markersize": 14, "zorder": 1}
        return "presets", {**star, "markerfacecolor": "white", "markeredgecolor": "k"}
    branch, estimator = args.get("cache_branch_id", 0), args["estimator"]
    if args["strategy"] != "uniform":
        usual = args["strategy"] == "weighted" and (branch, estimator) == (0, "auto")
        return (
            ("weighted", {"fmt": "P", "markersize": 7, "markerfacecolor": "0.2", "markeredgecolor": "k"})
            if usual
            else (row.arm.name, {"fmt": "1", "markersize": 7, "markeredgecolor": "k"})
        )
    fill = "0.2" if estimator == "forecast" else "white"
    return f"uniform, branch {branch}, {estimator}", {
        "fmt": SHAPES.get(branch, "D"),
        "markersize": 6,
        "markerfacecolor": fill,
        "markeredgecolor": "k",
    }
