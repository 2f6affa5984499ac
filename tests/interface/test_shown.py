"""What is shown has an effect, and what is not shown has none: by the plans that come of it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest

from deepcache_ext.interface.accordion import LOWEST
from deepcache_ext.interface.shown import CONDITIONAL, HIRES, UNSET, effective
from deepcache_ext.plan.preview import PassAhead, planned
from deepcache_ext.settings.fields import CUSTOM, FIELD, FIELDS, STRATEGIES, SettingsError
from deepcache_ext.settings.settings import Settings, parse

SIGMAS = tuple(math.exp(2.7 - 6 * k / 29) for k in range(30))
OTHERS = {
    "cache_interval": (2, 7),
    "cache_branch_id": (1, 3),
    "estimator": ("copy", "forecast"),
    "start": (0.4,),
    "end": (0.5,),
    "passes": ("both", "first only", "hires only"),
    "hires_cache_interval": (2, 9),
    "hires_cache_branch_id": (1, 4),
    "strategy": ("weighted", "uniform", "custom"),
    "speed_up": (1.3, 3.0),
    "hires_speed_up": (1.3, 3.0),
    "full_evaluations": ("0-9", "0, 5"),
    "center": (0.1, 0.8),
    "power": (1.1, 2.5),
    "deeper_branch_id": (5, 8),
}
"""Values to try in place of what is set."""


def plans(settings, hires):
    """What each evaluation of each pass runs and on what; None where the settings cannot be used."""
    aheads = [PassAhead(False, 30, SIGMAS, 12)] + [PassAhead(True, 30, SIGMAS, 12)] * hires
    try:
        again = parse([dict(zip((one.name for one in FIELDS), values(settings).values(), strict=True))])
        found = [planned(again, ahead) for ahead in aheads]
    except SettingsError:
        return None
    # An estimator is of no account where nothing is cached.
    return [(one.branches, one.estimator.name if one.live_branches else "") for one in found]


def values(settings):
    return {one.name: getattr(settings, one.name) for one in FIELDS}


def has_effect(settings, name, hires):
    own = plans(settings, hires)
    return any(plans(replace(settings, **{name: other}), hires) not in (None, own) for other in OTHERS[name])


CASES = [
    (strategy, passes, typed, hires, unset)
    for strategy, passes, typed, hires, unset in product(
        STRATEGIES, FIELD["passes"].choices, ("0-3, 8, 15, 22", "0-3, 8, 15/5, 22"), (False, True), (True, False)
    )
    if strategy == "custom" or "/" not in typed
]


@pytest.mark.parametrize(("strategy", "passes", "typed", "hires", "unset"), CASES)
def test_what_is_shown_has_an_effect_and_what_is_not_has_none(strategy, passes, typed, hires, unset):
    own = {} if unset else {"hires_speed_up": 1.8, "hires_cache_interval": 4, "hires_cache_branch_id": 2}
    settings = Settings(enabled=True, preset=CUSTOM, strategy=strategy, passes=passes, full_evaluations=typed, **own)
    shown = effective(values(settings), hires)
    if passes == "hires only" and not hires:
        return  # nothing is cached, and passes alone can change that: see below
    tried = [name for name in OTHERS if hires or name != "passes"]  # that would only switch it off, as the tick does
    found = {name for name in tried if has_effect(settings, name, hires)}
    assert shown & set(OTHERS) == found


def test_what_keeps_the_only_pass_from_being_cached_is_there_to_be_changed():
    settings = Settings(enabled=True, preset=CUSTOM, passes="hires only")
    assert "passes" in effective(values(settings), hires=False) and has_effect(settings, "passes", False)
    assert "passes" not in effective(values(Settings()), hires=False)


def test_every_setting_is_either_always_there_or_conditional():
    assert set(OTHERS) | {"enabled", "preset"} == set(FIELD)
    always = [name for name in OTHERS if name not in CONDITIONAL]
    for settings, hires in product((Settings(), Settings(strategy="uniform"), Settings(passes="hires only")), (0, 1)):
        assert set(always) <= effective(values(settings), bool(hires))


def test_a_box_stands_for_a_value_below_its_slider():
    for name, value in UNSET.items():
        assert FIELD[name].default == value < LOWEST[name] and (name not in HIRES or HIRES[name][1] == value)
