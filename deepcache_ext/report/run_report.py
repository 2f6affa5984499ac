"""What a run did against what was planned: for the page's table and the API's report."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..plan.preview import PlannedPass
from ..settings.settings import Settings
from .pass_report import PassReport


def spent(report: PassReport) -> tuple[float, float] | None:
    """Seconds that the UNet's calls took together, and that they would have taken had they all been full, both by the
    medians of their times; None where one kind was not timed.
    """
    kinds = (
        (report.full_calls, report.full_seconds),
        (report.cached_calls - report.medium_calls, report.cached_seconds),
        (report.medium_calls, report.medium_seconds),
    )
    if not report.full_seconds or any(calls and not timed for calls, timed in kinds):
        return None
    took = sum(calls * median(timed) for calls, timed in kinds if calls)
    return took, sum(calls for calls, _ in kinds) * median(report.full_seconds)


def reached(report: PassReport) -> float | None:
    """How many times faster the UNet's calls were than had they all been full; None where that was not measured."""
    times = spent(report) if report.cached_calls else None
    return times[1] / times[0] if times and times[0] > 0 else None


@dataclass(frozen=True)
class PassOutcome:
    """One pass that is over: its plan and its counts."""

    planned: PlannedPass
    report: PassReport

    def as_json(self) -> dict[str, Any]:
        """Plain values; times in seconds, the medians of all calls."""
        report, gain, times = self.report, reached(self.report), spent(self.report)
        return {
            "pass": "hires" if report.hires else "first",
            "evaluations": report.evaluations,
            "full_evaluations": report.full_evaluations,
            "medium_evaluations": report.medium_evaluations,
            "mixed_evaluations": report.mixed_evaluations,
            "cached_evaluations": report.cached_evaluations,
            "planned_full_evaluations": report.planned_full,
            "full_calls": report.full_calls,
            "cached_calls": report.cached_calls,
            "medium_calls": report.medium_calls,
            "full_call_seconds": median(report.full_seconds) if report.full_seconds else None,
            "cached_call_seconds": median(report.cached_seconds) if report.cached_seconds else None,
            "medium_call_seconds": median(report.medium_seconds) if report.medium_seconds else None,
            "unet_seconds": times and times[0],
            "unet_seconds_in_full": times and times[1],
            "speed_up": None if gain is None else round(gain, 3),
            "predicted_speed_up": self.planned.as_json()["speed_up"],
            "kept_bytes": report.kept_bytes,
            "in_full_though_planned_cached": {reason: n for n, reason in report.reasons()},
            "off": report.off,
            "remark": self.planned.remark,
        }


@dataclass
class RunOutcome:
    """One run of the host's `process_images`: all passes of all its batches, as far as they are over.

    `kind`: txt2img or img2img. `error`: a setting that could not be used, in words, or "". `measured`: what became of
    measuring the model, where it began with that, in words. `inactive`: why nothing was cached though it was wanted, or
    no more from some point on, in words, or "".
    """

    kind: str
    settings: Settings
    error: str = ""
    passes: list[PassOutcome] = field(default_factory=list)
    measured: str = ""
    inactive: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "enabled": self.settings.enabled,
            "settings": self.settings.infotext() if self.settings.enabled else {},
            "error": self.error,
            "inactive": self.inactive,
            "measured": self.measured,
            "passes": [one.as_json() for one in self.passes],
        }
