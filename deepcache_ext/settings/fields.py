"""What a user can set: names, ranges, defaults, presets, infotext names.

The order of `FIELDS` is the order of the positional arguments of the WebUI's API and is frozen: later fields
are appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORMAT_VERSION = 2
"""Version of what is written into an infotext; grows when the meaning of a written value changes."""


CUSTOM = "Custom"


NO_DEEPER = 0
"""Of `deeper_branch_id`."""


PRESETS: dict[str, dict[str, Any]] = {
    name: {
        "strategy": "weighted",
        "speed_up": speed_up,
        "cache_branch_id": 0,
        "deeper_branch_id": NO_DEEPER,
        "estimator": "auto",
    }
    for name, speed_up in (("Quality", 1.6), ("Balanced", 2.0), ("Fast", 2.6))
}
"""What each preset sets: points on the curve of the weighted strategy (docs/strategies.md)."""


AS_FIRST_PASS_INTERVAL = 0
AS_FIRST_PASS_BRANCH = -1
AS_FIRST_PASS_SPEED_UP = 0.0
"""Of the hires pass's own settings. The page says it in words."""


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
    """One setting: its name in code and API, its label in page and infotext, its type and its range. `older`: keys that
    it had in infotexts.
    """

    name: str
    label: str
    default: Any
    info: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    older: tuple[str, ...] = ()

    @property
    def infotext(self) -> str:
        """The key in an infotext, for instance `DeepCache speed up`. SD.Next reads letters, digits and blanks alone:
        of a key with a hyphen only what stands behind it is left.
        """
        return f"DeepCache {self.label.lower().replace('-', ' ')}"

    @property
    def infotexts(self) -> tuple[str, ...]:
        """The key, and those of earlier versions."""
        hyphened = f"DeepCache {self.label.lower()}"
        return tuple(dict.fromkeys((self.infotext, hyphened, *self.older)))

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
"""Bound of `cache_branch_id` before the model is known; the model's own last branch is checked when a pass begins.
Chosen by hand, far above any model in use.
"""


MAX_TEXT = 1000
"""Letters of a list of evaluations. Chosen by hand."""


STRATEGIES = ("weighted", "uniform", "non-uniform", "custom")


FIELDS: tuple[Field, ...] = (
    Field("enabled", "Enabled", False, "Make pictures faster; they change a little."),
    Field(
        "preset",
        "Preset",
        "Quality",
        "Quality changes the picture least, Fast saves the most time.",
        choices=(*PRESETS, CUSTOM),
    ),
    Field(
        "cache_interval",
        "Interval",
        3,
        "The full UNet runs at every Nth step. Higher is faster and changes the picture more; 1 = at every step.",
        minimum=1,
        maximum=50,
    ),
    Field(
        "cache_branch_id",
        "Branch",
        0,
        "How much of the UNet a cached step runs: 0 is the least and fastest, higher is slower and closer "
        "to the uncached picture. While it is 0, weighted plans choose it themselves.",
        minimum=0,
        maximum=MAX_BRANCH,
    ),
    Field(
        "estimator",
        "Estimator",
        "auto",
        "What a cached step takes for the part that it skips: a copy of the last one, or a forecast from the last "
        "three. Auto: a forecast, but a copy where full steps lie far apart, and at branch 0 where the sampler adds "
        "noise.",
        choices=("auto", "copy", "forecast"),
    ),
    Field("start", "Start", 0.0, "Nothing is skipped before this part of the run (0 to 1).", minimum=0.0, maximum=1.0),
    Field("end", "End", 1.0, "Nothing is skipped after this part of the run (0 to 1).", minimum=0.0, maximum=1.0),
    Field(
        "passes",
        "Passes",
        "both",
        "Which passes of a run with hires fix are made faster; img2img counts as first.",
        choices=("both", "first only", "hires only"),
    ),
    Field(
        "hires_cache_interval",
        "Hires interval",
        AS_FIRST_PASS_INTERVAL,
        "Interval in the hires pass.",
        minimum=AS_FIRST_PASS_INTERVAL,
        maximum=50,
    ),
    Field(
        "hires_cache_branch_id",
        "Hires branch",
        AS_FIRST_PASS_BRANCH,
        "Branch in the hires pass.",
        minimum=AS_FIRST_PASS_BRANCH,
        maximum=MAX_BRANCH,
    ),
    Field(
        "strategy",
        "Strategy",
        "weighted",
        "Which steps run the full UNet. Weighted: those where an error would hurt the picture most; uniform: every "
        "Nth; non-uniform: the paper's, densest around Center; custom: as typed.",
        choices=STRATEGIES,
    ),
    Field(
        "speed_up",
        "Speed-up",
        PRESETS["Quality"]["speed_up"],
        "How many times faster the UNet should be. Higher changes the picture more.",
        minimum=1.0,
        maximum=5.0,
    ),
    Field(
        "hires_speed_up",
        "Hires speed-up",
        AS_FIRST_PASS_SPEED_UP,
        "Speed-up of the hires pass.",
        minimum=AS_FIRST_PASS_SPEED_UP,
        maximum=5.0,
    ),
    Field(
        "full_evaluations",
        "Full steps",
        "",
        "The steps that run the full UNet, counted from 0, such as 0-3, 6, 9, 12-29:3 (every third from 12 to 29); "
        "15/5 makes number 15 a medium step with branch 5.",
        older=("DeepCache full evaluations",),
    ),
    Field(
        "center",
        "Center",
        0.3,
        "Where in the run full steps are densest (0 to 1).",
        minimum=0.0,
        maximum=1.0,
    ),
    Field(
        "power",
        "Power",
        1.4,
        "How much denser they are there; 1 = evenly spread.",
        minimum=1.0,
        maximum=3.0,
    ),
    Field(
        "deeper_branch_id",
        "Medium branch",
        NO_DEEPER,
        "Every second full step becomes a medium one, which runs this branch. It has to be deeper than Branch. While "
        "both are 0, weighted plans choose them.",
        minimum=NO_DEEPER,
        maximum=MAX_BRANCH,
        older=("DeepCache deeper branch",),
    ),
)


FIELD = {field.name: field for field in FIELDS}


OBEYED = {
    "weighted": ("speed_up", "hires_speed_up"),
    "uniform": ("cache_interval", "hires_cache_interval"),
    "non-uniform": ("cache_interval", "center", "power", "hires_cache_interval"),
    "custom": ("full_evaluations", "hires_speed_up"),
}
"""What each strategy obeys besides what all do."""


STRATEGYS_OWN = tuple(dict.fromkeys(name for names in OBEYED.values() for name in names))


INFOTEXT_KEYS = (
    *("DeepCache", "DeepCache version", "DeepCache error", "DeepCache note"),
    *(key for field in FIELDS for key in field.infotexts),
)
"""What is ours under a picture, earlier versions' too."""


SELDOM = ("start", "end", "passes", "deeper_branch_id", *(name for name in FIELD if name.startswith("hires_")))
"""Written into an infotext only where they differ from their defaults."""
