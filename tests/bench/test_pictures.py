"""The sheets of docs/which_settings.md, and the tables of pages: up to date with settings and evidence."""

from __future__ import annotations

import json

import numpy as np
import pytest
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


def test_the_means_are_those_of_the_evidence():
    def row(arm: str, psnr: float, speed_up: float) -> dict[str, object]:
        return {"arm": arm, "likeness": {"psnr": {"mean": psnr}}, "speed_up": speed_up}

    rows = [row("preset Fast", 40.04, 2.6), row("interval 3, branch 0, copy", 36.06, 2.5), row("other", 1.0, 9.0)]
    section = {"sampler": "Euler", "steps": 30, "guidance": 5.0, "settings": rows}
    head, _, line = pictures.means({"sections": [section, {**section, "guidance": 7.0}]}).split("\n")
    assert head == "| sampler, steps | Quality | Balanced | Fast | plain 1:3 | plain 1:5 |"
    assert line == "| Euler, 30 | – | – | 40.0 dB at 2.60x | 36.1 dB at 2.50x | – |"


@pytest.mark.parametrize("page", pictures.PAGES, ids=lambda page: page.name)
def test_a_page_is_that_of_the_settings_and_the_evidence(page):
    known = json.loads(pictures.EVIDENCE.read_text(encoding="utf-8"))
    assert pictures.renewed(page, known) == page.read_text(encoding="utf-8"), "python -m bench.pictures --tables"


def test_every_control_is_on_its_page():
    page = (pictures.DOCS / "settings.md").read_text(encoding="utf-8")
    assert all(f"| {field.label} | " in page and field.info in page for field in FIELDS)


def test_a_preset_of_another_kind_is_not_told():
    def row(name, deeper):
        return {"arm": f"preset {name}", "deeper": deeper, "likeness": {"psnr": {"mean": 50.04}}, "speed_up": 1.6}

    section = {"sampler": "Euler", "steps": 30, "guidance": 5.0, "settings": [row("Quality", 0), row("Fast", 6)]}
    told = pictures.means({"sections": [section]}).split("\n")[-1]
    assert told == "| Euler, 30 | 50.0 dB at 1.60x | – | not measured | – | – |"


def test_a_table_takes_its_own_place_alone():
    page = "x\n<!-- means: how -->\nold\n<!-- end of means -->\ny"
    made = pictures.with_tables(page, {"means": r"new \1"})
    assert made == "x\n<!-- means: how -->\n\nnew \\1\n\n<!-- end of means -->\ny"
    with pytest.raises(ValueError, match="controls"):
        pictures.with_tables(page, {"controls": "new"})


def test_every_sheet_is_there_and_on_the_page():
    for name in pictures.SHEETS:
        assert f"](which_settings/{name}.png)" in PAGE
        assert (pictures.DOCS / "which_settings" / f"{name}.png").stat().st_size < 400_000
