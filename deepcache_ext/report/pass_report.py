"""What happened in a pass and in a generation, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from ..plan.preview import fraction


class Reason(str, Enum):
    """Why a call that the plan would have cached ran in full."""

    FIRST_SEEN = "first call of its kind"
    NOT_REFRESHED = "its kept feature was older than the plan's last evaluation that renews it"
    UNPLACED = "which part of the latent it holds could not be proved"
    CONDITIONING = "its conditioning changed"
    FORWARD = "another extension's forward came or went"
    STATE = "a control unit, a LoRA or a hypernetwork changed"
    PATCHED = "a patch of another extension may need the blocks that a cached call skips"
    WEIGHTS = "the model's weights changed"
    BLOCKS = "blocks of the UNet were exchanged"
    ASKED = "another extension asked for a full call"
    RAISED = "the UNet raised an error"
    WALKS = "the UNet's blocks were run another number of times than at the full call"
    OUTSIDE = "it belongs to no evaluation of this pass"
    NESTED = "it ran inside another call of the UNet"
    TRACED = "it was being traced or compiled"
    GRADIENT = "gradients through the UNet were asked for"
    REPLICA = "it ran on a copy of the UNet"
    NO_EFFECT = "the UNet's forward is replaced by one that does not run its blocks"
    BRANCH = "the UNet has no such branch"
    LAYOUT = "the UNet's layout is unknown"
    ERROR = "an error inside DeepCache (see the log)"


@dataclass
class PassReport:
    """Counts of one pass. An evaluation is full when any of its calls was, else deeper when any ran a deeper branch,
    which renews what the others go on from; deeper calls are among the cached ones. Calls outside evaluations count as
    misses only. Times are in seconds; on a CUDA device they are read from events when the pass ends.
    """

    hires: bool = False
    evaluations: int = 0
    full_evaluations: int = 0
    deeper_evaluations: int = 0
    planned_full: int = 0
    full_calls: int = 0
    cached_calls: int = 0
    deeper_calls: int = 0
    misses: Counter[Reason] = field(default_factory=Counter)
    kept_bytes: int = 0
    """The most that was kept at a time."""
    full_seconds: list[float] = field(default_factory=list)
    cached_seconds: list[float] = field(default_factory=list)
    """Of cached calls that are not deeper."""
    deeper_seconds: list[float] = field(default_factory=list)
    off: str = ""
    """Why nothing was cached from some point on, in words; empty when caching was possible to the end."""

    @property
    def fraction(self) -> str:
        return fraction(self.full_evaluations, self.deeper_evaluations, self.evaluations)

    def lines(self) -> list[str]:
        """The pass in words, for the log."""
        text = [
            f"{'hires pass' if self.hires else 'pass'}: {self.fraction}, "
            f"{self.full_calls} full and {self.cached_calls} cached calls, kept {self.kept_bytes / 2**20:.1f} MiB"
        ]
        kinds = (("cached", self.cached_seconds), ("deeper", self.deeper_seconds))
        others = [f"a {kind} one {median(took) * 1e3:.1f} ms" for kind, took in kinds if took]
        if self.full_seconds and others:
            text.append(", ".join([f"a full call took {median(self.full_seconds) * 1e3:.1f} ms", *others]))
        text += [f"{count} in full: {reason.value}" for reason, count in self.misses.most_common()]
        if self.off:
            text.append(f"off: {self.off}")
        return text


def summary(passes: Sequence[PassReport]) -> str:
    """All passes in one line, for an infotext: `10 of 30 full, hires 5 of 15 full`.

    Passes of several batches are counted together; a reason why caching was off stands in brackets.
    """
    parts = []
    for hires in (False, True):
        those = [p for p in passes if p.hires is hires]
        if not those:
            continue
        full, deeper = sum(p.full_evaluations for p in those), sum(p.deeper_evaluations for p in those)
        off = sorted({p.off for p in those if p.off})
        text = fraction(full, deeper, sum(p.evaluations for p in those)) + (f" ({'; '.join(off)})" if off else "")
        parts.append(f"hires {text}" if hires else text)
    return ", ".join(parts)
