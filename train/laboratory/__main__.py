"""`python -m train.laboratory [NAME ...]`: trains what is not there yet, and writes the cards.

Weights and downloads go to DEEPCACHE_LAB (default ~/.cache/deepcache-lab).
"""

from __future__ import annotations

import argparse
import os
import sys

# Before torch is imported: threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from . import cards, learn, pictures
from .networks import NETWORKS, called, folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.laboratory", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"default: all ({', '.join(one.name for one in NETWORKS)})")
    parser.add_argument("--again", action="store_true", help="train anew what is there already")
    parser.add_argument("--steps", type=int, help="instead of each network's own number, for a quick look")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that two trainings are the same to the bit
    for network in map(called, options.names) if options.names else NETWORKS:
        if network.card.exists() and network.weights.exists() and not options.again:
            print(f"{network.name}: there already", flush=True)
            continue
        card = learn.train(network, pictures.load(network.pictures, folder()), options.steps)
        print(f"{network.name}: loss {card['loss']}, {card['processor_minutes']} minutes of a core", flush=True)
    cards.PAGE.write_text(cards.page(NETWORKS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
