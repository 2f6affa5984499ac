"""The text of the strategy `custom`: which evaluations run how much of the UNet. Reading it and writing it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .fields import SettingsError

RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6})(?::(\d{1,6}))?)?(?:/(\d{1,2}))?")


def ranges(text: str) -> list[tuple[range, int | None]]:
    """Evaluations as typed, each with the branch that it runs, None for the whole UNet: `0-3, 6, 9` are 0 1 2 3 6 9;
    `12-29:3` is every third from 12 to 29; `15/5` is 15 with branch 5. Commas or blanks between them. Raises
    `SettingsError`; of branches there may be one.
    """
    allowed = "steps counted from 0, and ranges of them, such as 0-3, 6, 9, 12-29:3, or 15/5 with branch 5"
    found: list[tuple[range, int | None]] = []
    for part in re.split(r"[,;\s]+", re.sub(r"\s*([-:/])\s*", r"\1", text.strip(" ,;"))):
        match = RANGE.fullmatch(part)
        if match is None:
            raise SettingsError("full_evaluations", text, allowed)
        first, last, step, branch = (None if group is None else int(group) for group in match.groups())
        assert first is not None
        if step == 0 or (last is not None and last < first):
            raise SettingsError("full_evaluations", text, allowed)
        found.append((range(first, first + 1 if last is None else last + 1, step or 1), branch))
    if len({branch for _, branch in found if branch is not None}) > 1:
        raise SettingsError("full_evaluations", text, "one branch alone may stand after /")
    return found


def custom(text: str, total: int, branch: int = 0) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """As typed (`ranges`): full evaluations, and 0; those that run a branch deeper than `branch`, and which.
    Those beyond the run's end are left out; those whose branch is not deeper are full. Raises `SettingsError`.
    """
    full, renewed, deeper = {0}, set[int](), 0
    for part, own in ranges(text):
        if own is None or own <= branch:
            full.update(part[:total])
        else:
            renewed.update(part[:total])
            deeper = own
    found = sorted(k for k in full if k < total), sorted(k for k in renewed - full if k < total)
    return tuple(found[0]), tuple(found[1]), deeper


def written(full: Sequence[int], renewed: Sequence[int] = (), deeper: int = 0) -> str:
    """The text that `custom` reads as these evaluations: `0-3, 6/5, 9`."""
    kinds = {**dict.fromkeys(renewed, deeper), **dict.fromkeys(full)}
    parts: list[tuple[int, int, int | None]] = []
    for k, branch in sorted(kinds.items()):
        if parts and parts[-1][1:] == (k - 1, branch):
            parts[-1] = parts[-1][0], k, branch
        else:
            parts.append((k, k, branch))
    return ", ".join(
        (f"{first}" if first == last else f"{first}-{last}") + ("" if branch is None else f"/{branch}")
        for first, last, branch in parts
    )
