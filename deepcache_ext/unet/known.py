"""Extensions whose code inside a UNet is known: one line each, and one test (tests/unet/test_known.py).

Names are those of the modules in which their code stands: hosts load an extension's `scripts/negpip.py` as a module
named `negpip.py`, and what that imports under its own name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache


class Answer(Enum):
    """What a cached call may do about code in blocks that it skips."""

    HARMLESS = "may be skipped"
    COUNTS_LAYERS = "counts the layers of a whole evaluation: right only while that has one call"


@dataclass(frozen=True)
class Known:
    """`code`: of `origin`s, `module:qualified name`. `who`: whose code that is; `why`: the run that proved the answer
    (docs/compatibility.md), or what was read.
    """

    code: re.Pattern[str]
    answer: Answer
    who: str
    why: str


def _rows(answer: Answer, rows: dict[str, tuple[str, str]]) -> list[Known]:
    return [Known(re.compile(code), answer, who, why) for code, (who, why) in rows.items()]


TABLE = [
    *_rows(
        Answer.HARMLESS,
        {
            r"modules\.(sd_hijack|sd_unet|lowvram|devices|hypernetworks|hat_model|sub_quadratic)": (
                "A1111's own optimizations and hijacks",
                "run for real",
            ),
        },
    ),
    *_rows(
        Answer.COUNTS_LAYERS,
        {
            r"negpip": ("NegPiP", "one call: naive; two calls: wrong"),
        },
    ),
]


@lru_cache(maxsize=1000)
def known(name: str) -> Answer | None:
    """The answer for code with this origin; None where nothing is known."""
    return next((row.answer for row in TABLE if row.code.match(name)), None)
