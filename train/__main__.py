"""`python -m train`: downloads the pictures, trains for a while, writes demo/checkpoint/."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from demo.webui.autoencoder import Autoencoder

from .card import write
from .code import WIDTHS, latents, train_code
from .data import download, pictures
from .learn import PREDICTIONS, train

REPOSITORY = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=62.0, help="for the UNet, over all runs (default 62)")
    parser.add_argument("--code-minutes", type=float, default=11.0, help="for the autoencoder, on a CPU (default 11)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; this small network gains little by more")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prediction", choices=PREDICTIONS, default="eps", help="what the UNet learns to say")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last state; without it, or with an empty cache, from scratch",
    )
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build" / "train", help="download and state")
    parser.add_argument("--out", type=Path, help="default: demo/checkpoint; with v build/v-sd1")
    options = parser.parse_args()
    if options.out is None:
        folders = {"eps": REPOSITORY / "demo" / "checkpoint", "v": REPOSITORY / "build" / "v-sd1"}
        options.out = folders[options.prediction]
    return options


def code_for(words: torch.Tensor, others: torch.Tensor, options: argparse.Namespace) -> Autoencoder:
    """The autoencoder: that of an earlier run, or trained now."""
    done = options.cache / "code.pt"
    if not (options.resume and done.exists()):
        return train_code(words, others, options.code_minutes, options.cache)[0]
    code = Autoencoder(WIDTHS)
    code.load_state_dict(torch.load(done, weights_only=True))
    return code.eval()


def main() -> int:
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    words, others = pictures(download(options.cache))
    print(
        f"{options.code_minutes:g} minutes of training for the autoencoder, {options.minutes:g} for the UNet on "
        f"{options.device}, {len(words)} pictures",
        flush=True,
    )
    code = code_for(words, others, options)
    model, progress = train(
        latents(code, words),
        options.cache,
        options.minutes,
        options.device,
        options.batch,
        options.resume,
        options.prediction,
    )
    write(
        model.cpu(),
        code,
        words,
        progress,
        options.out,
        options.device,
        options.batch,
        options.code_minutes,
        prediction=options.prediction,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
