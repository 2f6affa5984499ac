"""`python -m bench.peers`: our DeepCache beside the published DeepCacheSDHelper, on one diffusers UNet.

Each has a UNet of its own with the same weights. They take turns; a ratio is of medians, with its 95 % interval over
the rounds. "loop" is a run of `--steps` evaluations with the plain arithmetic of a sampler. Prints whether the
pictures are the same, and never fails because of a time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from DeepCache import DeepCacheSDHelper as PublishedHelper

from deepcache_ext import DeepCacheSDHelper

from .timing import Clock, Rival, Seconds, calls_for, ratio, rounds

SD = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SIZES = {
    "sd15": SD | {"block_out_channels": (320, 640, 1280, 1280)},
    "medium": SD | {"block_out_channels": (128, 256, 512, 512)},
    "tiny": SD | {"block_out_channels": (32, 32, 64, 64)},
}
LONGEST = 50
"""The widest interval, and the length of the list of timesteps: the first is full, the others are cached."""


class Runner:
    """One UNet, cached by one of the two or by none, and a list of timesteps to go through."""

    def __init__(self, unet: Any, given: dict[str, Any], kind: Any = None) -> None:
        self.unet, self.given = unet, given
        self.scheduler = SimpleNamespace(timesteps=torch.arange(LONGEST, 0, -1, device=given["sample"].device))
        self.helper = kind(pipe=self) if kind is not None else None
        self._timesteps: Iterator[torch.Tensor] = iter(())

    def enable(self, interval: int, branch: int) -> None:
        if self.helper is not None:
            self.helper.set_params(cache_interval=interval, cache_branch_id=branch)
            self.helper.enable()
        self._timesteps = itertools.cycle(self.scheduler.timesteps)

    def disable(self) -> None:
        if self.helper is not None:
            self.helper.disable()

    def evaluate(self) -> torch.Tensor:
        """The next evaluation, positional as the published helper wants it."""
        return self._call(self.given["sample"], next(self._timesteps))

    def loop(self, steps: int) -> torch.Tensor:
        x = self.given["sample"]
        for timestep in self.scheduler.timesteps[:steps]:
            x = x - 0.05 * self._call(x, timestep)
        return x

    def _call(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        rest = {name: value for name, value in self.given.items() if name != "sample"}
        return self.unet(x, timestep, **rest, return_dict=False)[0]


def compare(
    runners: dict[str, Runner], clock: Clock, what: str, run: Callable[[Runner], object], count: int, calls: int = 1
) -> None:
    rivals = [Rival(name, lambda runner=runner: run(runner)) for name, runner in runners.items()]
    seconds: Seconds = rounds(clock, rivals, count, calls)
    shown = ", ".join(f"{name} {sorted(times)[len(times) // 2] * 1e3:.2f} ms" for name, times in seconds.items())
    against = ratio(seconds, "ours", "published")
    text = f"{what:28} {shown}; ours/published {against.value:.3f} [{against.low:.3f}, {against.high:.3f}]"
    if "plain" in seconds:
        gain = ratio(seconds, "plain", "ours")
        text += f"; plain/ours {gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    add = parser.add_argument
    add("--unet", choices=SIZES, default="medium", help="default: %(default)s")
    add("--size", type=int, default=32, help="side of the latents; default: %(default)s")
    add("--batch", type=int, default=2, help="default: 2, cond and uncond of one picture")
    add("--branches", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 3])
    add("--interval", type=int, default=3, help="of the loop; default: %(default)s")
    add("--steps", type=int, default=12, help="of the loop; default: %(default)s")
    add("--rounds", type=int, default=12, help="default: %(default)s")
    add("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    add("--threads", type=int)
    add("--clock", choices=("wall", "processor"), default="wall")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = Clock(options.device, processor=options.clock == "processor")
    torch.manual_seed(0)
    dtype = torch.float16 if options.device.type == "cuda" else torch.float32
    unet = diffusers.UNet2DConditionModel(**SIZES[options.unet]).eval().to(options.device, dtype)
    given = {
        "sample": torch.randn(options.batch, 4, options.size, options.size, device=options.device, dtype=dtype),
        "encoder_hidden_states": torch.randn(options.batch, 77, 768, device=options.device, dtype=dtype),
    }
    runners = {
        "ours": Runner(unet, given, DeepCacheSDHelper),
        "published": Runner(copy.deepcopy(unet), given, PublishedHelper),
        "plain": Runner(copy.deepcopy(unet), given),
    }
    print(
        f"{options.unet}, {options.batch} x 4 x {options.size} x {options.size}, {dtype}, {options.device}, "
        f"{options.rounds} rounds, {options.clock} clock, {torch.get_num_threads()} threads"
    )
    with torch.no_grad():
        for branch in options.branches:
            _compare_at(branch, runners, clock, options)
    return 0


def _compare_at(branch: int, runners: dict[str, Runner], clock: Clock, options: argparse.Namespace) -> None:
    """A cached call, a loop, its picture, and what interval 1 costs."""
    pair = {name: runners[name] for name in ("ours", "published")}
    pictures = []
    for runner in runners.values():
        runner.enable(LONGEST, branch)
        runner.evaluate()
    cached = calls_for(clock.time(pair["ours"].evaluate), most=10)
    pair["published"].evaluate()
    # The full evaluation and the two above aside, so many cached ones follow.
    count = min(options.rounds, (LONGEST - 2) // cached)
    compare(pair, clock, f"branch {branch}, a cached call", Runner.evaluate, count, cached)
    for runner in runners.values():
        runner.disable()
        runner.enable(options.interval, branch)
    compare(
        runners,
        clock,
        f"branch {branch}, loop, interval {options.interval}",
        lambda runner: runner.loop(options.steps),
        max(3, options.rounds // 2),
    )
    for runner in pair.values():
        pictures.append(runner.loop(options.steps))
        runner.disable()
        runner.enable(1, branch)
    print(f"branch {branch}, the same pictures    {torch.equal(*pictures)}")
    compare(runners, clock, f"branch {branch}, interval 1", Runner.evaluate, options.rounds)
    for runner in runners.values():
        runner.disable()


if __name__ == "__main__":
    sys.exit(main())
