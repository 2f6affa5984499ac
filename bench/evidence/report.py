"""The report: docs/evidence.md with its plots, and all figures as JSON. Every sentence follows from the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tables import markdown

from . import plots
from .grid import GUIDANCE, PLAIN
from .metrics import METRICS, MS_WEIGHTS, PSNR_CAP, Mean
from .speed import LAYOUT, ROWS, SIDE, CallTimes
from .summary import Row, Section

DECIMALS = {"psnr": 1, "ssim": 3, "distance": 3}
HEADS = {"psnr": "PSNR, dB", "ssim": "SSIM", "distance": "distance"}
NONE = "–"
FEW = 16
"""Below so many prompts a percentile bootstrap is visibly too sure of itself."""

MEASURES = f"""\
- *PSNR*, higher is closer; at most {PSNR_CAP:g} dB, where pictures are equal.
- *SSIM* with its usual Gaussian window (11 pixels), the mean over the colour channels; 1 where pictures are equal.
- *Distance*: multi-scale gradient magnitude similarity deviation (MS-GMSD) of the brightness at {len(MS_WEIGHTS)}
  scales; 0 where pictures are equal. It needs no trained network and no download. Its limits: it is blind to
  colour and to evenly changed brightness, knows nothing of what a picture shows, and moved edges count as lost ones.
- All three are taken between decoded pictures before they are rounded to 8 bits. They say how near the cached
  picture is to the uncached one, not how good either of them is. The demo's decoder is a fixed, smooth enlargement:
  there is no fine texture to lose, and SSIM's small window sees little but slopes. Its figures, and the distance's,
  compare the rows of these tables; they do not compare with those of other papers.
"""


@dataclass(frozen=True)
class Facts:
    """What was run. `prompts`: of the pairs that were made, in their order. `command`: what makes the report again."""

    checkpoint: str
    trained: bool
    size: int
    pairs_wanted: int
    prompts: Sequence[str]
    quick: bool
    command: str

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "prompts": sorted(set(self.prompts))}


def shown(mean: Mean | None, decimals: int, sign: str = "") -> str:
    if mean is None:
        return NONE
    return f"{mean.mean:{sign}.{decimals}f} [{mean.low:{sign}.{decimals}f}, {mean.high:{sign}.{decimals}f}]"


def _likeness(means: Mapping[str, Mean] | None) -> list[str]:
    return [shown(means[name] if means else None, DECIMALS[name]) for name in METRICS]


def section_lines(section: Section) -> list[str]:
    lines = [f"### {section.task.title} ({section.pairs} pairs)", ""]
    fewer = section.rivals != []
    head = ["setting", "full", "speed-up", "small net", *HEADS.values(), "over plain DeepCache by, dB"]
    if fewer:
        head += [f"fewer steps: {name}" for name in HEADS.values()] + ["ahead by, dB"]
    rows = []
    for row in section.rows:
        ran = f"{row.full} of {row.calls}" + (f" + {row.deeper} deeper" if row.deeper else "")
        cells = [row.arm.name, ran, f"{row.speed_up:.2f}x", f"{row.own:.2f}x"]
        cells += [*_likeness(row.likeness), shown(row.over_copy, 1, "+")]
        if fewer:
            cells += [*_likeness(row.rival), shown(row.ahead, 1, "+")]
        rows.append(cells)
    lines += markdown(head, rows, numbers=True)
    if fewer:
        rows = [
            [row.arm.name, f"{row.speed_up:.2f}x", f"{row.own:.2f}x", *_likeness(row.likeness)]
            for row in section.rivals
        ]
        head = ["steps", "speed-up", "small net", *HEADS.values()]
        lines += ["", "Fewer steps, uncached:", "", *markdown(head, rows, numbers=True)]
    return [*lines, ""]


def in_short(sections: Sequence[Section]) -> list[str]:
    """The presets at all samplers, and where they stand beside fewer steps."""
    rows = []
    for section in sections:
        for row in section.rows:
            if "strategy" not in row.arm.args:
                rows.append(
                    [
                        section.task.title,
                        row.arm.args["preset"],
                        f"{row.speed_up:.2f}x",
                        shown(row.likeness["psnr"], 1),
                        shown(row.over_copy, 1, "+"),
                        shown(row.ahead, 1, "+"),
                    ]
                )
    head = ["sampler", "preset", "speed-up", "PSNR, dB", "over plain DeepCache by, dB", "ahead of fewer steps by, dB"]
    return markdown(head, rows, numbers=True)


def verdicts(sections: Sequence[Section]) -> list[str]:
    """How many settings are ahead of fewer steps, level with them, or behind; in words."""
    lines = []
    for section in sections:
        compared = [row for row in section.rows if row.ahead is not None]
        if not compared:
            continue
        ahead, behind = (
            [row for row in compared if row.ahead is not None and beaten(row.ahead)]
            for beaten in (lambda mean: mean.low > 0, lambda mean: mean.high < 0)
        )
        level = len(compared) - len(ahead) - len(behind)
        lines.append(
            f"- {section.task.title}: of {len(compared)} settings that have a rival "
            f"{len(ahead)} are ahead of it, {len(behind)} behind, {level} level (0 lies in the interval)."
            + _named("Ahead", ahead)
            + _named("Behind", behind)
        )
    return lines


def _named(which: str, rows: Sequence[Row]) -> str:
    """A short list is worth reading here; the tables have the rest."""
    return f" {which}: {'; '.join(row.arm.name for row in rows)}." if 0 < len(rows) <= 6 else ""


def text_of(sections: Sequence[Section], times: CallTimes, facts: Facts, folder: str) -> str:
    pairs = [section.pairs for section in sections]
    few = min(*pairs, len(set(facts.prompts))) < FEW
    weights = "trained weights" if facts.trained else "**random weights: these figures say nothing about real models**"
    lines = [
        "# Likeness against speed",
        "",
        "For whoever wants the figures behind the presets, and how they were made.",
        "",
        f"Made by `{facts.command}`; every figure is also in [evidence.json](evidence.json). "
        f"Rerunning continues where the last run ended.",
        "",
        "On other networks: [the presets](laboratory.md), and [what else makes pictures sooner](rivals.md).",
        "",
        f"- Checkpoint: `{facts.checkpoint}` ({weights}), a small UNet of SD1.5's kind "
        f"with {len(set(facts.prompts))} prompts in this run. One small network: a direction, not a promise for others."
        + (" [Its card](../demo/checkpoint/README.md) says what it was trained on." if facts.trained else ""),
        f"- {facts.size}x{facts.size} pixels, guidance {GUIDANCE:g} where nothing else is said; "
        f"pairs of a prompt and a seed: **{_span(pairs)}** a table ({facts.pairs_wanted} were asked for). "
        "Prompts such as " + ", ".join(f"“{prompt}”" for prompt in list(dict.fromkeys(facts.prompts))[:4]) + ".",
        "- Pictures come from the embedded WebUI (`demo/webui`) through this extension, as a user's would. Each is "
        "compared with the picture without DeepCache of the same prompt, seed, sampler and steps.",
        f"- *Speed-up* is that of the UNet of full-size SD1.5 (`{LAYOUT}` in `bench`), latents {SIDE}x{SIDE}, "
        f"batch {ROWS}: the host's counts of full and cached evaluations, times the time of each kind. "
        f"Call times: {times.in_words()}. "
        "*Small net*: what the small net itself gained, processor time of whole generations.",
        "- *Fewer steps*: the rival, uncached pictures at fewer steps for the same speed-up, held against the same "
        "full-step picture; interpolated evenly in the logarithm of time between the counts of steps in its table. "
        f"{NONE} where the speed-up lies outside of them. *Ahead by*: PSNR above the rival's, picture by picture. "
        "Samplers that add fresh noise have no rival: fewer steps give another picture there.",
        "- *Plain DeepCache*: every Nth evaluation full, the kept feature copied, as published; interpolated in the "
        "same way between " + ", ".join(arm.name.removesuffix(", copy") for arm in PLAIN) + ".",
        "- The strategies' few constants were chosen on the other half of the checkpoint's words "
        "(research/README.md); no prompt of these tables was used for it.",
        "- In brackets: 95 % bootstrap intervals of the mean over pairs; whole prompts are drawn, since pictures of "
        "one prompt are alike. They cover the choice of prompts and seeds, not that of the network."
        + (f" With fewer than {FEW} prompts they are too narrow." if few else ""),
        "",
        MEASURES,
    ]
    if facts.quick:
        lines += ["**A quick look: few pairs and settings.**", ""]
    lines += ["## In short", "", *in_short(sections), "", *verdicts(sections), ""]
    for name in dict.fromkeys(section.task.sampler.name for section in sections):
        lines += [f"## {name}", "", f"![PSNR against speed-up, {name}]({folder}/{plots.file_name(name)})", ""]
        for section in sections:
            if section.task.sampler.name == name:
                lines += section_lines(section)
    return "\n".join(lines).rstrip() + "\n"


def _span(pairs: Sequence[int]) -> str:
    low, high = min(pairs), max(pairs)
    return str(low) if low == high else f"{low} to {high}"


def write(out: Path, sections: Sequence[Section], times: CallTimes, facts: Facts) -> None:
    """evidence.md, evidence.json and evidence/*.png in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(section.task.sampler.name for section in sections):
        its = [section for section in sections if section.task.sampler.name == name]
        plots.draw(its, out / "evidence" / plots.file_name(name))
    figures = {
        "facts": facts.as_json(),
        "call_times": times.as_json(),
        "sections": [one.as_json() for one in sections],
    }
    (out / "evidence.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "evidence.md").write_text(text_of(sections, times, facts, "evidence"), encoding="utf-8")
