"""Arguments in, settings or a clear message out."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepcache_ext.settings.fields import CUSTOM, FIELD, FIELDS, OBEYED, PRESETS, STRATEGYS_OWN, SettingsError
from deepcache_ext.settings.settings import Settings, overruled, parse


def test_the_order_of_the_arguments_is_frozen():
    assert [field.name for field in FIELDS[:10]] == [
        "enabled",
        "preset",
        "cache_interval",
        "cache_branch_id",
        "estimator",
        "start",
        "end",
        "passes",
        "hires_cache_interval",
        "hires_cache_branch_id",
    ]
    assert [field.name for field in FIELDS[10:]] == [
        "strategy",
        "speed_up",
        "hires_speed_up",
        "full_evaluations",
        "center",
        "power",
        "deeper_branch_id",
    ]


def test_defaults_are_those_of_the_fields():
    """The page begins with the default preset; whoever builds Settings by hand gets the plain, uniform ones."""
    assert parse([]) == Settings()
    assert all(getattr(Settings(), f.name) == f.default for f in FIELDS)
    assert all(FIELD[name].default == value for name, value in PRESETS[FIELD["preset"].default].items())


def test_positional_lists_may_be_short():
    assert parse([True]) == Settings(enabled=True)
    assert parse([True, CUSTOM, 7, 4]) == Settings(enabled=True, preset=CUSTOM, cache_interval=7, cache_branch_id=4)


def test_a_mapping_may_stand_for_the_list():
    given = {"enabled": True, "cache_interval": 3, "cache_branch_id": 0}
    assert parse([given]) == Settings(enabled=True, preset=CUSTOM, strategy="uniform")
    assert parse([{**given, "cache_interval": 4}, "Fast", 1]) == Settings(
        enabled=True, preset=CUSTOM, strategy="uniform", cache_interval=4
    )


@pytest.mark.parametrize(
    ("named", "strategy"),
    [
        ({}, "weighted"),
        ({"cache_interval": 4}, "uniform"),
        ({"speed_up": 2.2}, "weighted"),
        ({"full_evaluations": "0 5"}, "custom"),
        ({"cache_interval": 4, "strategy": "non-uniform"}, "non-uniform"),
        ({"cache_branch_id": 1}, "weighted"),
        ({"preset": "Fast"}, "weighted"),
    ],
)
def test_what_is_named_tells_the_strategy(named, strategy):
    assert parse([{"enabled": True, **named}]).strategy == strategy


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_its_controls(preset):
    for settings in (parse([True, preset]), parse([{"enabled": True, "preset": preset}])):
        assert settings.preset == preset
        assert all(getattr(settings, name) == value for name, value in PRESETS[preset].items())


def test_a_preset_wins_in_a_list_and_says_so():
    args = [True, "Fast", 3, 7]
    settings = parse(args)
    assert settings.cache_branch_id == 0
    (note,) = overruled(args, settings)
    assert "Fast" in note and "cache_branch_id = 0" in note and "7" in note
    assert overruled([True, "Fast", 3, 0], settings) == []  # the control's default is nobody's wish
    assert overruled([True, CUSTOM, 7], parse([True, CUSTOM, 7])) == []


def test_an_explicit_value_wins_in_a_mapping():
    settings = parse([{"enabled": True, "preset": "Fast", "cache_branch_id": 2}])
    assert (settings.preset, settings.speed_up, settings.cache_branch_id) == (CUSTOM, 2.6, 2)


@pytest.mark.parametrize(
    ("args", "field", "allowed"),
    [
        ([1], "enabled", "true or false"),
        ([True, "Turbo"], "preset", "one of Quality, Balanced, Fast, Custom"),
        ([True, CUSTOM, 0], "cache_interval", "a whole number from 1 to 50"),
        ([True, CUSTOM, 2.5], "cache_interval", "a whole number from 1 to 50"),
        ([True, CUSTOM, True], "cache_interval", "a whole number from 1 to 50"),
        ([True, CUSTOM, "3"], "cache_interval", "a whole number from 1 to 50"),
        ([True, CUSTOM, 3, -1], "cache_branch_id", "a whole number from 0 to 47"),
        ([True, CUSTOM, 3, 0, "guess"], "estimator", "one of auto, copy, forecast"),
        ([True, CUSTOM, 3, 0, "copy", math.nan], "start", "a number from 0 to 1"),
        ([True, CUSTOM, 3, 0, "copy", 0.5, 0.4], "start", r"a number from 0 to end \(0.4\)"),
        ([{"enabled": True, "interval": 3}], "interval", "the known settings are enabled, preset, cache_interval"),
        ([{"enabled": True, "hires_speed_up": 0.5}], "hires_speed_up", "0, or a number from 1 to 5"),
        ([{"enabled": True, "full_evaluations": "0-3, x"}], "full_evaluations", "such as 0-3, 6"),
        ([{"enabled": True, "strategy": "custom"}], "full_evaluations", "such as 0-3, 6"),
        ([{"enabled": True, "full_evaluations": "1 " * 900}], "full_evaluations", "at most 1000 characters"),
        ([True] * 18, "args", "at most 17 values"),
    ],
)
def test_what_cannot_be_used_is_named(args, field, allowed):
    with pytest.raises(SettingsError, match=allowed) as raised:
        parse(args)
    assert raised.value.field == field or field == "args"
    assert str(raised.value).startswith(f"{raised.value.field} = ")


def test_numbers_may_come_as_floats():
    settings = parse([True, CUSTOM, 4.0, 2.0])
    assert (settings.cache_interval, type(settings.cache_interval)) == (4, int)


def test_passes():
    both, first, hires = (Settings(enabled=True, passes=passes) for passes in FIELD["passes"].choices)
    assert [s.covers(False) for s in (both, first, hires)] == [True, True, False]
    assert [s.covers(True) for s in (both, first, hires)] == [True, False, True]
    assert not Settings().covers(False)


def test_own_values_for_the_hires_pass():
    settings = Settings(cache_interval=3, cache_branch_id=1, hires_cache_interval=5, hires_cache_branch_id=0)
    assert settings.for_pass(hires=False) == settings
    hires = settings.for_pass(hires=True)
    assert (hires.cache_interval, hires.cache_branch_id) == (5, 0)
    same = Settings(cache_interval=3, cache_branch_id=1).for_pass(hires=True)
    assert (same.cache_interval, same.cache_branch_id) == (3, 1)


VALUES = {
    "enabled": st.just(True),
    "preset": st.just(CUSTOM),
    "cache_interval": st.integers(1, 50),
    "cache_branch_id": st.integers(0, 47),
    "estimator": st.sampled_from(FIELD["estimator"].choices),
    "start": st.floats(0, 0.5),
    "end": st.floats(0.5, 1),
    "passes": st.sampled_from(FIELD["passes"].choices),
    "hires_cache_interval": st.integers(0, 50),
    "hires_cache_branch_id": st.integers(-1, 47),
    "strategy": st.sampled_from(FIELD["strategy"].choices),
    "speed_up": st.floats(1, 5),
    "hires_speed_up": st.just(0.0) | st.floats(1, 5),
    "full_evaluations": st.sampled_from(["0", "0-3, 6, 9-20:2"]),
    "center": st.floats(0, 1),
    "power": st.floats(1, 3),
    "deeper_branch_id": st.integers(0, 47),
}


@given(st.fixed_dictionaries(VALUES))
def test_an_infotext_is_enough_to_make_the_picture_again(values):
    settings = parse([values])
    written = settings.infotext()
    assert written["DeepCache version"] == 2
    read = {field.name: field.parse(written.get(field.infotext, field.default)) for field in FIELDS[1:]}
    without_effect = {name: getattr(settings, name) for name in STRATEGYS_OWN if name not in OBEYED[settings.strategy]}
    assert replace(Settings(enabled=True, **read), **without_effect) == settings
    assert parse([values[field.name] for field in FIELDS]) == settings


def test_an_infotext_is_short_where_nothing_special_was_set():
    keys = {"version", "preset", "strategy", "branch", "estimator", "speed up"}
    assert set(parse([{"enabled": True}]).infotext()) == {f"DeepCache {key}" for key in keys}
    typed = parse([{"enabled": True, "full_evaluations": "0, 5", "end": 0.5}]).infotext()
    assert set(typed) == {f"DeepCache {key}" for key in keys - {"speed up"} | {"full steps", "end"}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@example([{"": 0}])
@example([{"x" * 1000: 0}])
@given(st.lists(JSON, max_size=18) | st.tuples(st.dictionaries(st.sampled_from(sorted(FIELD)), JSON)))
def test_whatever_comes_is_settings_or_a_settings_error(args):
    try:
        settings = parse(list(args))
    except SettingsError as error:
        assert error.field and error.allowed and len(str(error)) < 500
    else:
        for field in FIELDS:
            assert field.parse(getattr(settings, field.name)) == getattr(settings, field.name)
        overruled(list(args), settings)
