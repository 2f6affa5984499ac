"""What the demo's comparison says of times, on a quiet machine and on a busy one."""

from __future__ import annotations

import pytest
from PIL import Image

from demo.comparison import Outcome

BLANK = (Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)))


def outcome(pairs, unet=(), full=13):
    return Outcome(list(pairs), list(unet), full, 30, 50.0, BLANK)


@pytest.mark.parametrize(
    ("pairs", "unet", "told", "busy"),
    [
        (
            [(4.0, 2.0), (4.1, 2.1), (3.9, 2.0)],
            [2.0, 2.05, 1.9],
            "speed-up: 2.00x of the UNet, by its own times",
            False,
        ),
        # 13 of 30 full can be 2.31 times as fast at most.
        ([(4.0, 1.2), (4.1, 1.3)], [2.0], "speed-up: 2.00x of the UNet", True),
        ([(4.0, 2.0), (9.0, 2.0)], [2.1], "speed-up: 2.10x of the UNet", True),
        ([(4.0, 1.2), (4.1, 1.3)], [], "speed-up: not measured", True),
        ([(4.0, 2.0), (4.1, 2.1)], [], "speed-up: 1.98x of the whole picture", False),
        ([(4.0, 2.0)], [3.33], "speed-up: 2.31x of the UNet", False),
    ],
)
def test_no_speed_up_is_told_that_cannot_be(pairs, unet, told, busy):
    table = outcome(pairs, unet).table()
    assert told in table.splitlines()[-1] and ("The machine was busy" in table) is busy
    assert "full: 13/30" in table
