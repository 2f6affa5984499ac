"""`python -m train`: downloads the pictures, trains for a while, writes demo/checkpoint/."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from .card import write
from .data import download, pictures
from .learn import PREDICTIONS, train

REPOSITORY = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=18.0, help="of training, over all runs (default 18)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; this small network gains little by more")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prediction", choices=PREDICTIONS, default="v", help="what the UNet learns to say")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last state; without it, or with an empty cache, from scratch",
    )
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build" / "train", help="download and state")
    parser.add_argument("--out", type=Path, help="default: demo/checkpoint; with eps build/eps-sd1")
    options = parser.parse_args()
    if options.out is None:
        folders = {"v": REPOSITORY / "demo" / "checkpoint", "eps": REPOSITORY / "build" / "eps-sd1"}
        options.out = folders[options.prediction]
    return options


def main() -> int:
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    found = pictures(download(options.cache))
    print(
        f"{options.minutes:g} minutes of training on {options.device}, {len(found)} pictures; "
        "on one busy thread of a server CPU 18 minutes were enough (demo/checkpoint/README.md)",
        flush=True,
    )
    model, progress = train(
        found, options.cache, options.minutes, options.device, options.batch, options.resume, options.prediction
    )
    write(model.cpu(), found, progress, options.out, options.device, options.batch, prediction=options.prediction)
    return 0


if __name__ == "__main__":
    sys.exit(main())
