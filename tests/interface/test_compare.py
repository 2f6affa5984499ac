"""What the compare script shows, on pictures drawn by hand."""

import csv
import io
import math

import numpy as np
import pytest
from PIL import Image, ImageFont

from deepcache_ext.interface import compare
from deepcache_ext.interface.compare import Shot
from deepcache_ext.report.psnr import psnr
from deepcache_ext.settings.fields import SettingsError
from deepcache_ext.settings.settings import parse


def flat(value, size=(60, 40)):
    return Image.new("RGB", size, (value,) * 3)


SHOTS = (
    Shot("without DeepCache", flat(100), 10.0),
    Shot("Balanced", flat(110), 5.0, "15 of 30 full"),
    Shot("cache_interval=3 <b>", flat(100), 4.0, "10 of 30 full"),
)


def test_psnr_is_that_of_the_definition():
    assert psnr(flat(110), flat(100)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(flat(100), flat(100)) == math.inf
    assert math.isnan(psnr(flat(100), flat(100, (8, 8))))


def test_rows_are_held_against_the_first():
    first, second, third = compare.rows(SHOTS)
    assert (first["speed-up"], first["PSNR, dB"]) == ("1.00x", "")
    assert (second["seconds"], second["speed-up"], second["PSNR, dB"]) == ("5.00", "2.00x", "28.1")
    assert (third["speed-up"], third["PSNR, dB"]) == ("2.50x", "equal")


def test_the_difference_is_amplified_and_clipped():
    assert set(np.asarray(compare.difference(flat(110), flat(100), 8)).ravel()) == {80}
    assert set(np.asarray(compare.difference(flat(200), flat(100), 8)).ravel()) == {255}
    assert not np.asarray(compare.difference(flat(100, (8, 8)), flat(100), 8)).any()


@pytest.mark.parametrize("gain", [0, 8])
def test_the_sheet_holds_every_picture_and_difference(gain):
    made = np.asarray(compare.sheet(SHOTS, gain))
    width, step = SHOTS[0].image.width, SHOTS[0].image.width + compare.MARGIN
    for k, shot in enumerate(SHOTS):
        left = compare.MARGIN + k * step
        place = made[compare.MARGIN : compare.MARGIN + 40, left : left + width]
        assert (place == np.asarray(shot.image)).all()
    bottom = made[-compare.MARGIN - 20, compare.MARGIN + step + width // 2]
    assert tuple(bottom) == ((80, 80, 80) if gain else tuple(bottom))
    assert made.shape[1] == 3 * step + compare.MARGIN
    assert made.shape[0] > (80 if gain else 40)


@pytest.mark.parametrize("label", ["a very long name of a setting " * 9, "full_evaluations=" + "0,1,2," * 40])
def test_words_that_are_too_long_are_cut_not_run_into_the_next_picture(label):
    shots = [Shot(label, flat(100), 1.0, label), Shot("b", flat(100), 1.0)]
    made = np.asarray(compare.sheet(shots, 0))
    gap = made[:, compare.MARGIN + 60 : compare.MARGIN + 60 + compare.MARGIN]
    assert (gap == 255).all()


FONT = ImageFont.load_default(12)  # what the script takes for pictures up to 350 pixels wide


def drawn(words, font=FONT, width=192):
    """The part of a sheet below the first of two pictures."""
    size = (width, 40)
    made = np.asarray(
        compare.sheet([Shot(words, flat(100, size), 1.0, "7 of 30 full"), Shot("b", flat(9, size), 1.0)], 0, font)
    )
    return made[2 * compare.MARGIN + 40 :, compare.MARGIN : compare.MARGIN + width]


def test_a_long_setting_stands_on_up_to_three_lines_in_full():
    setting = "cache_interval=3, cache_branch_id=2, estimator=copy, start=0.1"
    image = flat(1, (192, 40))
    lines = compare._words([Shot(setting, image, 1.0), Shot("Fast", image, 2.0, "n")], 192, FONT)
    assert " ".join(lines[0][:-2]) == setting and 1 < len(lines[0][:-2]) <= 3
    # The other setting has blank lines in place of them, so that seconds stand beside seconds.
    assert lines[1] == ["Fast", *[""] * (len(lines[0]) - 3), "2.00 s  0.50x  equal dB", "n"]
    # They are drawn: what is under the picture is taller than with a short name, and each line has ink in it.
    short, long = drawn("b"), drawn(setting)
    line = (len(long) - len(short)) // (len(lines[0]) - 3)
    assert line > 8
    for n in range(len(lines[0])):
        assert long[n * line : (n + 1) * line].min() < 128


def test_more_than_three_lines_end_in_dots():
    setting = "strategy=custom, full_evaluations=0-3, 6, 9, 12, 15, 18, 20, 22, 24, 26, 27, 29; estimator=copy, end=1"
    *_, third, _, _ = lines = compare._words([Shot(setting, flat(1, (192, 40)), 1.0)], 192, FONT)[0]
    assert len(lines) == 5 and third.endswith("...") and setting.startswith(" ".join(lines[:3])[:-3])


def test_a_word_wider_than_the_picture_is_broken():
    lines = compare._words([Shot("x cache_interval=3", flat(1), 1.0)], 60, FONT)[0][:-2]
    assert len(lines) == 3 and lines[0] == "x" and "".join(lines[1:]) == "cache_interval=3"


def test_csv_and_html_say_the_same_and_escape():
    read = list(csv.DictReader(io.StringIO(compare.as_csv(SHOTS))))
    assert read == compare.rows(SHOTS)
    page = compare.as_html(SHOTS, 'a"b.png', "<script>")
    assert "<script>" not in page and "&lt;b&gt;" in page and "a&quot;b.png" in page
    for row in read:
        assert f"<td>{row['seconds']}</td>" in page


def test_wishes():
    typed = "cache_interval=3, estimator=copy\n\nfull_evaluations=0-3, 6, 9; strategy=custom\nspeed_up = 2.5"
    names, settings = zip(*compare.wishes(["Fast", "Quality"], typed), strict=True)
    assert names[:2] == ("Quality", "Fast")
    assert settings[1] == {"enabled": True, "preset": "Fast"}
    assert settings[2] == {"enabled": True, "cache_interval": 3, "estimator": "copy"}
    assert settings[3] == {"enabled": True, "full_evaluations": "0-3, 6, 9", "strategy": "custom"}
    parsed = parse([settings[4]])
    assert (parsed.strategy, parsed.speed_up, parsed.preset) == ("weighted", 2.5, "Custom")
    assert compare.wishes([], "") == []


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("interval=3", "interval=3"),
        ("cache_interval", "cache_interval"),
        ("cache_interval=0", "from 1 to 50"),
        ("cache_interval=x", "'x'"),
        ("estimator=magic", "magic"),
    ],
)
def test_a_wish_that_cannot_be_met_says_why(typed, named):
    with pytest.raises(SettingsError, match=named):
        compare.wishes([], typed)
