"""The networks' cards as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .networks import CHOOSING, JUDGING, LATER, Network

PAGE = Path(__file__).with_name("networks.md")


def page(networks: Sequence[Network]) -> str:
    """Markdown: the halves, a line for each network; of those that are not trained yet what they are to be."""
    lines = [
        "# The laboratory's networks",
        "",
        "Written by `python -m train.laboratory`. Rules are chosen on the first half and judged on the second; the",
        "halves were fixed before anything was measured. Three more came when the rules stood; their norms scale 4",
        "to 16 channels together, those of the halves 1 to 4. 16x16 pictures, a text each, one text in ten left out",
        "for guidance.",
    ]
    titles = {CHOOSING: "The choosing half", JUDGING: "The judging half", LATER: "Later ones"}
    for half, title in titles.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| network | predicts | output blocks | finest attention | pictures | parameters | steps | loss |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(one) for one in networks if one.half == half]
    return "\n".join(lines) + "\n"


def _line(network: Network) -> str:
    blocks = {"sd1": 12, "sdxl": 9}[network.layout]
    finest = "yes" if network.attends_finest else "no"
    known = f"| {network.name} | {network.prediction} | {blocks} | {finest} |"
    if not network.card.exists():
        return f"{known} {network.pictures} | – | {network.steps} | not trained yet |"
    card = json.loads(network.card.read_text(encoding="utf-8"))
    millions = f"{card['parameters'] / 1e6:.1f} M"
    pictures = f"{network.pictures}: {card['count']}, {card['licence']}"
    return f"{known} {pictures} | {millions} | {card['steps']} of {card['batch']} | {card['loss']} |"
