"""docs/rivals.md: the presets and what else there is, on the laboratory's judging half. Every sentence on who is ahead
follows from the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

from bench.laboratory import ways as plans
from bench.laboratory.results import Results
from bench.laboratory.samplers import SAMPLERS
from bench.laboratory.table import PLAIN, spread, uncached
from bench.tables import markdown
from deepcache_ext.settings.fields import PRESETS
from demo.webui.boot import REPOSITORY
from train.laboratory.networks import JUDGING, Network, of_half

from . import spent, ways
from .ways import FAR

PAGE, FOLDER = REPOSITORY / "docs" / "rivals.md", Path(__file__).parent / "results"
GUIDANCE = 7.0
MEASURED, STEPS = ("Euler", "DPM++ 2M Karras", "Euler a", "UniPC", "DDIM"), (20, 30)

Column = tuple[str, int]
"""Sampler and steps."""

Found = list[tuple[float, float]]
"""Of each network the speed-up and the mean PSNR in dB over its pictures; empty where one of them is missing."""

NOBODY, PLAIN_NAME, FEWER = "The preset", "Plain DeepCache", "Fewer steps"
OURS = {NOBODY, PLAIN_NAME, FEWER}
NAMES = {
    "TaylorSeer 1": "TaylorSeer's forecast, order 1",
    "TaylorSeer 2": "TaylorSeer's forecast, order 2",
    "First Block Cache (Forge)": "First Block Cache, as Forge's extension has it",
    "TeaCache (Forge)": "TeaCache, as Forge's extension has it",
    "SADA": "SADA's step rule",
}
"""On the page, where it is another one than in the results."""

ABOUT = """# The presets beside other ways

For whoever wants to know what else makes pictures sooner, and which of it is nearer to the uncached picture.

Written by `python -m bench.rivals --write`, from what `python -m bench.rivals` measured on {networks} networks of the
laboratory's judging half ([what they are](evidence.md)): guidance 7, 8 pictures a network, the same texts and seeds
for all. The figures are PSNR in dB to the uncached picture of the same sampler and steps, higher is nearer: the mean
over the networks, in brackets the worst network. These are a few small networks that draw 16x16 pixels: take the
figures for a direction, and less than 1 dB for no difference.

- Each rival is written small from its paper, in `bench/rivals/`; what was left out stands there. None is its authors'
  own code.
- The speed-up is counted by what is run, in SD1.5's and SDXL's FLOPs, for all in the same way. A skipped evaluation
  (one request of the sampler) costs nothing; where blocks run to decide, they are counted.
- Each rival is made as fast as the preset of the same cell: its threshold is chosen by the speed-up alone, and each
  picture of a batch decides for itself. Where no run comes within 2% of that speed-up, the figure lies on the line
  between the two runs around it. Where a rival does not come within {far:.0%} on every network, its own speed-up stands
  beside the figure, and if it is slower, it is not compared. The presets' plans changed after the rivals were
  measured, and their speed-ups with them, by up to 5%.
- The presets were chosen on the other half of the networks. There it was also seen that forecasts do better when they
  begin with a tenth of the run in full, as they do here.

The rivals:

- *Plain DeepCache*: every Nth step full, a copy between, branch 0. *Fewer steps*: without any cache; where the sampler
  adds noise they draw another picture.
- *Spectrum* (arXiv 2603.01623): whole evaluations forecast, half by a polynomial over the run, half by a line.
  *TaylorSeer's forecast* (arXiv 2503.06923): the same by differences, of what the UNet says instead of each layer.
- *First Block Cache* and *TeaCache* (arXiv 2411.19108): the rest of the network is reused while a cheap signal stays
  near. TeaCache's polynomial is fitted to an uncached run of other pictures.
- *SADA's step rule* (arXiv 2507.17135), for samplers without fresh noise: evaluations are skipped where the path bends
  back. To reach a wanted speed-up the rule's zero is moved. Without the pruning of tokens.
- *T-GATE* (arXiv 2404.02747): after a gate no guidance, and cross-attention stays as it is. It means to draw another
  picture, not the same one sooner, so PSNR does not do it justice. Cross-attention is counted as {cross}; the table in
  its paper saves more.
"""


PUBLISHED = """Each at its own speed-up. SADA's steps are scaled from 50, T-GATE's from 25. Spectrum's warm-up of 5 and
its windows, and TaylorSeer's interval of 5, stay as published, for 50 steps. 0.1 is the threshold that Forge's
extension begins with.
"""


def networks() -> list[Network]:
    """Those that rivals were measured on."""
    return [one for one in of_half(JUDGING) if (FOLDER / f"{one.name}.json").exists()]


def found(at: Column, key: str | Callable[[Results], tuple[float, float] | None], ours: bool) -> Found:
    """Of all networks; `ours`: from the laboratory's own results. `key` may also say how it follows from these."""
    sampler, steps = at
    values = []
    for network in networks():
        results = Results(network.name) if ours else Results(network.name, FOLDER)
        values.append(key(results) if callable(key) else results.mean(sampler, steps, GUIDANCE, key))
    return [] if None in values else [value for value in values if value is not None]


def at_speed(at: Column, preset: str) -> dict[str, Found]:
    """Every way at a preset's speed-up or as near to it as it comes, the preset first."""
    wanted = PRESETS[preset]["speed_up"]
    own = found(at, f"preset @{wanted:g}", ours=True)
    if not own:
        return {}

    def fewer(results: Results) -> tuple[float, float] | None:
        speed_up = results.mean(at[0], at[1], GUIDANCE, f"preset @{wanted:g}")
        psnr = speed_up and plans.fewer_at(uncached(results, (GUIDANCE, at[1], at[0])), at[1], speed_up[0])
        return (speed_up[0], psnr) if speed_up and psnr else None

    every = {NOBODY: own, PLAIN_NAME: found(at, f"{PLAIN} @{wanted:g}", ours=True), FEWER: found(at, fewer, ours=True)}
    every |= {NAMES.get(name, name): found(at, f"{name} @{wanted:g}", ours=False) for name in ways.RIVALS}
    return {name: values for name, values in every.items() if values}


def off(values: Found, own: Found) -> tuple[float, float]:
    """By how much of the preset's speed-up it is slower, and faster, on the network where it is most so."""
    ratios = [one[0] / other[0] - 1 for one, other in zip(values, own, strict=True)]
    return -min(ratios), max(ratios)


def comparable(every: dict[str, Found]) -> dict[str, Found]:
    """Those that are as fast as the preset, or faster."""
    return {name: values for name, values in every.items() if off(values, every[NOBODY])[0] <= FAR}


def _told(name: str, every: dict[str, Found]) -> str:
    values = every.get(name, [])
    told = spread(psnr for _, psnr in values)
    if values and max(off(values, every[NOBODY])) > FAR:
        told += f" at {fmean(speed for speed, _ in values):.2f}x"
    return told


def columns() -> list[Column]:
    """Those that presets and rivals were measured in."""
    return [at for at in product(MEASURED, STEPS) if len(at_speed(at, "Quality").keys() - OURS) > 0]


def table(preset: str, at: list[Column]) -> list[str]:
    every = [at_speed(column, preset) for column in at]
    lines = []
    for name in dict.fromkeys(name for column in every for name in column):
        speeds = [speed for column in every for speed, _ in column.get(name, [])]
        told = [_told(name, column) for column in every]
        lines.append((name, f"{min(speeds):.2f}x to {max(speeds):.2f}x", *told))
    return markdown(("", "speed-up", *(f"{sampler}, {steps}" for sampler, steps in at)), lines)


def published(at: list[Column]) -> list[str]:
    """As their authors set them, each at its own speed-up."""
    lines = []
    for name in (*ways.INTERVALS, *ways.DEFAULTS):
        values = [found(column, name, ours=False) for column in at]
        told = [f"{spread(p for _, p in v)} at {fmean(s for s, _ in v):.2f}x" if v else "–" for v in values]
        lines.append((f"Plain DeepCache, {name}" if name in ways.INTERVALS else name, *told))
    return markdown(("", *(f"{sampler}, {steps}" for sampler, steps in at)), lines)


def ahead(preset: str, at: list[Column]) -> Iterator[str]:
    """A sentence for each rival that is nearer than the preset anywhere: in the mean, or on the worst network."""
    cells: dict[str, list[str]] = {}
    for column in at:
        own, *others = comparable(at_speed(column, preset)).items()
        mean, worst = _mean(own[1]), _worst(own[1])
        for name, values in others:
            above = _mean(values) - mean, _worst(values) - worst
            if max(above) > 0:
                what = f"{column[0]}, {column[1]} steps (mean {above[0]:+.1f} dB, worst network {above[1]:+.1f})"
                cells.setdefault(name, []).append(what)
    for name, where in cells.items():
        yield f"- **{name}** is nearer than {preset}, in the mean or on the worst network, with {'; '.join(where)}."


def _mean(values: Found) -> float:
    return fmean(psnr for _, psnr in values)


def _worst(values: Found) -> float:
    return min(psnr for _, psnr in values)


def in_short(at: list[Column]) -> Iterator[str]:
    """For each preset, and samplers without and with fresh noise, in how many of the columns it is the nearest, and
    which two come next over all of these.
    """
    for preset, noisy in product(PRESETS, (False, True)):
        every = [comparable(at_speed(column, preset)) for column in at if SAMPLERS[column[0]].fresh_noise == noisy]
        if not every:
            continue
        first = sum(max(column, key=lambda name, column=column: _mean(column[name])) == NOBODY for column in every)
        above = {
            name: fmean(_mean(column[name]) - _mean(column[NOBODY]) for column in every)
            for name in every[0]
            if name != NOBODY and all(name in column for column in every)
        }
        told = sorted(above.items(), key=lambda one: one[1], reverse=True)[:2]
        yield (
            f"- {preset}, samplers that add {'' if noisy else 'no '}noise: the nearest in the mean in {first} of "
            f"{len(every)} columns. Next over all of them: "
            + "; ".join(f"{name} ({by:+.1f} dB)" for name, by in told)
            + "."
        )


def text() -> str:
    at = columns()
    cross = " and ".join(
        f"{shares.cross_attention:.0%} of {'SD1.5' if depth == 12 else 'SDXL'}"
        for depth, shares in spent.SHARES.items()
    )
    lines = [ABOUT.format(far=FAR, cross=cross, networks=len(networks())), "## In short", "", *in_short(at)]
    for preset in PRESETS:
        lines += ["", f"## At the speed of {preset}", "", *table(preset, at), ""]
        lines += list(ahead(preset, at)) or [f"Nothing here is nearer than {preset}."]
    lines += ["", "## As their authors set them", "", PUBLISHED]
    return "\n".join([*lines, *published(at)]) + "\n"


def write() -> None:
    PAGE.write_text(text(), encoding="utf-8")
