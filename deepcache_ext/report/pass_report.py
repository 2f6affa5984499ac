"""What happened in a pass and in a generation, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from statistics import median

from ..plan.preview import fraction


class Reason(str, Enum):
    """Why a call that the plan would have cached ran in full."""

    FIRST_SEEN = "the first call of its kind: nothing was kept for it yet"
    NOT_REFRESHED = "what was kept for it had become too old"
    UNPLACED = "could not match this tile to a part of the picture"
    UNCLEAR = "two calls of the UNet at the same step could be taken for each other"
    NO_NUMBERS = "the picture was lost before: its values are no numbers (NaN)"
    MOVED = "the picture changed by more than one step can change it: it is another one, or another part of it"
    TOGETHER = "another part of the same step, or of the one before, could not be cached"
    LAYERS = "another extension counts the UNet's layers, which goes well only where a step is one call of the UNet"
    CONDITIONING = "the prompt, or a mask or picture given with it, changed in mid-run"
    FORWARD = "another extension began or stopped to act on the UNet"
    STATE = "a ControlNet unit, a LoRA, a hypernetwork, FreeU or the attention changed"
    PATCHED = "another extension may need the part of the UNet that a cached step skips"
    WEIGHTS = "the model's weights changed"
    BLOCKS = "blocks of the UNet were exchanged"
    ASKED = "another extension asked for it"
    RAISED = "the UNet broke off with an error"
    WALKS = "the UNet's blocks ran more or fewer times than in the full step before"
    SIZES = "inside the UNet the picture had another size than in the full step before"
    OUTSIDE = "the call belonged to no step of this run"
    TRACED = "the UNet was being compiled or traced"
    GRADIENT = "another extension asked for gradients through the UNet"
    REPLICA = "it ran on a copy of the UNet"
    NO_EFFECT = "something runs in place of the UNet's blocks (TensorRT, another cache): use one of the two"
    NO_CALL = "at one step the UNet was not called: another cache acts in its place; use one of the two"
    LAYOUT = "this kind of model is not known"
    ERROR = "an error inside DeepCache (see the console)"


@dataclass
class PassReport:
    """Counts of one pass. An evaluation is *full* when all of its calls were, *mixed* when some were; else *medium*
    when any ran a deeper branch, which renews what the others go on from. Medium calls are among the cached ones.
    Calls outside evaluations count as misses only. Evaluations of which nothing is known, since another extension may
    have skipped them, are not among the `evaluations`. Times are in seconds; on a CUDA device they are read from events
    when the pass ends.
    """

    hires: bool = False
    evaluations: int = 0
    full_evaluations: int = 0
    medium_evaluations: int = 0
    mixed_evaluations: int = 0
    planned_full: int = 0
    full_calls: int = 0
    cached_calls: int = 0
    medium_calls: int = 0
    misses: Counter[Reason] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    """Whose patches made calls run in full, by the name of their code."""
    kept_bytes: int = 0
    """The most that was kept at a time."""
    full_seconds: list[float] = field(default_factory=list)
    cached_seconds: list[float] = field(default_factory=list)
    """Of cached calls that are not medium."""
    medium_seconds: list[float] = field(default_factory=list)
    off: str = ""
    """Why nothing was cached from some point on, in words; empty when caching was possible to the end."""
    is_blind: bool = False
    """Another cache acts from then on: of what it skips nothing is known, so nothing is counted."""

    @property
    def cached_evaluations(self) -> int:
        """Those that ran the shallow branch alone."""
        return self.evaluations - self.full_evaluations - self.medium_evaluations - self.mixed_evaluations

    @property
    def kinds(self) -> list[str]:
        """One word for each evaluation, in no order; see `plan.preview.fraction`."""
        counted = {
            "full": self.full_evaluations,
            "medium": self.medium_evaluations,
            "mixed": self.mixed_evaluations,
            "cached": self.cached_evaluations,
        }
        return [kind for kind, count in counted.items() for _ in range(count)]

    @property
    def fraction(self) -> str:
        return fraction(self.kinds)

    def reasons(self) -> list[tuple[int, str]]:
        """Why calls ran in full that were planned cached, each with its number, the most frequent first."""
        told = []
        for reason, count in self.misses.most_common():
            named = ", ".join(name for name, _ in self.foreign.most_common()) if reason is Reason.PATCHED else ""
            told.append((count, f"{reason.value} ({named})" if named else reason.value))
        return told

    def lines(self) -> list[str]:
        """The pass in words, for the log."""
        text = [
            f"{'hires pass' if self.hires else 'pass'}: {self.fraction}, "
            f"{self.full_calls} full and {self.cached_calls} cached calls, kept {self.kept_bytes / 2**20:.1f} MiB"
        ]
        kinds = (("cached", self.cached_seconds), ("medium", self.medium_seconds))
        others = [f"a {kind} one {median(took) * 1e3:.1f} ms" for kind, took in kinds if took]
        if self.full_seconds and others:
            text.append(", ".join([f"a full call took {median(self.full_seconds) * 1e3:.1f} ms", *others]))
        text += [f"{count} in full: {reason}" for count, reason in self.reasons()]
        if self.off:
            text.append(f"off: {self.off}")
        return text


def together(passes: Sequence[PassReport]) -> PassReport:
    """The counts and times of several passes of one kind in one report; `off` and `kept_bytes` are left out."""
    whole = PassReport(hires=any(one.hires for one in passes))
    added = [one.name for one in fields(PassReport) if one.name not in ("hires", "off", "is_blind", "kept_bytes")]
    for one in passes:
        for name in added:
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
    return whole


def summary(passes: Sequence[PassReport]) -> str:
    """All passes in one line, for an infotext: `10 of 30 full, hires 5 of 15 full`.

    Passes of several batches are counted together; a reason why caching was off stands in brackets.
    """
    parts = []
    for hires in (False, True):
        those = [one for one in passes if one.hires is hires]
        if not those:
            continue
        kinds = [kind for one in those for kind in one.kinds]
        off = "; ".join(sorted({one.off for one in those if one.off}))
        # Where nothing is known of any evaluation, no number is told.
        text = f"{fraction(kinds)} ({off})" if kinds and off else fraction(kinds) if kinds else f"off ({off})"
        parts.append(f"hires {text}" if hires else text)
    return ", ".join(parts)
