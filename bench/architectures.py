"""`python -m bench.architectures`: speed on the architectures at their full size, with random weights.

Uncached calls, ours, the published DeepCacheSDHelper on the diffusers twin, and the live blocks by hand. Each case
leaves a file in the work folder, so that an interrupted run goes on where it was; docs/speed.md and docs/speed.json
are written anew after every case. Never fails because of a time.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deepcache_ext.plan.estimators import Copy

from . import calls, memory, speed_report, twin_calls, twins, unets
from .cases import ON_CPU, ON_GPU, Case
from .report import machine
from .timing import Clock

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROOM = 1.2
"""Memory a case needs, in units of its weights."""

Say = Callable[[str], None]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.architectures", description=__doc__)
    add = parser.add_argument
    add("--cases", help="names, separated by commas; default: all that suit the device")
    add("--list", action="store_true", help="show the names and stop")
    add("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    add("--dtype", choices=DTYPES, help="default: fp16 on a GPU; on a CPU fp32, bf16 where memory is short")
    add("--pairs", type=int, default=4, help="rounds of full calls; default: %(default)s")
    add("--seconds", type=float, default=20, help="time for cached calls, a branch; default: %(default)s")
    add("--work", type=Path, default=Path("build/speed"), help="default: %(default)s")
    add("--docs", type=Path, default=Path("docs"), help="default: %(default)s")
    add("--again", action="store_true", help="measure what has been measured, too")
    add("--report-only", action="store_true", help="write the report of what is there")
    options = parser.parse_args(argv)
    known = ON_GPU if options.device.type == "cuda" else ON_CPU
    by_name = {case.name: case for case in (*ON_GPU, *ON_CPU)}
    options.chosen = known
    if options.cases:
        if wrong := set(options.cases.split(",")) - set(by_name):
            parser.error(f"unknown: {', '.join(sorted(wrong))}; --list shows the names")
        options.chosen = [by_name[name] for name in options.cases.split(",")]
    return options


def dtype_for(case: Case, options: argparse.Namespace) -> str:
    if options.dtype:
        return options.dtype
    if options.device.type != "cpu":
        return "fp16"
    needed = sum(parameter.numel() for parameter in twins.on_meta(case.net).parameters()) * 4 * ROOM
    left = memory.available(options.device)
    return "fp32" if left is None or needed < left else "bf16"


def run(case: Case, options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Everything measured of one case, as JSON."""
    device, dtype_name = options.device, dtype_for(case, options)
    dtype = DTYPES[dtype_name]
    clock = Clock(device, processor=device.type == "cpu")
    started = time.perf_counter()
    found: dict[str, Any] = {
        "case": case.name,
        "dtype": dtype_name,
        "machine": machine(device),
        "clock": "processor" if device.type == "cpu" else "device",
        "doubts": [],
    }
    if case.in_webui:
        whole, live = unets.count_flops(case.net, case.rows, case.latent, case.branches)
        free()
        _webui(case, options, clock, dtype, found, say)
    else:
        whole, live = twins.count_flops(case.net, case.rows, case.latent, case.branches, case.frames)
    found["flops"] = {"full": whole, "live": live}
    free()
    say(f"{case.name}: the UNet of diffusers, {dtype_name}")
    unet = twins.make(case.net, device, dtype)
    given = twins.inputs(case.net, case.rows, case.latent, device, dtype, case.frames)
    with torch.no_grad():
        twin = twin_calls.measure(
            unet, given, case.branches, clock, device, options.pairs, options.seconds, hand=not case.in_webui
        )
    found["twin"] = {"full": twin.full, "cached": twin.cached, "memory": twin.memory, "kept_bytes": twin.kept_bytes}
    found["doubts"] += twin.doubts
    found["seconds"] = time.perf_counter() - started
    return found


def _webui(
    case: Case, options: argparse.Namespace, clock: Clock, dtype: torch.dtype, found: dict[str, Any], say: Say
) -> None:
    device = options.device
    say(f"{case.name}: the UNet of ldm or sgm, {found['dtype']}")
    unet = unets.make(case.net, device, dtype)
    given = unets.inputs(case.net, case.rows, case.latent, device, dtype)
    peaks: dict[str, int | None] = {}
    with calls.inference(device, dtype):
        one = calls.Pass(unet, given, case.branches[0])
        one.session.decisions.estimator = Copy()
        one.unhook()
        memory.start(device)
        seconds = twin_calls.first_call(one.plain, clock, device)
        pairs = twin_calls.enough(options.pairs, options.seconds, seconds)
        peaks[calls.PLAIN] = memory.read(device)
        one.hook()
        memory.start(device)
        one.evaluate()
        one.only_cached()
        one.evaluate()
        peaks["ours"] = memory.read(device)
        one.session.close()
        measured = calls.measure(
            unet,
            given,
            case.branches,
            [Copy.name],
            clock,
            pairs,
            options.seconds,
            say=lambda text: say(f"{case.name}: {text}"),
        )
    found["webui"] = {
        "full": measured.full,
        "cached": measured.cached,
        "memory": peaks,
        "kept_bytes": {branch: kept[Copy.name] for branch, kept in measured.kept_bytes.items()},
    }
    found["doubts"] += measured.doubts


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {text}", file=sys.stderr, flush=True)

    if options.list:
        print("\n".join(case.name for case in options.chosen))
        return 0
    if options.device.type == "cpu":
        torch.set_num_threads(1)  # processor time counts threads that only wait
    options.work.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(options.chosen, 1):
        file = options.work / f"{case.name}-{options.device.type}.json"
        if options.report_only or (file.exists() and not options.again):
            continue
        say(f"case {number} of {len(options.chosen)}: {case.name}")
        try:
            found = run(case, options, say)
        except torch.cuda.OutOfMemoryError:
            say(f"{case.name}: not enough memory")
            continue
        finally:
            free()
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
        say(f"{case.name}: {found['seconds']:.0f} s")
        speed_report.write(options.work, options.docs)
    print(speed_report.write(options.work, options.docs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
