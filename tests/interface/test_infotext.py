"""Infotexts: what is written under a picture, and what is read out of one."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.interface import infotext
from deepcache_ext.settings.fields import CUSTOM, FIELD, FIELDS, OBEYED, SELDOM, STRATEGYS_OWN
from deepcache_ext.settings.settings import Settings, parse


def pasted(params):
    return {field.name: infotext.reader(field.name)(params) for field in FIELDS}


@pytest.mark.parametrize(
    "given_settings",
    [
        Settings(enabled=True, preset=CUSTOM, strategy="custom", full_evaluations="0, 4-9:2", estimator="copy"),
        Settings(
            enabled=True,
            preset=CUSTOM,
            strategy="non-uniform",
            center=0.4,
            power=1.2,
            passes="first only",
            cache_branch_id=3,
        ),
        parse([True, "Fast"]),
    ],
)
def test_an_infotext_comes_back_whole(given_settings):
    written = {key: str(value) for key, value in given_settings.infotext().items()}
    back = pasted(written)
    assert back.pop("enabled") is True and infotext.note(written) == ""
    absent = {name for name, value in back.items() if value is None}
    assert absent == set(STRATEGYS_OWN) - set(OBEYED[given_settings.strategy]) - set(SELDOM)
    assert all(getattr(given_settings, name) == value for name, value in back.items() if name not in absent)


def test_what_is_seldom_written_goes_back_to_its_default():
    back = pasted({"DeepCache version": "2", "DeepCache preset": "Custom", "DeepCache strategy": "uniform"})
    assert (back["start"], back["passes"], back["hires_cache_branch_id"]) == (0.0, "both", -1)
    assert back["cache_interval"] is None is back["speed_up"]


def test_a_preset_brings_what_it_sets_and_not_what_came_of_it():
    params = {"DeepCache version": "2", "DeepCache preset": "Fast", "DeepCache estimator": "forecast"}
    assert pasted(params)["estimator"] == "auto" and pasted(params)["speed_up"] == 2.6
    assert pasted({**params, "DeepCache preset": "Custom"})["estimator"] == "forecast"
    assert pasted({**params, "DeepCache preset": "?"})["estimator"] == "forecast"


def test_an_infotext_without_it_switches_off_and_leaves_the_rest():
    back = pasted({"Steps": "20", "Sampler": "Euler"})
    assert back.pop("enabled") is False and set(back.values()) == {None}
    assert infotext.note({"Steps": "20"}) == "" == infotext.shown_note({"Steps": "20"})


SDNEXT = re.compile(r'\s*([\w ]+):\s*("[^"]*"|[^,]*)(?:,|$)')
"""What SD.Next takes for a key, and for its value."""


def test_keys_are_letters_digits_and_blanks_only():
    """Of `DeepCache speed-up` SD.Next reads `up`."""
    for field in FIELDS:
        assert dict(SDNEXT.findall(f"Steps: 9, {field.infotext}: 1")) == {"Steps": "9", field.infotext: "1"}
    assert all(re.fullmatch(r"[A-Za-z0-9 ]+", key) for key in Settings(strategy="custom").infotext())


def test_keys_of_before_are_still_read():
    params = {"DeepCache version": "2", "DeepCache preset": "Custom", "DeepCache strategy": "weighted"}
    old = {"DeepCache speed-up": "2.3", "DeepCache hires speed-up": "1.5", "DeepCache deeper branch": "5"}
    back = pasted({**params, **old, "DeepCache full evaluations": "0-3"})
    assert (back["speed_up"], back["hires_speed_up"], back["deeper_branch_id"]) == (2.3, 1.5, 5)
    assert back["full_evaluations"] == "0-3" and infotext.note({**params, **old}) == ""
    assert pasted({**params, **old, "DeepCache speed up": "2.9"})["speed_up"] == 2.9
    # In SD.Next the old one is lost: that is said, not guessed at.
    cut = {**params, "up": "2.3"}
    assert pasted(cut)["speed_up"] is None and "its speed-up was lost" in infotext.note(cut)
    assert infotext.note({**cut, "DeepCache preset": "Fast"}) == "" == infotext.note({"up": "2.3"})


def test_the_first_version_meant_uniform():
    back = pasted({"DeepCache version": "1", "DeepCache preset": "Balanced", "DeepCache interval": "4"})
    assert (back["preset"], back["strategy"], back["cache_interval"]) == ("Custom", "uniform", 4)


@pytest.mark.parametrize("key", ["DeepCache pass", "Pass to DeepCache"])
@pytest.mark.parametrize(
    ("value", "enabled", "passes"),
    [
        ("both passes", True, "both"),
        ("second pass", True, "hires only"),
        ("disable", False, None),
        ("?", False, None),
    ],
)
def test_the_older_extension(key, value, enabled, passes):
    back = pasted({key: value})
    assert (back["enabled"], back["passes"]) == (enabled, passes)
    assert ("another DeepCache extension" in infotext.note({key: value})) is enabled


def test_a_newer_version_and_wrong_values_are_noted(caplog):
    logging.getLogger("deepcache").propagate = True
    params = {"DeepCache version": "3", "DeepCache interval": "<i>", "DeepCache strategy": "weighted"}
    assert pasted(params)["cache_interval"] is None
    shown = infotext.shown_note(params)
    assert "newer version (3)" in shown and "cache_interval = &#x27;&lt;i&gt;&#x27; is not allowed" in shown
    assert "pasted infotext" in caplog.text


@given(
    st.dictionaries(
        st.sampled_from([field.infotext for field in FIELDS] + ["DeepCache version", "DeepCache pass"]),
        st.one_of(st.text(), st.floats().map(str), st.integers().map(str), st.none(), st.integers(), st.booleans()),
    )
)
def test_no_infotext_raises_and_only_usable_values_come(params):
    logging.getLogger("deepcache").setLevel(logging.ERROR)
    for name, value in pasted(params).items():
        assert value is None or FIELD[name].parse(value) == value
    infotext.note(params)


def test_both_tabs_read_with_the_same_objects():
    one, other = ({field.name: object() for field in FIELDS} for _ in range(2))
    fields = infotext.paste_fields(one, object()), infotext.paste_fields(other, object())
    assert infotext.paste_names(fields[0]) == infotext.paste_names(fields[1])
    assert len(infotext.paste_names(fields[0])) == len(FIELDS)
