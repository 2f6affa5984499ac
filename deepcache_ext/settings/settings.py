"""What a user can set: names, ranges, defaults, presets, infotext names; and how arguments become `Settings`.

The order of `FIELDS` is the order of the positional arguments of the WebUI's API and is frozen: later fields
are appended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .evaluation_list import ranges
from .fields import (
    AS_FIRST_PASS_BRANCH,
    AS_FIRST_PASS_INTERVAL,
    CUSTOM,
    FIELD,
    FIELDS,
    FORMAT_VERSION,
    MAX_BRANCH,
    OBEYED,
    PRESETS,
    SELDOM,
    STRATEGYS_OWN,
    SettingsError,
)


@dataclass(frozen=True)
class Settings:
    """Effective settings of one generation; the preset is already applied. The defaults are those of `FIELDS`.

    `cache_interval` and `cache_branch_id` mean what they mean in DeepCacheSDHelper; `start` and `end` are
    fractions of a pass's evaluations.
    """

    enabled: bool = FIELD["enabled"].default
    preset: str = FIELD["preset"].default
    cache_interval: int = FIELD["cache_interval"].default
    cache_branch_id: int = FIELD["cache_branch_id"].default
    estimator: str = FIELD["estimator"].default
    start: float = FIELD["start"].default
    end: float = FIELD["end"].default
    passes: str = FIELD["passes"].default
    hires_cache_interval: int = FIELD["hires_cache_interval"].default
    hires_cache_branch_id: int = FIELD["hires_cache_branch_id"].default
    strategy: str = FIELD["strategy"].default
    speed_up: float = FIELD["speed_up"].default
    hires_speed_up: float = FIELD["hires_speed_up"].default
    full_evaluations: str = FIELD["full_evaluations"].default
    center: float = FIELD["center"].default
    power: float = FIELD["power"].default
    deeper_branch_id: int = FIELD["deeper_branch_id"].default

    def covers(self, hires: bool) -> bool:
        """Whether the hires pass (or else the first, or img2img, pass) is to be cached."""
        return self.enabled and self.passes != ("first only" if hires else "hires only")

    @property
    def is_of_one_pass(self) -> bool:
        """Whether the plan is the first pass's alone: a list beside a speed-up for others."""
        return self.strategy == "custom" and self.hires_speed_up > 0

    def for_pass(self, hires: bool) -> Settings:
        """The settings with strategy, interval, branch and speed-up as they hold in that pass."""
        if not hires:
            return self
        interval, branch = self.hires_cache_interval, self.hires_cache_branch_id
        return replace(
            self,
            strategy="weighted" if self.is_of_one_pass else self.strategy,
            cache_interval=self.cache_interval if interval == AS_FIRST_PASS_INTERVAL else interval,
            cache_branch_id=self.cache_branch_id if branch == AS_FIRST_PASS_BRANCH else branch,
            speed_up=self.hires_speed_up or self.speed_up,
        )

    def infotext(self) -> dict[str, Any]:
        """What has an effect, under its infotext key: enough to make the picture again. What the strategy does not
        obey is left out, and of `SELDOM` what is at its default.
        """
        values, written = asdict(self), {"DeepCache version": FORMAT_VERSION}
        for field in FIELDS:
            obeyed = field.name not in STRATEGYS_OWN or field.name in OBEYED[self.strategy]
            if field.name != "enabled" and obeyed and (field.name not in SELDOM or values[field.name] != field.default):
                written[field.infotext] = values[field.name]
        return written


def parse(args: Sequence[Any]) -> Settings:
    """Settings from the arguments a host hands to the script.

    `args` is positional in the order of `FIELDS` (a shorter list leaves the rest at its default), or a mapping
    of names as the first element. A preset other than Custom decides the fields it sets in a positional list,
    where every control always has a value; in a mapping a field that is named is explicit and wins, and the
    preset is then Custom. Raises `SettingsError`.
    """
    if args and isinstance(args[0], Mapping):
        return _from_mapping(args[0])
    if len(args) > len(FIELDS):
        raise SettingsError("args", list(args), f"at most {len(FIELDS)} values")
    values = {field.name: field.parse(value) for field, value in zip(FIELDS, args, strict=False)}
    preset = values.setdefault("preset", FIELD["preset"].default)
    return _checked(Settings(**{**values, **PRESETS.get(preset, {})}))


def overruled(args: Sequence[Any], settings: Settings) -> list[str]:
    """What `parse` left aside: controls in a positional list that say otherwise than the chosen preset, in words."""
    if not settings.enabled or (args and isinstance(args[0], Mapping)):
        return []
    given = {field.name: field.parse(value) for field, value in zip(FIELDS, args, strict=False)}
    return [
        f"preset {settings.preset} sets {name} = {value}, not {given[name]}; choose {CUSTOM} to set it yourself"
        for name, value in PRESETS.get(settings.preset, {}).items()
        if name in given and given[name] not in (value, FIELD[name].default)
    ]


MEANS = {"cache_interval": "uniform", "speed_up": "weighted", "full_evaluations": "custom"}


def _read(given: Mapping[Any, Any], strategy: str = "") -> dict[str, Any]:
    """What a mapping names, and with it the strategy that it means, where that is not `strategy` or as good as that."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in FIELD:
            known = "the known settings are " + ", ".join(FIELD)
            raise SettingsError(str(name)[:80] or "(no name)", value, known)
        values[name] = FIELD[name].parse(value)
    # Whoever names what one strategy alone obeys means that one; a script written for DeepCacheSDHelper does.
    meant = [means for name, means in MEANS.items() if values.get(name)]
    if "strategy" not in values and meant and strategy not in KEEPS.get(meant[-1], ()):
        values["strategy"] = meant[-1]
    return values


def _named(merged: Mapping[str, Any], preset: Mapping[str, Any]) -> Settings:
    """Settings whose preset is Custom where they are not what that `preset` sets."""
    differs = any(merged[name] != value for name, value in preset.items())
    return _checked(Settings(**{**merged, "preset": CUSTOM} if differs else merged))


def _from_mapping(given: Mapping[Any, Any]) -> Settings:
    values = _read(given)
    preset = PRESETS.get(values.setdefault("preset", FIELD["preset"].default), {})
    if values.get("strategy") not in (None, preset.get("strategy")):
        preset, values["preset"] = {}, CUSTOM
    return _named({**preset, **values}, preset)


def overridden(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """`settings` with what `changes` name in their place, read as a mapping of `parse` is: an interval means uniform, a
    preset brings all it sets. Whoever changes anything means it to be active, unless `enabled` itself is among it.
    Raises `SettingsError`.
    """
    if not changes:
        return settings
    values = {"enabled": True, **_read(changes, settings.strategy)}
    merged = {**asdict(settings), **PRESETS.get(values.get("preset", ""), {}), **values}
    return _named(merged, PRESETS.get(merged["preset"], {}))


KEEPS = {"uniform": ("non-uniform",)}
"""Strategies that obey what means another: an interval is the non-uniform one's too."""


def _checked(settings: Settings) -> Settings:
    if settings.start > settings.end:
        raise SettingsError("start", settings.start, f"a number from 0 to end ({settings.end:g})")
    if 0 < settings.hires_speed_up < 1:
        raise SettingsError("hires_speed_up", settings.hires_speed_up, "0, or a number from 1 to 5")
    if settings.strategy == "custom":
        for _, branch in ranges(settings.full_evaluations):
            if branch is not None and not settings.cache_branch_id < branch <= MAX_BRANCH:
                allowed = f"after / a branch deeper than cache_branch_id ({settings.cache_branch_id}), to {MAX_BRANCH}"
                raise SettingsError("full_evaluations", settings.full_evaluations, allowed)
    return settings
