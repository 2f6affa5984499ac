"""`python -m bench`: how near cached calls come to the least work, and what the extension adds to it.

Prints the targets beside what was measured, and never fails because of a time.

With a model of yours: `--model PATH --model_type TYPE`; with a running WebUI: `--url URL`. Each has its
own --help.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from deepcache_ext.plan.estimators import ESTIMATORS

from . import calls, overhead, own_model, own_webui, unets
from .report import Report
from .timing import Clock

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(ESTIMATORS):
        raise argparse.ArgumentTypeError(f"estimators are {', '.join(ESTIMATORS)}")
    return chosen


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--layout", choices=unets.LAYOUTS, default="sd15", help="default: %(default)s")
    add("--size", type=int, help="side of the latents; default: 64 (sd15), 16 (tiny), 128 (sdxl; CPU: 32)")
    add("--batch", type=int, default=2, help="rows of a call; default: 2, cond and uncond of one picture")
    add("--branches", type=numbers, default=[0, 1, 2], metavar="NUMBERS", help="default: 0,1,2")
    add("--estimators", type=names, default=list(ESTIMATORS), metavar="NAMES", help=f"default: {','.join(ESTIMATORS)}")
    add("--pairs", type=int, default=5, help="pairs of full calls, at least one a branch; default: 5")
    add("--seconds", type=float, default=20, help="time for cached calls, a branch; default: %(default)s")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"), help="default: %(default)s")
    add("--dtype", choices=DTYPES, help="default: fp16 on a GPU, fp32 on a CPU")
    add("--attention", choices=("sdp", "vanilla"), default="sdp", help="sd15: fused (default), or ldm's own")
    add("--threads", type=int, help="torch's threads on a CPU; default: one a core")
    add(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: count this process's time only; with --threads 1, for a machine that is busy",
    )
    add("--quick", action="store_true", help="few and short: for a first look; the intervals get wide")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args(argv)
    layout = unets.LAYOUTS[options.layout]
    on_cpu = options.device.type == "cpu"
    options.size = options.size or (layout.cpu_size if on_cpu else layout.size)
    options.dtype = options.dtype or ("fp32" if on_cpu else "fp16")
    if options.quick:
        options.pairs, options.seconds = 1, min(options.seconds, 2)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    for option, own in (("--model", own_model.main), ("--url", own_webui.main)):
        if any(argument.split("=")[0] == option for argument in argv):
            return own(argv)
    options = parse(argv)
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    device, dtype = options.device, DTYPES[options.dtype]
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = Clock(device, processor=options.clock == "processor")
    say("our own Python")
    with calls.inference(device, torch.float32):
        python = overhead.measure(clock, device, 50 if options.quick else 300)
    say("counting FLOPs")
    flops = unets.count_flops(options.layout, options.batch, options.size, options.branches)
    say(f"a full call has {flops[0] / 1e12:.2f} TFLOP; making the UNet")
    unet = unets.make(options.layout, device, dtype, options.attention)
    given = unets.inputs(options.layout, options.batch, options.size, device, dtype)
    say("full and cached calls")
    with calls.inference(device, dtype):
        measured = calls.measure(
            unet,
            given,
            options.branches,
            options.estimators,
            clock,
            options.pairs,
            options.seconds,
            least=2 if options.quick else 4,
            say=say,
        )
    say("done")
    settings = {
        "layout": options.layout,
        "size": options.size,
        "batch": options.batch,
        "dtype": options.dtype,
        "attention": options.attention,
        "clock": options.clock,
        "pairs": options.pairs,
        "seconds": options.seconds,
        "quick": options.quick,
    }
    report = Report(settings, measured, flops, python, device)
    print(report.text(), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
