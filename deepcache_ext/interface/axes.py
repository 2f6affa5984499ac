"""Axes for the hosts' X/Y/Z plots. A value goes to the run as an override of one setting (`p.deepcache_overrides`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..settings.evaluation_list import ranges
from ..settings.fields import FIELD, PRESETS, SettingsError

OFF = "Off"
PREFIX = "[DeepCache] "
AXES = (
    "preset",
    "speed_up",
    "strategy",
    "cache_interval",
    "cache_branch_id",
    "full_evaluations",
    "center",
    "power",
    "estimator",
    "start",
    "end",
    "passes",
    "hires_speed_up",
    "hires_cache_interval",
    "hires_cache_branch_id",
    "deeper_branch_id",
)
"""The settings that have an axis, in their order in the host's list."""

BRANCHES = ("cache_branch_id", "hires_cache_branch_id", "deeper_branch_id")


def add_axes(scripts_data: Iterable[Any], branches: Callable[[], int] = lambda: 0) -> int:
    """Add our axes to every X/Y/Z script among the host's; returns how many were added. Twice adds nothing.

    `branches`: how many the loaded model has, 0 where none is loaded. The parameters of `AxisOption` after the first
    three have other names in SD.Next than in A1111, but for `confirm` and `choices`.
    """
    added = 0
    for data in scripts_data:
        module = getattr(data, "module", None)
        option, options = getattr(module, "AxisOption", None), getattr(module, "axis_options", None)
        if option is None or not isinstance(options, list):
            continue
        known = {getattr(one, "label", None) for one in options}
        for name in AXES:
            if label(name) not in known:
                options.append(_axis(option, name, branches))
                added += 1
    return added


def label(name: str) -> str:
    """The axis's name in the host's list."""
    return PREFIX + FIELD[name].label


def _axis(option: Callable[..., Any], name: str, branches: Callable[[], int]) -> Any:
    field = FIELD[name]
    more: dict[str, Any] = {"confirm": _confirm(name, branches)}
    if field.choices:
        # Custom says nothing by itself: it is what a preset becomes when another axis changes what it sets.
        names = [OFF, *PRESETS] if name == "preset" else list(field.choices)
        more["choices"] = lambda: list(names)
    return option(label(name), type(field.default), _apply(name), **more)


def _apply(name: str) -> Callable[[Any, Any, Sequence[Any]], None]:
    def apply(p: Any, x: Any, xs: Sequence[Any]) -> None:
        # A new mapping: the host copies p for each cell, but not what its attributes hold.
        change = {"enabled": False} if name == "preset" and _is_off(x) else {name: x}
        p.deepcache_overrides = {**(getattr(p, "deepcache_overrides", None) or {}), **change}

    return apply


def _confirm(name: str, branches: Callable[[], int]) -> Callable[[Any, Sequence[Any]], None]:
    """Raises for the first value that cannot be used, before any picture is made; the host shows the message."""

    def confirm(p: Any, xs: Sequence[Any]) -> None:
        for x in xs:
            if name == "preset" and _is_off(x):
                continue
            try:
                value = FIELD[name].parse(x)
                if name == "full_evaluations":
                    ranges(value)
                if name in BRANCHES and 0 < branches() <= value:
                    raise SettingsError(name, x, f"the loaded model's branches are 0 to {branches() - 1}")
            except SettingsError as error:
                raise RuntimeError(f"{label(name)}: {error}") from error

    return confirm


def _is_off(x: Any) -> bool:
    return str(x).strip().lower() == OFF.lower()
