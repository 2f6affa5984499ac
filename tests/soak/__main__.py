"""`python -m tests.soak [faults|pictures] [--pictures N] [--sample N] [--seed N]`: exits with 1 on any failure."""

from __future__ import annotations

import argparse
import functools
import sys
import time
import warnings
from pathlib import Path

import torch

from demo.webui.boot import boot
from tests.soak import faults, generations

TRACES = Path(__file__).parents[1] / "data" / "host-traces" / "a1111-1.10.1"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("which", nargs="?", choices=("faults", "pictures", "all"), default="all")
    parser.add_argument("--pictures", type=int, default=1000, help="how many random pictures (%(default)s)")
    parser.add_argument("--sample", type=int, help="how many faults, drawn by the seed (default: all there are)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; number of the first scene")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # the UNets' libraries are old
    say = functools.partial(print, flush=True)
    failed = False
    started = time.monotonic()
    if wanted.which in ("faults", "all"):
        injected = faults.run(faults.recordings(TRACES), wanted.sample, wanted.seed, say)
        say("\n".join(injected.lines()))
        failed |= bool(injected.failures)
    if wanted.which in ("pictures", "all"):
        with boot(model="tinyA") as host:
            made = generations.run(host, wanted.pictures, wanted.seed, say)
        say("\n".join(made.lines()))
        failed |= bool(made.failures)
    say(f"took {(time.monotonic() - started) / 60:.0f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
