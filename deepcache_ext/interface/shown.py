"""Which of the settings have an effect as things stand: the page shows no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..settings.fields import (
    AS_FIRST_PASS_BRANCH,
    AS_FIRST_PASS_INTERVAL,
    AS_FIRST_PASS_SPEED_UP,
    FIELD,
    NO_DEEPER,
    OBEYED,
    STRATEGYS_OWN,
)

HIRES = {
    "hires_speed_up": ("speed_up", AS_FIRST_PASS_SPEED_UP),
    "hires_cache_interval": ("cache_interval", AS_FIRST_PASS_INTERVAL),
    "hires_cache_branch_id": ("cache_branch_id", AS_FIRST_PASS_BRANCH),
}
"""The hires pass's own settings: what each stands for, and its value for "same as first pass"."""

UNSET = {**{name: value for name, (_, value) in HIRES.items()}, "deeper_branch_id": NO_DEEPER}
"""Values that say that there is none. The page says so by a check box."""

CONDITIONAL = tuple(dict.fromkeys((*STRATEGYS_OWN, *HIRES, "passes", "deeper_branch_id")))
"""Settings that at times have no effect."""


def effective(values: Mapping[str, Any], hires: bool) -> set[str]:
    """Settings that change what a run does. `values`: all of them by their names; `hires`: whether the run has a hires
    pass.
    """
    strategy, passes = values["strategy"], values["passes"]
    found = {name for name in FIELD if name not in STRATEGYS_OWN or name in OBEYED.get(strategy, STRATEGYS_OWN)}
    # Beside a speed-up of its own the hires pass of a list is a weighted one.
    weighted = strategy == "custom" and values["hires_speed_up"] != AS_FIRST_PASS_SPEED_UP
    if strategy == "custom" and "/" in str(values["full_evaluations"]) and not (weighted and hires):
        found.discard("deeper_branch_id")  # the list says itself which ones are medium
    if not hires:
        found -= set(HIRES)
        # Without a hires pass it still can keep the only one from being cached.
        return found if passes == "hires only" else found - {"passes"}
    if passes == "first only":
        return effective({**values, "passes": "both"}, hires=False) | {"passes"}
    if passes == "hires only":
        found -= {first for own, (first, unset) in HIRES.items() if own in found and values[own] != unset}
        if weighted:
            found.discard("full_evaluations")
    return found
