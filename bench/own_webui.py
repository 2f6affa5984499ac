"""`python -m bench --url http://127.0.0.1:7860`: times and likeness through the API of a running WebUI.

Uncached and our presets take turns; the pictures of one seed are compared with the uncached one. The WebUI must have
been started with --api. Never fails because of a time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcache_ext.report.psnr import psnr
from deepcache_ext.settings.fields import PRESETS
from demo.comparison import generate

from .tables import columns
from .timing import Seconds, ratio

UNCACHED = "uncached"
WARM_UP_STEPS = 4


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench --url", description=__doc__)
    add = parser.add_argument
    add("--url", required=True, help="of the WebUI, for instance http://127.0.0.1:7860")
    add("--prompt", default="a photo of a red car in the rain")
    add("--negative", default="", help="negative prompt")
    add("--steps", type=int, default=30, help="default: %(default)s")
    add("--sampler", default="Euler", help="default: %(default)s")
    add("--width", type=int, default=512, help="default: %(default)s")
    add("--height", type=int, default=512, help="default: %(default)s")
    add("--cfg", type=float, default=7, help="default: %(default)s")
    add("--batch", type=int, default=1, help="pictures at a time; the first is compared")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--repeats", type=int, default=3, help="pictures of each kind; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    return parser.parse_args(argv)


def requests(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One request to the API for each kind of picture."""
    request = {
        "prompt": options.prompt,
        "negative_prompt": options.negative,
        "steps": options.steps,
        "sampler_name": options.sampler,
        "width": options.width,
        "height": options.height,
        "cfg_scale": options.cfg,
        "batch_size": options.batch,
        "seed": options.seed,
    }
    settings = {UNCACHED: {"enabled": False}, **{name: {"enabled": True, "preset": name} for name in PRESETS}}
    return {name: request | {"alwayson_scripts": {"deepcache": {"args": [args]}}} for name, args in settings.items()}


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    wanted = requests(options)
    url = options.url.rstrip("/")
    seconds: Seconds = {name: [] for name in wanted}
    pictures, told = {}, {}
    generate(url, wanted[UNCACHED] | {"steps": WARM_UP_STEPS})
    for number in range(options.repeats):
        for name in list(wanted) if number % 2 == 0 else list(wanted)[::-1]:
            print(f"round {number + 1} of {options.repeats}, {name}", file=sys.stderr, flush=True)
            took, pictures[name], info = generate(url, wanted[name])
            seconds[name].append(took)
            told[name] = info.get("extra_generation_params", {}).get("DeepCache", "")
    rows, figures = [], []
    for name, times in seconds.items():
        gain, near = ratio(seconds, UNCACHED, name), psnr(pictures[UNCACHED], pictures[name])
        said = told[name] or ("" if name == UNCACHED else "DeepCache did not run: not a word in the infotext")
        rows.append(
            (
                name,
                f"{sorted(times)[len(times) // 2]:.2f}",
                f"{gain.value:.2f}x",
                f"{gain.low:.2f} to {gain.high:.2f}",
                "" if name == UNCACHED else f"{near:.1f}",
                said,
            )
        )
        figures.append(
            {
                "name": name,
                "seconds": times,
                "speed_up": gain.as_json(),
                "said": said,
                "psnr": None if math.isinf(near) else near,
            }
        )
    print(f"{url}, {options.steps} steps, {options.sampler}, {options.width}x{options.height}; whole requests\n")
    print("\n".join(columns(("", "s", "speed-up", "95 %", "PSNR dB", ""), rows)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"arms": figures}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(told[name] for name in PRESETS) else 1
