"""The sheets of docs/which_settings.md, and the table of controls in docs/settings.md."""

from __future__ import annotations

import numpy as np
import torch

from bench import pictures
from bench.pictures import Cell
from deepcache_ext.settings.fields import FIELDS

PAGE = (pictures.DOCS / "which_settings.md").read_text(encoding="utf-8")


def flat(value: float) -> torch.Tensor:
    return torch.full((3, 192, 192), value)


def test_a_sheet_has_each_picture_with_its_difference_below():
    found = [Cell(flat(0.5), ("a", "b", "c")), *(Cell(flat(0.6), ("d", "e", "f"), flat(0.2 * n)) for n in range(1, 4))]
    made = np.asarray(pictures.sheet([found, found[:2]]))
    step, size = 192 + pictures.MARGIN, 192
    corners = [(y, pictures.MARGIN + x * step) for y, x in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1))]
    height = (made.shape[0] - pictures.MARGIN) // 3  # a strip of four cells takes two rows
    for (y, left), cell in zip(corners, [*found, *found[:2]], strict=True):
        row = made[pictures.MARGIN + y * height : (y + 1) * height - pictures.MARGIN, left : left + size]
        assert (row[:size] == round(float(cell.picture[0, 0, 0]) * 255)).all()
        text = row[size : len(row) - size]
        assert text.min() < 128 < text.max()
        if cell.difference is not None:
            assert (row[-size:] == round(float(cell.difference[0, 0, 0]) * 255)).all()
    gap = made[:, pictures.MARGIN + size : pictures.MARGIN + step]
    assert (gap == 255).all()


def test_the_table_of_controls_is_that_of_the_settings():
    page = pictures.SETTINGS.read_text(encoding="utf-8")
    assert pictures.with_controls(page) == page, "python -m bench.pictures --tables"


def test_every_control_is_on_its_page():
    page = (pictures.DOCS / "settings.md").read_text(encoding="utf-8")
    assert all(f"| {field.label} | " in page and field.info in page for field in FIELDS)


def test_every_sheet_is_there_and_on_the_page():
    for name in pictures.SHEETS:
        assert f"](which_settings/{name}.png)" in PAGE
        assert (pictures.DOCS / "which_settings" / f"{name}.png").stat().st_size < 400_000
