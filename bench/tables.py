"""Tables as text: for a terminal, and as Markdown for the pages in docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """For a terminal: as wide as they need to be; the first and the last, which are words, stand to the left."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        (
            "  "
            + "  ".join(
                cell.ljust(width) if i in (0, len(line) - 1) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        ).rstrip()
        for line in lines
    ]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]] = (), numbers: bool = False) -> list[str]:
    """A line for the head, one below it, and one for each row. `numbers`: all columns but the first stand to the
    right.
    """
    below = ["---"] + ["---:" if numbers else "---"] * (len(head) - 1)
    return [row(head), "|" + "|".join(below) + "|", *map(row, rows)]


def row(cells: Iterable[str]) -> str:
    """One more line of a Markdown table, for a program that prints each when it has it."""
    return f"| {' | '.join(cells)} |"


def between(page: str, first: str, last: str, made: str) -> str:
    """The page with `made` between these two marks. Raises `ValueError` where they are not there in this order."""
    before, found, rest = page.partition(first)
    _, ends, after = rest.partition(last)
    if not found or not ends:
        raise ValueError(f"the page has no place for it: {first} ... {last}")
    return f"{before}{first}\n\n{made}\n\n{last}{after}"
