"""Which part of the latent each recorded call held: recordings have shapes, this has rows and crops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .recording import Event


@dataclass(frozen=True)
class Row:
    """One row of the sampler's x: the image it belongs to, and the prompt it is asked about.

    `prompt`: "cond 0", "cond 1" (a second AND part) ... or "uncond".
    """

    image: int
    prompt: str


@dataclass(frozen=True)
class Piece:
    """One row of a call: a row of x and, for tiles, the crop's top and left."""

    row: int
    label: Row
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class Placed:
    """One call's rows, in order. `part` is the call's identity across evaluations."""

    pieces: tuple[Piece, ...]
    size: tuple[int, int]

    @property
    def part(self) -> object:
        return (self.size, tuple((piece.label, piece.top, piece.left) for piece in self.pieces))


@dataclass
class Layout:
    """One evaluation's x: its rows and size, and what its calls hold."""

    rows: list[Row]
    size: tuple[int, int]
    calls: list[Placed | None] = field(default_factory=list)
    """None for a call of which nothing says what it holds."""

    @property
    def images(self) -> int:
        return 1 + max(row.image for row in self.rows)


def _rows(shape: object) -> int:
    if isinstance(shape, dict):
        shape = shape.get("crossattn")
    return shape[0] if isinstance(shape, list) and shape else 0


def lay_out(announced: Event, calls: Sequence[Event], evaluation: int) -> Layout:
    """From the `cfg_denoiser` event and the UNet calls after it.

    The host repeats each image for each of its prompts, then appends the images once more for the
    negative prompt.
    """
    total, _, height, width = announced["x"]
    conds = min(_rows(announced["text_cond"]), total)
    images = total - conds or total
    rows = [Row(i // max(1, conds // images), f"cond {i % max(1, conds // images)}") for i in range(conds)]
    rows += [Row(i, "uncond") for i in range(total - conds)]
    layout = Layout(rows, (height, width))
    sizes = [(event["x"][0], tuple(event["x"][2:])) for event in calls]
    try:
        layout.calls = [*_places(layout, sizes, conds, evaluation)]
    except ValueError:  # a call of all rows is one, whatever else there is
        whole = _whole(layout, range(total))
        layout.calls = [whole if size == (total, layout.size) else None for size in sizes]
    return layout


Size = tuple[int, tuple[int, ...]]
"""Of a call: its rows, its height and width."""


def _places(layout: Layout, sizes: list[Size], conds: int, evaluation: int) -> list[Placed]:
    """What the calls hold; raises ValueError for unknown patterns."""
    total = len(layout.rows)
    if any(size != layout.size for _, size in sizes):
        return _tiles(layout, sizes)
    if all(count == total for count, _ in sizes):
        return [_whole(layout, range(total)) for _ in sizes]
    if sum(count for count, _ in sizes) > total:
        return _windows(layout, [count for count, _ in sizes], conds, evaluation)
    starts = itertools.accumulate((count for count, _ in sizes), initial=0)
    return [_whole(layout, range(start, start + count)) for start, (count, _) in zip(starts, sizes, strict=False)]


def _whole(layout: Layout, rows: Sequence[int]) -> Placed:
    return Placed(tuple(Piece(row, layout.rows[row]) for row in rows), layout.size)


def _tiles(layout: Layout, sizes: list[Size]) -> list[Placed]:
    """Tiled Diffusion: a grid that never moves; a batch holds all rows of its first tile, then the next's."""
    height, width = layout.size
    high, wide = sizes[0][1]
    conds = sum(row.prompt != "uncond" for row in layout.rows)
    fitting = [n for n in (len(layout.rows), conds) if n and all(count % n == 0 for count, _ in sizes)]
    rows = fitting[0] if fitting else 0
    if not rows or any(size != (high, wide) for _, size in sizes):
        raise ValueError(f"no tiling of {layout.size} gives calls of {sizes}")
    tiles = sum(count for count, _ in sizes) // rows
    grids = [(down, tiles // down) for down in range(1, tiles + 1) if tiles % down == 0]
    covering = [(down, across) for down, across in grids if down * high >= height and across * wide >= width]
    if not covering:
        raise ValueError(f"no grid of {tiles} tiles of {high}x{wide} covers {height}x{width}")
    down, across = min(covering, key=lambda grid: abs(math.log(grid[0] * width / (grid[1] * height))))
    places = [
        (int(i * (height - high) / max(1, down - 1)), int(j * (width - wide) / max(1, across - 1)))
        for i in range(down)
        for j in range(across)
    ]
    placed, start = [], 0
    for count, _ in sizes:
        batch = places[start : start + count // rows]
        start += count // rows
        pieces = [Piece(row, layout.rows[row], top, left) for top, left in batch for row in range(rows)]
        placed.append(Placed(tuple(pieces), (high, wide)))
    return placed


def _windows(layout: Layout, counts: list[int], conds: int, evaluation: int) -> list[Placed]:
    """AnimateDiff: windows of frames, shifted at each evaluation as its `uniform` schedule does it."""
    frames = layout.images
    parts = 2 if conds < len(layout.rows) else 1
    width = counts[0] // parts
    if any(count != counts[0] for count in counts) or counts[0] % parts or width > frames:
        raise ValueError(f"no windows over {frames} frames give calls of {counts} rows")
    stride = math.ceil(frames / len(counts))
    # Its default overlap is a quarter of the window.
    for overlap in (width // 4, *range(width)):
        if len(range(0, frames, width - overlap)) == len(counts):
            stride = width - overlap
            break
    shift = round(frames * int(f"{evaluation:064b}"[::-1], 2) / 2**64)
    placed = []
    for number in range(len(counts)):
        window = [(shift + number * stride + i) % frames for i in range(width)]
        rows = window if parts == 1 else [*window, *(conds + i for i in window)]
        placed.append(_whole(layout, rows))
    return placed
