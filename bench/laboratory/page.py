"""docs/laboratory.md and the README's table of presets: how near these come on networks that did not choose them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from bench.tables import markdown
from deepcache_ext.settings.fields import PRESETS
from demo.webui.boot import REPOSITORY
from train.laboratory.networks import CHOOSING, JUDGING, of_half

from .results import Results
from .samplers import SAMPLERS
from .table import Cell, Compared, spread

PAGE, README = REPOSITORY / "docs" / "laboratory.md", REPOSITORY / "README.md"
GUIDANCES, STEPS = (7.0, 3.0), (20, 30)
CELLS: tuple[Cell, ...] = tuple((g, steps, sampler) for g, steps, sampler in product(GUIDANCES, STEPS, SAMPLERS))
HEAD = ("guidance", "steps", "sampler", "preset", "networks", "PSNR", "above plain DeepCache", "above fewer steps")
GOOD_FOR = {"Quality": "final pictures", "Balanced": "everyday work", "Fast": "drafts"}
IN_SHORT: tuple[Cell, ...] = ((7.0, 20, "Euler"), (7.0, 20, "DPM++ 2M Karras"), (7.0, 20, "Euler a"))
"""Of the README's table: what the WebUIs begin with."""
MARKS = ("<!-- presets: python -m bench.laboratory --write -->", "<!-- end of presets -->")

ABOUT = """# On networks that did not choose the rules

For whoever wants to know what the presets are worth on a network that nobody tuned them to.

Written by `python -m bench.laboratory --write`. Eight small networks, made by `make lab`
([cards](../train/laboratory/networks.md)), in two halves that were fixed before anything was measured: rules are
chosen on one half and judged on the other ([how](../research/laboratory.md)). They have 2.8 to 3.8 million parameters
and draw 16x16 pixels: far smaller than yours.

PSNR in dB to the picture without DeepCache, mean of 8 pictures a network: the mean over the networks, in brackets the
worst network. *Plain DeepCache*: every Nth step full and a copy between, at branch 0, made as fast as the preset.
*Fewer steps*: without DeepCache, as many as take as long; with samplers that add noise those draw another picture. The
speed-up is counted by what is run, in SD1.5's and SDXL's FLOPs. What else makes pictures sooner, on the same networks:
[the presets beside other ways](rivals.md).
"""

CHOSEN = """
The half on which the rule was chosen. It says what the rule could do at best, and nothing of what it does elsewhere.
"""


def compared(half: str, cell: Cell, preset: str) -> list[Compared]:
    """The preset on each network of the half that it was measured on."""
    wanted, found = PRESETS[preset]["speed_up"], []
    for network in of_half(half):
        results = Results(network.name)
        guidance, steps, sampler = cell
        if results.mean(sampler, steps, guidance, f"preset @{wanted:g}") is not None:
            found.append(Compared.of(results, cell, "preset", wanted))
    return found


def table(half: str) -> list[str]:
    lines = []
    for guidance, steps, sampler in CELLS:
        for preset in GOOD_FOR:
            found = compared(half, (guidance, steps, sampler), preset)
            if found:
                psnr, plain, fewer = zip(*((c.psnr, c.plain, c.fewer) for c in found), strict=True)
                told = (spread(psnr), _above(plain) or "–", _above(fewer) or "–")
                lines.append((f"{guidance:g}", str(steps), sampler, preset, str(len(found)), *told))
    return markdown(HEAD, lines)


def presets() -> list[str]:
    """The README's table: above plain DeepCache; above fewer steps. Mean, and the worst network in brackets."""
    lines = []
    for preset, use in GOOD_FOR.items():
        told = []
        for cell in IN_SHORT:
            found = compared(JUDGING, cell, preset)
            above = (_above([c.plain for c in found]), _above([c.fewer for c in found]))
            told.append("; ".join(one for one in above if one) or "not measured")
        lines.append((preset, f"{PRESETS[preset]['speed_up']:g}x", use, *told))
    return markdown(("preset", "UNet", "good for", *(sampler for _, _, sampler in IN_SHORT)), lines)


def _above(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):+.1f} ({min(known):+.1f})" if known else ""


def write() -> None:
    parts = [ABOUT, "## The judging half\n", *table(JUDGING), "\n## The choosing half", CHOSEN, *table(CHOOSING)]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")
    README.write_text(with_presets(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_presets(page: str) -> str:
    """The README with today's table. Raises `ValueError` where it has no place for it."""
    before, first, rest = page.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"README.md has no place for the presets: {MARKS[0]} ... {MARKS[1]}")
    return "\n".join([before + first, "", *presets(), "", last + after])
