"""`python -m bench.gpu` (`make gpu`): what one card can tell in at most nine minutes, the most important first.

Right (cached calls against the live blocks by hand and against the published helper), nothing waits (synchronisations
and our own time a call), fast (presets, shares by branch, the rows of docs/speed.md). Every step has a budget of
seconds and is written down when it is over, to speed-gpu.json, and in words to speed-gpu.md; so also when time is up
or on SIGTERM. Another run on the same card goes on where the last one ended. Never fails because of a time; returns 1
where a result was wrong.

What it needs besides torch and numpy is what the UNets come from: diffusers, DeepCache, stable-diffusion-sdkit (ldm),
imaginairy (sgm), einops, omegaconf, psutil, and what diffusers imports. On a machine without network they travel as
wheels, 16 MB of them: `python -m bench.gpu --wheels` says how.
`--device cpu --tiny` tries all of it in a minute, anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import STARTED
from .gpu_needs import WHEELS

try:
    import diffusers
    import torch

    from deepcache_ext import DeepCache
    from deepcache_ext.plan.estimators import Copy

    from . import architectures, calls, gpu_checks, gpu_report, twins, unets
    from .cases import TINY, Case
    from .report import machine
    from .timing import Clock, Rival, ratio, rounds
except ImportError as missing:
    sys.exit(f"{missing}\n{WHEELS}")

PRESETS = ("Quality", "Balanced", "Fast")
BRANCHES = [0, 1, 2, 5]
ROWS = (
    *(Case("sd21", side, side, pictures) for side, pictures in ((512, 1), (512, 8), (1024, 8))),
    Case("svd", 576, 1024, 1, 25),
    Case("ldm-4-g", 256, 256),
    Case("ddpm-cifar10", 32, 32),
    Case("ddpm-lsun", 256, 256),
)
"""With figures of the method's authors to be held against."""
MORE_ROWS = tuple(
    Case("sd21", side, side, pictures)
    for side, pictures in ((768, 1), (1024, 1), (512, 4), (768, 4), (768, 8), (1024, 4))
)
AGAIN = 5.0
"""Seconds after which a step that is over its time is cut again: what is raised where Python clears up gets lost."""


class Cut(BaseException):
    """Time is up, or the process is to end. No `Exception`: whoever goes on after errors must not go on after this."""


class Step:
    """`run` gives figures as JSON; it has `seconds`, after which it is cut."""

    def __init__(self, name: str, seconds: float, run: Callable[[], dict[str, Any]]) -> None:
        self.name, self.seconds, self.run = name, seconds, run


def steps(options: argparse.Namespace, say: Callable[[str], None]) -> list[Step]:
    """In the order of their worth, should time run out."""
    device, tiny = options.device, options.tiny
    half, side = (torch.float32, 8) if tiny else (torch.float16, 32)
    found = []
    webui = [("tiny", half, torch.bfloat16)] if tiny else gpu_checks.WEBUI
    for net, weights, cast in webui:
        name = f"right: {net} of ldm or sgm, {_short(weights)} under {_short(cast)}"
        found.append(Step(name, 60, functools.partial(gpu_checks.webui, net, device, weights, cast, side)))
    for net, dtype in [("tiny", half)] if tiny else gpu_checks.TWINS:
        name = f"right: {net} of diffusers, {_short(dtype)}"
        found.append(Step(name, 60, functools.partial(gpu_checks.twin, net, device, dtype, side)))
    nets = [("tiny", 64)] if tiny else [("sd15", 512), ("sdxl", 1024)]
    first = nets[0][0]
    found.append(Step(f"waits: {first}", 40, functools.partial(gpu_checks.waits, first, device, half, nets[0][1] // 8)))
    found.append(Step("waits: our own Python", 30, functools.partial(gpu_checks.python, device, 1 if tiny else 200)))
    for net, pixels in nets:
        found.append(
            Step(f"fast: presets, {net} {pixels} px", 60, lambda n=net, s=pixels: presets(n, s // 8, half, options))
        )
        found.append(
            Step(f"fast: shares, {net} {pixels} px", 40, lambda n=net, s=pixels: shares(n, s // 8, half, options))
        )

    def rows(cases: Sequence[Case]) -> list[Step]:
        return [Step(f"fast: {case.name}", 45, functools.partial(row, case, options, say)) for case in cases]

    found += rows([TINY] if tiny else [*(Case(net, side, side) for net, side in nets), *ROWS])
    found.append(
        Step(f"fast: compiled, {first} {nets[0][1]} px", 180, lambda: compiled(first, nets[0][1] // 8, half, options))
    )
    found += rows([] if tiny else MORE_ROWS)
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Fast -----------------------------------------------------------------------------------------------------------


def row(case: Case, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """One case of docs/speed.md."""
    given = SimpleNamespace(device=options.device, dtype="fp32" if options.tiny else "fp16")
    given.pairs, given.seconds = (2, 0.01) if options.tiny else (4, 1.5)
    return architectures.run(case, given, say)  # type: ignore[arg-type]


def shares(net: str, side: int, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """What a cached call takes of a full one, by branch, in the WebUI's layout; and what `plan/cost.py` foresees."""
    device = options.device
    clock, unet = Clock(device), unets.make(net, device, dtype)
    given = unets.inputs(net, 2, side, device, dtype)
    with calls.inference(device, dtype):
        budget, branches = (0.01, BRANCHES[:1]) if options.tiny else (2.0, BRANCHES)
        found = calls.measure(unet, given, branches, [Copy.name], clock, 2 * len(branches), budget, least=2)
    return gpu_report.shares(found, len(unet.output_blocks))


def presets(net: str, side: int, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """Whole loops of 20 evaluations over Euler's timesteps, each preset and none in turns; the UNet's time alone."""
    device = options.device
    unet = twins.make(net, device, dtype)
    given = twins.inputs(net, 2, (side, side), device, dtype)
    scheduler = diffusers.EulerDiscreteScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    scheduler.set_timesteps(20, device=device)
    rest = {name: value for name, value in given.items() if name != "sample"}
    reports: dict[str, str] = {}

    def loop(preset: str) -> None:
        x, cache = given["sample"], None
        if preset:
            cache = DeepCache(SimpleNamespace(unet=unet, scheduler=scheduler), preset=preset).enable()
        try:
            for timestep in scheduler.timesteps:
                x = x - 0.05 * unet(x, timestep, **rest, return_dict=False)[0]
        finally:
            if cache is not None:
                cache.disable()
                reports[preset] = str(cache.report())

    rivals = [Rival(name or "none", functools.partial(loop, name)) for name in ("", *PRESETS)]
    with torch.no_grad():
        loop("")
        seconds = rounds(Clock(device), rivals, 1 if options.tiny else 12, least=1, budget=20)
    gains = {name: ratio(seconds, "none", name).as_json() for name in PRESETS}
    return {"gains": gains, "seconds": seconds, "reports": reports}


def compiled(net: str, side: int, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """Loops of 9 evaluations at interval 3, branch 0, cached and not, with a UNet that torch compiled and without."""
    device = options.device
    unet, given = twins.make(net, device, dtype), twins.inputs(net, 2, (side, side), device, dtype)
    made = {"": unet, "compiled": torch.compile(unet, backend="eager" if options.tiny else "inductor")}
    rest, last = {name: value for name, value in given.items() if name != "sample"}, {}

    def loop(name: str, cached: bool) -> None:
        x = given["sample"]
        with DeepCache(made[name], cache_interval=3, estimator="copy") if cached else contextlib.nullcontext():
            for timestep in torch.arange(900, 0, -100, device=device):
                x = x - 0.05 * made[name](x, timestep, **rest, return_dict=False)[0]
        last[name, cached] = x

    rivals = [Rival(f"{name} {cached}", functools.partial(loop, name, cached)) for name in made for cached in (0, 1)]
    began = time.monotonic()
    with torch.no_grad():
        for rival in rivals:
            rival.run()
        took = time.monotonic() - began
        seconds = rounds(Clock(device), rivals, 1 if options.tiny else 12, least=1, budget=20)
    gains = {name: ratio(seconds, f"{name} 0", f"{name} 1").as_json() for name in made}
    off, on = ((last["", cached] - last["compiled", cached]).float().square().mean().sqrt().item() for cached in (0, 1))
    far = not on <= 4 * off + 1e-6
    wrong = (
        [f"compiled, cached pictures differ by {on:.2g} (root mean square), uncached ones by {off:.2g}"] if far else []
    )
    return {"compiled_gains": gains, "seconds": seconds, "first_loops_seconds": took, "wrong": wrong}


# The run ---------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    add("--tiny", action="store_true", help="a very small UNet: to try all of it")
    add("--minutes", type=float, default=9, help="at most; default: %(default)s")
    add("--only", default="", help="steps whose name begins so: right, waits, fast")
    add("--out", type=Path, help="default: docs on a GPU, else build/gpu")
    add("--wheels", action="store_true", help="say what to carry to a machine without network, and stop")
    options = parser.parse_args(argv)
    if options.device.type == "cpu" and not options.tiny and not options.wheels:
        parser.error("no GPU here; --device cpu --tiny tries it")
    options.out = options.out or Path("docs" if options.device.type == "cuda" else "build/gpu")
    return options


def _cut(*_: object) -> None:
    raise Cut


def run(options: argparse.Namespace, say: Callable[[str], None], began: float) -> dict[str, Any]:
    """All steps that are not done; the state is on disk after each."""
    until = began + options.minutes * 60
    file = options.out / "speed-gpu.json"
    state: dict[str, Any] = {"machine": machine(options.device), "tiny": options.tiny, "steps": {}}
    if file.exists():
        last = json.loads(file.read_text(encoding="utf-8"))
        if last["machine"]["name"] == state["machine"]["name"] and last["tiny"] == options.tiny:
            state["steps"] = last["steps"]
    with contextlib.suppress(Cut):  # between two steps
        for step in steps(options, say):
            done = state["steps"].get(step.name, {})
            if "figures" in done or not step.name.startswith(options.only):
                continue
            left = min(step.seconds, until - time.monotonic())
            if left < 1:
                state["steps"].setdefault(step.name, {"not_done": "time was up"})
                continue
            say(f"{step.name}, at most {left:.0f} s")
            state["steps"][step.name] = result = attempt(step, left)
            gpu_report.write(options.out, state)
            if result.get("not_done") == "stopped":
                break
    return state


def attempt(step: Step, left: float) -> dict[str, Any]:
    """The step's figures, or why there are none. It is over after `left` seconds."""
    started = time.monotonic()
    try:
        try:
            _alarm(left)
            figures = {"figures": step.run()}
        finally:
            _alarm(0)
            architectures.free()
    except (Cut, KeyboardInterrupt):
        _alarm(0)  # it may have gone off just before
        figures = {"not_done": "time was up" if time.monotonic() - started >= left else "stopped"}
    except Exception as error:  # the next step may go well
        text = traceback.format_exc(limit=-3)
        figures = {"not_done": f"{type(error).__name__}: {error}", "traceback": text}
    return {"seconds": round(time.monotonic() - started, 1), **figures}


def _alarm(seconds: float) -> None:
    """In so many seconds, and again until it is turned off, by 0."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)


def main(argv: Sequence[str] | None = None, began: float | None = None) -> int:
    """`began`: when the minutes began, by `time.monotonic`; default: now."""
    options, began = parse(argv), time.monotonic() if began is None else began
    if options.wheels:
        print(WHEELS)
        return 0
    warnings.simplefilter("ignore")
    for chatty in ("deepcache", "imaginairy"):
        logging.getLogger(chatty).setLevel(logging.ERROR)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {text}", file=sys.stderr, flush=True)

    handlers = [s for s in (signal.SIGTERM, getattr(signal, "SIGALRM", None)) if s is not None]
    before = [signal.signal(s, _cut) for s in handlers]
    try:
        state = run(options, say, began)
    finally:
        for number, handler in zip(handlers, before, strict=True):
            signal.signal(number, handler)
    print(gpu_report.write(options.out, state))
    return int(any(gpu_report.wrong(state)))


if __name__ == "__main__":
    sys.exit(main(began=STARTED))
