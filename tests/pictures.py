"""Pictures that an embedded host made: compared, and read what is written under them."""

from __future__ import annotations

from typing import Any

import numpy as np

from demo.webui.boot import Host


def pixels(processed: Any) -> list[np.ndarray]:
    """[height, width, 3] of each picture of a generation."""
    return [np.asarray(image) for image in processed.images]


def same(one: Any, other: Any) -> bool:
    """Whether two generations made as many pictures, and the same ones to the bit."""
    a, b = pixels(one), pixels(other)
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def infotext(host: Host, processed: Any, index: int = 0) -> dict[str, str]:
    """The parameters under a picture, as the host reads them."""
    return host.module("infotext_utils").parse_generation_parameters(processed.infotexts[index])
