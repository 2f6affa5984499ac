"""`python -m bench.pipelines`: what caching saves of the UNet's time in every kind of pipeline that the tests build.

Real pipelines of diffusers with random weights: the published layouts with all widths divided alike, so that the
outermost blocks have `--width` channels. Plain and cached runs take turns in one process, on one thread; the
processor time of the UNet's calls counts, our hooks included, and nothing else of the pipeline. Prints a Markdown
table with the ratios of the medians and their 95 % intervals. Each cached run is held against its plan, and its
picture against another cached run's: what does not fit stands in the last column. Never fails because of a time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch

from deepcache_ext import DeepCache
from deepcache_ext.python.deepcache import Report
from tests import diffusers_pipelines as pipelines
from tests.diffusers_unets import LAYOUTS

from . import twins, unets
from .report import machine, ms
from .tables import markdown, row
from .timing import Clock, Rival, ratio, rounds

SIDE = 32
"""Of the latents; DDPM's pictures are as large."""
SCALE, FRAMES = 4, 4
"""The tests' pictures have latents of 8 x 8."""
PLAIN, CACHED = "plain", "cached"
INTERVAL = {"cache_interval": 3, "cache_branch_id": 0, "estimator": "copy"}
BALANCED = {"preset": "Balanced"}
PUBLISHED = {
    name: twins.NETS[net].options
    for name, net in {
        "sd1": "sd15",
        "inpaint": "sd15",
        "instruct-pix2pix": "sd15",
        "sd2": "sd21",
        "sdxl": "sdxl",
        "refiner": "sdxl-refiner",
        "svd": "svd",
        "ddpm": "ddpm-cifar10",
    }.items()
} | {
    # The class's defaults but for the heads: here `attention_head_dim` is the width of one, and `transformer_in` has
    # eight of them whatever the UNet's width; 16 keeps it in proportion.
    "3d": {"layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 16},
}
OURS = ("in_channels", "cross_attention_dim", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
"""What fits the tests' text encoders and pipelines, and stays."""


@dataclass(frozen=True)
class Case:
    """A pipeline of `tests.diffusers_pipelines` and how it is cached. `control`: its control network counts too.
    `compiled`: its UNet runs compiled, cached or not.
    """

    pipeline: str
    remark: str = ""
    settings: dict[str, Any] = field(default_factory=lambda: INTERVAL)
    steps: int = 6
    control: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        return self.pipeline + (f", {self.remark}" if self.remark else "")


CASES = {
    case.name: case
    for case in [
        *map(Case, pipelines.BUILD),
        Case("StableDiffusionControlNet", "control network counted", control=True),
        *(Case(f"StableDiffusion{xl}", "Balanced, 30 evaluations", BALANCED, 30) for xl in ("", "XL")),
        *(Case(f"StableDiffusion{xl}", "compiled", compiled=True) for xl in ("", "XL")),
        Case("StableDiffusion", "compiled, Balanced, 30 evaluations", BALANCED, 30, compiled=True),
    ]
}


def narrowed(layout: str, width: int) -> dict[str, Any]:
    """The published options of a layout with `width` channels outermost, and as many heads fewer."""
    options = dict(PUBLISHED[layout])
    widths = options["block_out_channels"]
    options["block_out_channels"] = tuple(each * width // widths[0] for each in widths)
    for key in ("attention_head_dim", "num_attention_heads"):  # both mean the number of heads
        heads = options.get(key)
        if heads is None or layout == "3d":
            continue
        fewer = [max(1, round(n * width / widths[0])) for n in ([heads] if isinstance(heads, int) else heads)]
        options[key] = fewer[0] if isinstance(heads, int) else tuple(fewer)
    return options


def unet_maker(width: int) -> Callable[..., Any]:
    """What `pipelines.build` takes instead of the tests' own maker of UNets."""

    def make(layout: str, **changes: Any) -> Any:
        kind, tests = LAYOUTS[layout]
        ours = {key: tests[key] for key in OURS if key in tests}
        unet = getattr(diffusers, kind)(**{**narrowed(layout, width), **ours, "sample_size": SIDE, **changes})
        unets.fill(unet)
        return unet.eval().requires_grad_(False)

    return make


class NetworkClock(Clock):
    """Processor seconds that some networks' calls take in a run. Its hooks are the outermost: ours are inside."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), processor=True)
        self.seconds, self.calls, self._began = 0.0, 0, 0.0

    def time(self, run: Callable[[], object], calls: int = 1) -> float:
        self.seconds = 0.0
        run()
        return self.seconds

    @contextlib.contextmanager
    def on(self, networks: Sequence[torch.nn.Module]) -> Iterator[None]:
        self.calls = 0
        handles = [net.register_forward_pre_hook(self._before, prepend=True) for net in networks]
        handles += [net.register_forward_hook(self._after) for net in networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, *_: Any) -> None:
        self._began = self._now()

    def _after(self, *_: Any) -> None:
        self.seconds += self._now() - self._began
        self.calls += 1


def doubts_of(report: Report, interval: int | None) -> list[str]:
    """What was not as planned. `interval`: where every so many evaluations one must be full."""
    found = [report.inactive] if report.inactive else []
    for p in report.passes:
        found += [f"off: {p.off}"] if p.off else []
        found += [f"{count} calls in full: {reason.value}" for reason, count in p.misses.items()]
        planned = p.planned_full if interval is None else -(-p.evaluations // interval)
        if p.full_evaluations != planned:
            found.append(f"{p.full_evaluations} full, planned {planned}")
        if p.full_calls + p.cached_calls != p.evaluations:  # in all these pipelines a call is an evaluation
            found.append(f"{p.full_calls} full and {p.cached_calls} cached calls in {p.evaluations} evaluations")
    return found


def measure(case: Case, width: int, pairs: int, budget: float) -> dict[str, Any]:
    """The figures of one case, as JSON. After `budget` seconds no further pair begins, once there are two."""
    pipe = pipelines.build(case.pipeline, unet_maker(width))
    if case.compiled:
        pipe.unet = torch.compile(pipe.unet)
    given = pipelines.enlarged(case.pipeline, SCALE, FRAMES)
    if "strength" in given:
        given["strength"] = 1.0  # so many evaluations as steps
    networks, clock = [pipe.unet, *([pipe.controlnet] if case.control else ())], NetworkClock()
    pictures: dict[str, torch.Tensor] = {}
    doubts: list[str] = []
    counts: list[tuple[int, int, int, int]] = []

    def run(name: str) -> None:
        with contextlib.ExitStack() as stack:
            cache = stack.enter_context(DeepCache(pipe, **case.settings)) if name == CACHED else None
            stack.enter_context(clock.on(networks))
            picture = pipelines.run(pipe, case.pipeline, case.steps, **given)
        if not torch.equal(pictures.setdefault(name, picture), picture):
            doubts.append(f"two {name} pictures differ")
        if cache is not None:
            report = cache.report()
            doubts.extend(doubts_of(report, case.settings.get("cache_interval")))
            numbers = [(p.evaluations, p.full_evaluations, p.medium_evaluations) for p in report.passes]
            counts.append((*map(sum, zip(*numbers, strict=True)), clock.calls))  # type: ignore[arg-type]

    with torch.no_grad():
        run(PLAIN)
        run(CACHED)
        seconds = rounds(
            clock, [Rival(name, functools.partial(run, name)) for name in (PLAIN, CACHED)], pairs, budget=budget
        )
    if torch.equal(pictures[PLAIN], pictures[CACHED]) or not pictures[CACHED].isfinite().all():
        doubts.append("the cached picture is the plain one, or not finite")
    if len(set(counts)) > 1:
        doubts.append("the cached runs differ in their counts")
    evaluations, full, deeper, calls = counts[0]
    if calls != evaluations * len(networks):
        doubts.append(f"{calls} calls were seen in {evaluations} evaluations")
    return {
        "case": case.name,
        "evaluations": evaluations,
        "full": full,
        "deeper": deeper,
        "calls": calls,
        "seconds": seconds,
        "speed_up": ratio(seconds, PLAIN, CACHED).as_json(),
        "doubts": sorted(set(doubts)),
    }


def line(found: dict[str, Any]) -> str:
    gain, deeper = found["speed_up"], f" + {found['deeper']} deeper" if found["deeper"] else ""
    plain, cached = (ms(median(found["seconds"][name])) for name in (PLAIN, CACHED))
    return row(
        (
            found["case"],
            f"{gain['value']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]",
            plain,
            cached,
            str(gain["samples"]),
            f"{found['full']} of {found['evaluations']}{deeper}",
            "; ".join(found["doubts"]) or "as planned",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pipelines", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=f"of: {'; '.join(CASES)}")
    add("--pairs", type=int, default=5, help="of a plain and a cached run; default: %(default)s")
    add("--seconds", type=float, default=120, help="for one row, when it has two pairs; default: %(default)s")
    add("--width", type=int, default=64, help="channels of the outermost blocks, a multiple of 32; default: 64")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # processor time counts threads that only wait
    started, figures = time.perf_counter(), []
    print("\n".join(markdown(("pipeline", "speed-up", "plain, ms", "cached, ms", "pairs", "full", "checks"))))
    for name in options.only:
        figures.append(measure(CASES[name], options.width, options.pairs, options.seconds))
        print(line(figures[-1]), flush=True)
        print(f"[{time.perf_counter() - started:6.1f} s] {name}", file=sys.stderr, flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            text = {"machine": machine(torch.device("cpu")), "width": options.width, "rows": figures}
            options.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    logging.getLogger("deepcache").setLevel(logging.ERROR)  # it warns that six evaluations are few
    sys.exit(main())
