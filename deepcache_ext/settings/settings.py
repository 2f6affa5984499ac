"""What a user can set: names, ranges, defaults, presets, infotext names; and how arguments become `Settings`.

The order of `FIELDS` is the order of the positional arguments of the WebUI's API and is frozen: later fields
are appended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

FORMAT_VERSION = 2
"""Version of what is written into an infotext; grows when the meaning of a written value changes."""

CUSTOM = "Custom"
AS_IT_PAYS = -1
PRESETS: dict[str, dict[str, Any]] = {
    name: {
        "strategy": "weighted", "speed_up": speed_up, "cache_branch_id": 0, "deeper_branch_id": AS_IT_PAYS,
        "estimator": "auto",
    }
    for name, speed_up in (("Quality", 1.6), ("Balanced", 2.0), ("Fast", 2.6))
}
"""What each preset sets: points on the curve of the weighted strategy (docs/evidence.md)."""

AS_FIRST_PASS_INTERVAL = 0
AS_FIRST_PASS_BRANCH = -1
AS_FIRST_PASS_SPEED_UP = 0.0


class SettingsError(ValueError):
    """A value that cannot be used. `str()` names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        try:
            shown = repr(value)
        except ValueError:  # a whole number of more digits than Python writes out
            shown = "(too long to show)"
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field} = {shown} is not allowed: {allowed}")


@dataclass(frozen=True)
class Field:
    """One setting: its name in code and API, its label in page and infotext, its type and its range."""

    name: str
    label: str
    default: Any
    info: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def infotext(self) -> str:
        """The key in an infotext, for instance `DeepCache interval`."""
        return f"DeepCache {self.label.lower()}"

    @property
    def allowed(self) -> str:
        """What may stand here, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return f"a text of at most {MAX_TEXT} characters"
        number = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{number} from {self.minimum:g} to {self.maximum:g}"

    def parse(self, value: Any) -> Any:
        """`value` in the field's own type. Raises `SettingsError` for a wrong type or a value out of range."""
        if self.choices:
            if isinstance(value, str):
                for choice in self.choices:
                    if choice.lower() == value.strip().lower():
                        return choice
            raise SettingsError(self.name, value, self.allowed)
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise SettingsError(self.name, value, self.allowed)
        if isinstance(self.default, str):
            if isinstance(value, str) and len(value) <= MAX_TEXT:
                return value.strip()
            raise SettingsError(self.name, value, self.allowed)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingsError(self.name, value, self.allowed)
        assert self.minimum is not None and self.maximum is not None
        # The range first: it leaves out what is not finite, and whole numbers that no float can hold.
        if not self.minimum <= value <= self.maximum:
            raise SettingsError(self.name, value, self.allowed)
        if isinstance(self.default, int) and value != int(value):
            raise SettingsError(self.name, value, self.allowed)
        return int(value) if isinstance(self.default, int) else float(value)


MAX_BRANCH = 47
"""Bound of `cache_branch_id` before the model is known; the model's own last branch is checked when a pass begins."""

MAX_TEXT = 1000

CALIBRATED = "calibrated"
STRATEGIES = ("weighted", "uniform", "non-uniform", "custom", CALIBRATED)

FIELDS: tuple[Field, ...] = (
    Field("enabled", "Enabled", False, "Make pictures faster; they change a little."),
    Field(
        "preset", "Preset", "Quality", "How much speed for how much change; Custom obeys the controls below.",
        choices=(*PRESETS, CUSTOM),
    ),
    Field(
        "cache_interval", "Interval", 3,
        "Uniform and non-uniform: the whole UNet runs at every Nth evaluation. Higher is faster and changes the "
        "picture more; 1 = always.",
        minimum=1, maximum=50,
    ),
    Field(
        "cache_branch_id", "Branch", 0,
        "How much of the UNet runs at the other evaluations: 0 is the least and fastest, higher is slower and closer.",
        minimum=0, maximum=MAX_BRANCH,
    ),
    Field(
        "estimator", "Estimator", "auto",
        "What stands for the skipped part: a copy of the last one, or a forecast from the last three. "
        "Auto: forecast, but copy where whole evaluations lie far apart.",
        choices=("auto", "copy", "forecast"),
    ),
    Field("start", "Start", 0.0, "Fraction of the run before which nothing is skipped.", minimum=0.0, maximum=1.0),
    Field("end", "End", 1.0, "Fraction of the run after which nothing is skipped.", minimum=0.0, maximum=1.0),
    Field(
        "passes", "Passes", "both", "Which passes of a run with hires fix are made faster; img2img is a first pass.",
        choices=("both", "first only", "hires only"),
    ),
    Field(
        "hires_cache_interval", "Hires interval", AS_FIRST_PASS_INTERVAL,
        "Interval in the hires pass. 0 = as in the first pass.", minimum=AS_FIRST_PASS_INTERVAL, maximum=50,
    ),
    Field(
        "hires_cache_branch_id", "Hires branch", AS_FIRST_PASS_BRANCH,
        "Branch in the hires pass. -1 = as in the first pass.", minimum=AS_FIRST_PASS_BRANCH, maximum=MAX_BRANCH,
    ),
    Field(
        "strategy", "Strategy", "weighted",
        "Which evaluations are whole. Weighted: as many as Speed-up allows, where an error would count most; uniform: "
        "every Nth; non-uniform: the paper's, denser around a centre; custom: as typed; calibrated: as Calibrate found",
        choices=STRATEGIES,
    ),
    Field(
        "speed_up", "Speed-up", PRESETS["Quality"]["speed_up"],
        "Weighted and calibrated: how many times faster the UNet should run through its evaluations. Higher changes "
        "the picture more.",
        minimum=1.0, maximum=5.0,
    ),
    Field(
        "hires_speed_up", "Hires speed-up", AS_FIRST_PASS_SPEED_UP,
        "Speed-up in the hires pass; with custom that pass is then weighted. 0 = as in the first pass.",
        minimum=AS_FIRST_PASS_SPEED_UP, maximum=5.0,
    ),
    Field(
        "full_evaluations", "Full evaluations", "",
        "Custom: the evaluations at which the whole UNet runs, counted from 0, such as 0-3, 6, 9, 12-29:3; with 15/5 "
        "number 15 runs branch 5 instead.",
    ),
    Field(
        "center", "Center", 0.3, "Non-uniform: where in the run whole evaluations are densest.",
        minimum=0.0, maximum=1.0,
    ),
    Field(
        "power", "Power", 1.4, "Non-uniform: how much denser they are there; 1 = evenly spread.",
        minimum=1.0, maximum=3.0,
    ),
    Field(
        "deeper_branch_id", "Deeper branch", AS_IT_PAYS,
        "Every second whole evaluation runs this branch instead, if it is deeper than Branch; weighted makes more of "
        "them for it. -1 = where that pays (weighted only); 0 = never.",
        minimum=AS_IT_PAYS, maximum=MAX_BRANCH,
    ),
)
FIELD = {field.name: field for field in FIELDS}

OBEYED = {
    "weighted": ("speed_up", "hires_speed_up"),
    "uniform": ("cache_interval", "hires_cache_interval"),
    "non-uniform": ("cache_interval", "center", "power", "hires_cache_interval"),
    "custom": ("full_evaluations", "hires_speed_up"),
    CALIBRATED: ("speed_up", "hires_speed_up"),
}
"""What each strategy obeys besides what all do."""
STRATEGYS_OWN = tuple(dict.fromkeys(name for names in OBEYED.values() for name in names))
INFOTEXT_KEYS = ("DeepCache", "DeepCache version", "DeepCache error", *(field.infotext for field in FIELDS))
SELDOM = ("start", "end", "passes", "deeper_branch_id", *(name for name in FIELD if name.startswith("hires_")))
"""Written into an infotext only where they differ from their defaults."""


@dataclass(frozen=True)
class Settings:
    """Effective settings of one generation; the preset is already applied.

    `cache_interval` and `cache_branch_id` mean what they mean in DeepCacheSDHelper; `start` and `end` are
    fractions of a pass's evaluations.
    """

    enabled: bool = False
    preset: str = CUSTOM
    cache_interval: int = 3
    cache_branch_id: int = 0
    estimator: str = "auto"
    start: float = 0.0
    end: float = 1.0
    passes: str = "both"
    hires_cache_interval: int = AS_FIRST_PASS_INTERVAL
    hires_cache_branch_id: int = AS_FIRST_PASS_BRANCH
    strategy: str = "uniform"
    speed_up: float = 1.6
    hires_speed_up: float = AS_FIRST_PASS_SPEED_UP
    full_evaluations: str = ""
    center: float = 0.3
    power: float = 1.4
    deeper_branch_id: int = AS_IT_PAYS

    def covers(self, hires: bool) -> bool:
        """Whether the hires pass (or else the first, or img2img, pass) is to be cached."""
        return self.enabled and self.passes != ("first only" if hires else "hires only")

    @property
    def is_of_one_pass(self) -> bool:
        """Whether the plan is the first pass's alone: a calibrated one, or a list beside a speed-up for others."""
        return self.strategy == CALIBRATED or (self.strategy == "custom" and self.hires_speed_up > 0)

    def for_pass(self, hires: bool) -> Settings:
        """The settings with strategy, interval, branch and speed-up as they hold in that pass."""
        if not hires:
            return self
        interval, branch = self.hires_cache_interval, self.hires_cache_branch_id
        return replace(
            self,
            strategy="weighted" if self.is_of_one_pass else self.strategy,
            deeper_branch_id=AS_IT_PAYS if self.strategy == CALIBRATED else self.deeper_branch_id,
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


RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6})(?::(\d{1,6}))?)?(?:/(\d{1,2}))?")


def ranges(text: str) -> list[tuple[range, int | None]]:
    """Evaluations as typed, each with the branch that it runs, None for the whole UNet: `0-3, 6, 9` are 0 1 2 3 6 9;
    `12-29:3` is every third from 12 to 29; `15/5` is 15 with branch 5. Commas or blanks between them. Raises
    `SettingsError`; of branches there may be one.
    """
    allowed = "evaluations counted from 0, and ranges of them, such as 0-3, 6, 9, 12-29:3, or 15/5 with branch 5"
    found: list[tuple[range, int | None]] = []
    for part in re.split(r"[,;\s]+", re.sub(r"\s*([-:/])\s*", r"\1", text.strip(" ,;"))):
        match = RANGE.fullmatch(part)
        if match is None:
            raise SettingsError("full_evaluations", text, allowed)
        first, last, step, branch = (None if group is None else int(group) for group in match.groups())
        assert first is not None
        if step == 0 or (last is not None and last < first):
            raise SettingsError("full_evaluations", text, allowed)
        found.append((range(first, first + 1 if last is None else last + 1, step or 1), branch))
    if len({branch for _, branch in found if branch is not None}) > 1:
        raise SettingsError("full_evaluations", text, "one branch alone may stand after /")
    return found


MEANS = {"cache_interval": "uniform", "speed_up": "weighted", "full_evaluations": "custom"}


def _unknown(name: Any, value: Any) -> SettingsError:
    """For a name that is none of ours, whatever stands there."""
    return SettingsError(str(name)[:80] or "(no name)", value, "the known settings are " + ", ".join(FIELD))


def _from_mapping(given: Mapping[Any, Any]) -> Settings:
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in FIELD:
            raise _unknown(name, value)
        values[name] = FIELD[name].parse(value)
    preset = values.setdefault("preset", FIELD["preset"].default)
    if "strategy" not in values:
        # Whoever names what one strategy alone obeys means that one; a script written for DeepCacheSDHelper does.
        meant = [strategy for name, strategy in MEANS.items() if values.get(name)]
        values.update({"strategy": meant[-1]} if meant else {})
    given_by_preset = PRESETS.get(preset, {})
    if values.get("strategy") not in (None, given_by_preset.get("strategy")):
        given_by_preset, values["preset"] = {}, CUSTOM
    merged = {**given_by_preset, **values}
    if any(merged[name] != value for name, value in given_by_preset.items()):
        merged["preset"] = CUSTOM
    return _checked(Settings(**merged))


def overridden(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """`settings` with what `changes` name in their place, read as a mapping of `parse` is: an interval means uniform, a
    preset brings all it sets. Whoever changes anything means it to be active, unless `enabled` itself is among it.
    Raises `SettingsError`.
    """
    if not changes:
        return settings
    for name, value in changes.items():
        if name not in FIELD:
            raise _unknown(name, value)
    values = {name: FIELD[name].parse(value) for name, value in changes.items()}
    values.setdefault("enabled", True)
    if "strategy" not in values:
        meant = [strategy for name, strategy in MEANS.items() if values.get(name)]
        values.update({"strategy": meant[-1]} if meant and settings.strategy not in KEEPS.get(meant[-1], ()) else {})
    merged = {**asdict(settings), **PRESETS.get(values.get("preset", ""), {}), **values}
    if any(merged[name] != value for name, value in PRESETS.get(merged["preset"], {}).items()):
        merged["preset"] = CUSTOM
    return _checked(Settings(**merged))


KEEPS = {"uniform": ("non-uniform",), "weighted": (CALIBRATED,)}
"""Strategies that obey what means another: an interval is the non-uniform one's too, a speed-up the calibrated's."""


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
