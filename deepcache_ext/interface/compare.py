"""What the compare script shows: pictures side by side, how far they are from the uncached one, how long they took.

Works on finished pictures; needs no host.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..report.psnr import psnr
from ..settings.fields import FIELD, FIELDS, PRESETS, SettingsError
from ..settings.settings import parse

COLUMNS = ("settings", "seconds", "speed-up", "PSNR, dB", "steps")
MARGIN = 8
"""Pixels. Chosen by hand."""
LINES = 3
"""At most so many for a setting, and for its count of evaluations; what is longer ends in dots. Chosen by hand."""


@dataclass(frozen=True)
class Shot:
    """One setting's picture. `seconds`: of the whole generation; `evaluations`: what the infotext says of them."""

    label: str
    image: Image.Image
    seconds: float
    evaluations: str = ""


def wishes(chosen: Sequence[str], typed: str) -> list[tuple[str, dict[str, Any]]]:
    """Labels, and settings by name: the chosen presets, then a line each of what was typed, such as
    `cache_interval=3, estimator=copy`. Raises `SettingsError`.
    """
    found: list[tuple[str, dict[str, Any]]] = [
        (name, {"enabled": True, "preset": name}) for name in PRESETS if name in chosen
    ]
    for line in filter(None, (one.strip() for one in typed.splitlines())):
        given: dict[str, Any] = {"enabled": True}
        for part in filter(None, (one.strip() for one in re.split(r"[,;](?=\s*[a-z_]+\s*=)", line))):
            name, equals, text = (one.strip() for one in part.partition("="))
            if not equals or name not in FIELD:
                names = ", ".join(field.name for field in FIELDS if field.name not in ("enabled", "preset"))
                raise SettingsError("compare", part, f"a setting and its value, as in cache_interval=3, of {names}")
            given[name] = _typed(name, text)
        parse([given])
        found.append((line, given))
    return found


def _typed(name: str, text: str) -> Any:
    default = FIELD[name].default
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(default, (int, float)):
        try:
            number = float(text)
        except ValueError:
            return text
        return int(number) if number.is_integer() and isinstance(default, int) else number
    return text


def difference(image: Image.Image, reference: Image.Image, gain: float) -> Image.Image:
    """How far each place is off, times `gain`; black is equal."""
    if image.size != reference.size:
        return Image.new("RGB", image.size)
    a, b = (np.asarray(one.convert("RGB"), dtype=np.float64) for one in (image, reference))
    return Image.fromarray(np.clip(np.abs(a - b) * gain, 0, 255).round().astype(np.uint8))


def rows(shots: Sequence[Shot]) -> list[dict[str, str]]:
    """One row a shot, under `COLUMNS`; the first shot is the uncached one."""
    reference, found = shots[0], []
    for shot in shots:
        like = "" if shot is reference else _decibels(_psnr(shot.image, reference.image))
        faster = f"{reference.seconds / shot.seconds:.2f}x" if shot.seconds > 0 else ""
        found.append(
            dict(zip(COLUMNS, (shot.label, f"{shot.seconds:.2f}", faster, like, shot.evaluations), strict=True))
        )
    return found


def _psnr(image: Image.Image, reference: Image.Image) -> float:
    return psnr(image.convert("RGB"), reference.convert("RGB"))


def _decibels(value: float) -> str:
    if math.isnan(value):
        return "another size"
    return "equal" if math.isinf(value) else f"{value:.1f}"


def sheet(shots: Sequence[Shot], gain: float, font: Any = None) -> Image.Image:
    """The pictures in a row, what is known of each below it, and below that its difference from the first, times
    `gain` (left out where `gain` is 0).
    """
    width, height = (max(shot.image.size[k] for shot in shots) for k in (0, 1))
    line, words = math.ceil(_height(font) * 1.3), _words(shots, width, font)
    text = len(words[0]) * line + MARGIN
    size = len(shots) * (width + MARGIN) + MARGIN, (height + text) + (height + MARGIN if gain else 0) + 2 * MARGIN
    made = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(made)
    for k, shot in enumerate(shots):
        left = MARGIN + k * (width + MARGIN)
        made.paste(shot.image.convert("RGB"), (left, MARGIN))
        for n, of_line in enumerate(words[k]):
            draw.text((left, MARGIN + height + MARGIN // 2 + n * line), of_line, "black", font)
        if gain and k:
            below = MARGIN + height + text
            made.paste(difference(shot.image, shots[0].image, gain), (left, below))
    if gain:
        note = _fitting(draw, f"differences, {gain:g} times", width, font)
        draw.text((MARGIN, MARGIN + height + text), note, "black", font)
    return made


def _words(shots: Sequence[Shot], width: int, font: Any) -> list[list[str]]:
    """Lines below each picture, none wider than `width`: the setting, what was measured, the evaluations. Of one number
    for all shots, so that like stands beside like.
    """
    draw, columns = ImageDraw.Draw(Image.new("RGB", (1, 1))), []
    for shot, row in zip(shots, rows(shots), strict=True):
        measured = [f"{row['seconds']} s", row["speed-up"], f"{row['PSNR, dB']} dB" if row["PSNR, dB"] else ""]
        columns.append(
            (
                _wrapped(draw, shot.label, width, font),
                [_fitting(draw, "  ".join(filter(None, measured)), width, font)],
                _wrapped(draw, shot.evaluations, width, font),
            )
        )
    most = [max(len(column[part]) for column in columns) for part in range(3)]
    return [
        [line for part, lines in enumerate(column) for line in lines + [""] * (most[part] - len(lines))]
        for column in columns
    ]


def _height(font: Any) -> int:
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), "Ay", font=font)
    return int(box[3])


def _wrapped(draw: ImageDraw.ImageDraw, words: str, width: int, font: Any) -> list[str]:
    """At most `LINES` lines, broken at blanks, or within a word that is wider than a line."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if _fits(draw, longer, width, font):
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        while len(word) > 1 and not _fits(draw, word, width, font):
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _fits(draw, word[:n], width, font))
            lines[-1:], word = [word[:fits], ""], word[fits:]
        lines[-1] = word
    if len(lines) > LINES:
        lines[LINES - 1 :] = [_fitting(draw, " ".join(lines[LINES - 1 :]), width, font)]
    return lines


def _fits(draw: ImageDraw.ImageDraw, words: str, width: int, font: Any) -> bool:
    return draw.textlength(words, font=font) <= width


def _fitting(draw: ImageDraw.ImageDraw, words: str, width: int, font: Any) -> str:
    if _fits(draw, words, width, font):
        return words
    while words and not _fits(draw, words + "...", width, font):
        words = words[:-1]
    return words.rstrip() + "..."


def as_csv(shots: Sequence[Shot]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(shots))
    return out.getvalue()


def as_html(shots: Sequence[Shot], picture: str, title: str) -> str:
    """A page of its own. `picture`: the sheet's file name beside it; `title`: the prompt."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row[name])}</td>" for name in COLUMNS) + "</tr>\n" for row in rows(shots)
    )
    return (
        f"<!doctype html>\n<meta charset=utf-8>\n<title>DeepCache: compare</title>\n"
        "<style>body{font-family:sans-serif;margin:1em}td,th{padding:.2em .8em;text-align:left}img{max-width:100%}"
        "</style>\n"
        f"<p>{html.escape(title)}</p>\n<table><tr>{head}</tr>\n{body}</table>\n"
        f'<p><img src="{html.escape(picture, quote=True)}" alt="the pictures side by side"></p>\n'
    )
