"""docs/evidence.md, the README's table of presets and docs/which_settings.md's of means: how near the presets come on
networks that did not choose them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import product

from bench.tables import between, markdown
from deepcache_ext.settings.fields import PRESETS
from demo.webui.boot import REPOSITORY
from train.laboratory.networks import CHOOSING, JUDGING, LATER, of_half

from .results import Results
from .samplers import SAMPLERS
from .table import PLAIN, Cell, Compared, spread

PAGE, README = REPOSITORY / "docs" / "evidence.md", REPOSITORY / "README.md"
WHICH = REPOSITORY / "docs" / "which_settings.md"
GUIDANCES, STEPS = (7.0, 3.0), (20, 30)
CELLS: tuple[Cell, ...] = tuple((g, steps, sampler) for g, steps, sampler in product(GUIDANCES, STEPS, SAMPLERS))
HEAD = ("guidance", "steps", "sampler", "preset", "networks", "PSNR", "above plain DeepCache", "above fewer steps")
GOOD_FOR = {"Quality": "final pictures", "Balanced": "everyday work", "Fast": "drafts"}
IN_SHORT: tuple[Cell, ...] = ((7.0, 20, "Euler"), (7.0, 20, "DPM++ 2M Karras"))
WITH_NOISE: Cell = (7.0, 20, "Euler a")
"""Of the README's table: what the WebUIs begin with; and a sampler that adds noise."""
MARKS = {
    README: ("<!-- presets: python -m bench.laboratory --write -->", "<!-- end of presets -->"),
    WHICH: ("<!-- means: python -m bench.laboratory --write -->", "<!-- end of means -->"),
}

ABOUT = """# How near the pictures come

For whoever wants to know what the presets are worth, on networks that nobody tuned them to.

Made by `make evidence`. Ten small networks, trained by `make lab`
([cards](../train/laboratory/networks.md)), in two halves that were fixed before anything was measured: rules are
chosen on one half and judged on the other ([how](../research/laboratory.md)); and three more that came when the rules
stood. They have 2.8 to 3.8 million parameters and draw 16x16 pixels: far smaller than yours.

PSNR in dB to the picture without DeepCache, mean of 8 pictures a network: the mean over the networks, in brackets the
worst network. *Plain DeepCache*: every Nth step full and a copy between, at branch 0, made as fast as the preset.
*Fewer steps*: without DeepCache, as many as take as long; with samplers that add noise those draw another picture. The
speed-up is counted by what is run, in SD1.5's and SDXL's FLOPs. What else makes pictures sooner, on the same networks:
[the presets beside other ways](rivals.md).
"""

CAME_LATER = """
Three networks trained when the rules stood, so nothing was chosen on them; the one of SDXL's shape was measured again
when [one more rule](../research/laboratory.md#what-a-forecast-was-wrong-by) had come. They learn the laboratory's
pictures, from other seeds. Their norms scale 4 to 16 channels together and those of both halves 1 to 4, where SD1.5's
scale 10 and more.
"""

CHOSEN = """
The half on which the rule was chosen. It says what the rule could do at best, and nothing of what it does elsewhere.
"""


SHAPES = """
The judging half again, guidance 7, 20 and 30 steps together: dB above plain DeepCache. A cached step of SDXL's UNet can
afford deeper branches than one of SD1.5's, and its plans gain more.
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


def ahead(half: str, guidance: float = 7.0) -> str:
    """In how many cells, each of a network, a sampler, a number of steps and a preset, the preset is nearer."""
    cells = [(cell, preset) for cell in CELLS for preset in GOOD_FOR if cell[0] == guidance]
    found = [one for cell, preset in cells for one in compared(half, cell, preset)]
    plain = [c.plain for c in found if c.plain is not None]
    fewer = [c.fewer for c in found if c.fewer is not None]
    return (
        f"nearer than plain DeepCache in {sum(one > 0 for one in plain)} of {len(plain)} cases, than fewer steps in "
        f"{sum(one > 0 for one in fewer)} of {len(fewer)}"
    )


def by_layout() -> list[str]:
    """Above plain DeepCache on the judging half, apart for SD1.x's and SDXL's shape. Mean, and the worst network."""
    lines, layouts = [], {"sd1": "SD1.x", "sdxl": "SDXL"}
    for sampler, preset in product(SAMPLERS, GOOD_FOR):
        told: dict[str, list[float]] = {layout: [] for layout in layouts}
        for network in of_half(JUDGING):
            for steps in STEPS:
                results, cell = Results(network.name), (7.0, steps, sampler)
                if results.mean(sampler, steps, 7.0, f"preset @{PRESETS[preset]['speed_up']:g}"):
                    found = Compared.of(results, cell, "preset", PRESETS[preset]["speed_up"])
                    told[network.layout] += [] if found.plain is None else [found.plain]
        lines.append((sampler, preset, *(_above(told[layout]) for layout in layouts)))
    return markdown(("sampler", "preset", *layouts.values()), lines)


def presets() -> list[str]:
    """The README's table, dB: above plain DeepCache and fewer steps, and above plain DeepCache where noise is added.
    Means, and in brackets the worst network and sampler. And what came of networks that came later.
    """
    lines = []
    for preset, use in GOOD_FOR.items():
        found = [one for cell in IN_SHORT for one in compared(JUDGING, cell, preset)]
        noisy = compared(JUDGING, WITH_NOISE, preset)
        told = (_above([c.plain for c in found]), _above([c.fewer for c in found]), _above([c.plain for c in noisy]))
        lines.append((preset, f"{PRESETS[preset]['speed_up']:g}x", use, *told))
    head = ("above plain DeepCache", "above fewer steps", f"with {WITH_NOISE[2]}, above plain DeepCache")
    return [
        *markdown(("preset", "UNet", "good for", *head), lines),
        "",
        *textwrap.wrap(
            f"On three more networks, which came later and chose nothing either, they are {ahead(LATER)}.", 120
        ),
    ]


def _above(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):+.1f} ({min(known):+.1f})" if known else ""


def means() -> list[str]:
    """The table of docs/which_settings.md: PSNR on the judging half, and plain DeepCache's."""
    lines = []
    for guidance, steps, sampler in (cell for cell in CELLS if cell[0] == IN_SHORT[0][0]):
        results = [Results(network.name) for network in of_half(JUDGING)]
        keys = [f"preset @{PRESETS[preset]['speed_up']:g}" for preset in GOOD_FOR]
        keys += [f"{PLAIN} @{speed_up:g}" for speed_up in AS_FAST]
        known = [[one.mean(sampler, steps, guidance, key) for one in results] for key in keys]
        told = [spread(one[1] for one in found if one) for found in known if all(found)]
        if len(told) == len(keys):
            lines.append((f"{sampler}, {steps}", *told))
    return markdown(("sampler, steps", *GOOD_FOR, *(f"plain DeepCache, {one:g}x" for one in AS_FAST)), lines)


AS_FAST = (2.0, 2.6)
"""As Balanced and Fast."""


def write() -> None:
    judged = f"At guidance 7 the presets are {ahead(JUDGING)}.\n"
    parts = [ABOUT, "## The judging half\n", judged, *table(JUDGING), "\n## By the UNet's layout", SHAPES, *by_layout()]
    parts += ["\n## Networks that came later", CAME_LATER, f"The presets are {ahead(LATER)}.\n", *table(LATER)]
    parts += ["\n## The choosing half", CHOSEN, *table(CHOOSING)]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")
    for path, made in ((README, presets()), (WHICH, means())):
        page = path.read_text(encoding="utf-8")
        path.write_text(between(page, *MARKS[path], "\n".join(made)), encoding="utf-8")
