"""`python -m bench.pictures`: pictures of docs/which_settings.md, from the demo's trained checkpoint, and tables.

With `--tables` the tables alone, in no time: means from docs/evidence.json, the controls from the settings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from PIL import Image, ImageDraw, ImageFont

from bench.evidence import speed
from bench.evidence.grid import ESTIMATORS, GUIDANCE, Arm, preset, setting, weighted
from bench.evidence.metrics import PSNR_CAP, psnr
from bench.evidence.studio import Studio, checkpoint_called, pairs_for
from bench.tables import markdown
from deepcache_ext.interface.shown import HIRES, UNSET
from deepcache_ext.plan.preview import fraction
from deepcache_ext.settings.fields import FIELDS
from deepcache_ext.settings.fields import PRESETS as PRESETS_SET
from demo.webui.boot import REPOSITORY

DOCS = REPOSITORY / "docs"
EVIDENCE = DOCS / "evidence.json"
PAGES = {
    DOCS / "which_settings.md": ("means",),
    DOCS / "settings.md": ("controls",),
}
"""Pages, and the tables that each has a marked place for."""
GAIN = 10
"""Of the differences."""
LEVELS = 24
"""Of a difference's channels: enough to see, and the file is half as large."""
MARGIN, COLUMNS = 10, 3

PRESETS = (preset("Quality"), preset("Balanced"), preset("Fast"))
USUAL = (*PRESETS, setting(3, 0, "copy"), setting(5, 0, "copy"))


@dataclass(frozen=True)
class Strip:
    """One prompt and seed, the `pair`-th of the evidence: without DeepCache, then with each of `arms`."""

    sampler: str
    steps: int
    pair: int
    arms: tuple[Arm, ...]


SHEETS = {
    "euler": (Strip("Euler", 30, 0, USUAL),),
    "dpmpp-2m-karras": (Strip("DPM++ 2M Karras", 20, 1, USUAL),),
    "euler-a": (Strip("Euler a", 30, 2, USUAL),),
    "wrong": (
        Strip("Euler", 8, 0, (preset("Fast"), setting(3, 0, "copy"))),
        Strip("Euler", 30, 0, (setting(10, 0, "copy"), weighted(5.0))),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A picture [3, h, w] in 0..1, what stands below it, and its amplified difference, which the first has not."""

    picture: torch.Tensor
    lines: tuple[str, ...]
    difference: torch.Tensor | None = None


def label(arm: Arm) -> str:
    """As a user would call it."""
    if arm.is_plain:
        return f"plain 1:{arm.args['cache_interval']}"
    return arm.args["preset"] if "strategy" not in arm.args else arm.name


def cells(studio: Studio, strip: Strip, times: speed.CallTimes) -> list[Cell]:
    pair = pairs_for(studio.checkpoint, strip.pair + 1)[strip.pair]
    asked = (strip.sampler, strip.steps, GUIDANCE, [pair])
    reference = studio.make(*asked)
    head = (f"{strip.sampler}, {strip.steps} steps", "without DeepCache", f"“{pair.prompt}”, seed {pair.seed}")
    found = [Cell(reference.pictures[0], head)]
    for arm in strip.arms:
        made = studio.make(*asked, arm.args)
        gain = times.speed_up(
            reference.calls, made.calls, made.full, made.branch, made.estimator, made.deeper, made.deeper_branch
        )
        likeness = float(psnr(made.pictures, reference.pictures)[0])
        alike = "the same picture" if likeness >= PSNR_CAP else f"{likeness:.1f} dB"
        kinds = ["full"] * made.full + ["medium"] * made.deeper
        kinds += ["cached"] * (made.evaluations - len(kinds))
        lines = (label(arm), f"{gain:.2f}x, {alike}", fraction(kinds))
        found.append(Cell(made.pictures[0], lines, _coarse(made.pictures[0] - reference.pictures[0])))
    return found


def sheet(strips: Sequence[Sequence[Cell]]) -> Image.Image:
    """All cells, `COLUMNS` in a row, on white: each picture, its lines, and below them its difference."""
    rows = [one[i : i + COLUMNS] for one in strips for i in range(0, len(one), COLUMNS)]
    side = rows[0][0].picture.shape[-1]
    font, line = ImageFont.load_default(14), 18
    text = 3 * line + MARGIN
    height = 2 * side + text + MARGIN
    made = Image.new("RGB", (COLUMNS * (side + MARGIN) + MARGIN, len(rows) * (height + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(made)
    for y, row in enumerate(rows):
        top = MARGIN + y * (height + MARGIN)
        for x, cell in enumerate(row):
            left = MARGIN + x * (side + MARGIN)
            made.paste(_image(cell.picture), (left, top))
            for n, words in enumerate(cell.lines):
                draw.text((left + 1, top + side + 4 + n * line), words, "black", font)
            if cell.difference is not None:
                made.paste(_image(cell.difference), (left, top + side + text))
            else:
                words = f"Differences from\nthis picture,\n{GAIN} times as strong"
                draw.text((left + 1, top + side + text), words, "black", font, spacing=5)
    return made


def _image(picture: torch.Tensor) -> Image.Image:
    """[3, h, w] in 0..1."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _coarse(difference: torch.Tensor) -> torch.Tensor:
    """Amplified, in `LEVELS` steps up from black."""
    return (difference.abs() * GAIN).clamp(0, 1).mul(LEVELS).round() / LEVELS


def means(evidence: Mapping[str, Any]) -> str:
    """Of each section at the usual guidance: mean PSNR and speed-up of `USUAL`."""
    lines = []
    for section in evidence["sections"]:
        rows = {row["arm"]: row for row in section["settings"]}
        if section["guidance"] == GUIDANCE:
            told = [_told(rows.get(arm.name)) for arm in USUAL]
            lines.append((f"{section['sampler']}, {section['steps']}", *told))
    return "\n".join(markdown(("sampler, steps", *map(label, USUAL)), lines))


def _told(row: Mapping[str, Any] | None) -> str:
    if row and not _is_of_today(row):
        return NOT_MEASURED
    return f"{row['likeness']['psnr']['mean']:.1f} dB at {row['speed_up']:.2f}x" if row else NONE


def _is_of_today(row: Mapping[str, Any]) -> bool:
    """Whether the row is not of an earlier preset of that name, of which some had medium steps."""
    today = PRESETS_SET.get(str(row["arm"]).removeprefix("preset "))
    return today is None or bool(row.get("deeper")) == bool(today["deeper_branch_id"])


NOT_MEASURED = "not measured"
NONE = "–"


def controls() -> str:
    """Each setting in its own words."""
    lines = []
    for field in FIELDS:
        ticked = isinstance(field.default, bool)
        at_first = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        if field.name in UNSET:
            at_first += f": {'same as first pass' if field.name in HIRES else 'none'}"
        allowed = ("off", "on or off") if ticked else (at_first, field.allowed)
        lines.append((field.label, *allowed, field.info))
    return "\n".join(markdown(("control", "at first", "may be", "what it does"), lines))


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between the marks of its name. Raises `ValueError` where they are not there."""
    for name, made in tables.items():
        marked = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        found = marked.search(page)
        if found is None:
            raise ValueError(f"no place for the table of {name}")
        page = f"{page[: found.start()]}{found[1]}\n{made}\n\n{found[2]}{page[found.end() :]}"
    return page


def renewed(page: Path, evidence: Mapping[str, Any]) -> str:
    """One of `PAGES` with its tables as they are now."""
    made = {"means": means(evidence), "controls": controls()}
    return with_tables(page.read_text(encoding="utf-8"), {name: made[name] for name in PAGES[page]})


def call_times() -> speed.CallTimes:
    """Those of the evidence where they know all branches that are needed, or else counted."""
    wanted = {(branch, estimator) for branch in (0, 5) for estimator in ESTIMATORS}
    times = speed.recorded(EVIDENCE)
    return times if times and speed.covers(times, wanted) else speed.counted((0, 5), ESTIMATORS)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", action="store_true", help="the tables alone, no pictures")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, metavar="FILE", help="default: docs/evidence.json")
    options = parser.parse_args(argv)
    if not options.tables:
        torch.set_num_threads(1)  # as the evidence
        checkpoint, times = checkpoint_called("sd1"), call_times()
        with Studio(checkpoint, int(checkpoint.trained["size"])) as studio:
            for name, strips in SHEETS.items():
                made = sheet([cells(studio, strip, times) for strip in strips])
                path = DOCS / "which_settings" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                made.save(path, optimize=True)
                print(f"wrote {os.path.relpath(path)}", flush=True)
    known = json.loads(options.evidence.read_text(encoding="utf-8"))
    for page in PAGES:
        page.write_text(renewed(page, known), encoding="utf-8")
        print(f"wrote {os.path.relpath(page)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
