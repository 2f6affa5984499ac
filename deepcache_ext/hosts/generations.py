"""The generations that are under way: begun, nested, crashed, ended. Common to all hosts; imports none."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, field
from typing import Any

from ..plan.preview import PlannedPass
from ..report.pass_report import PassReport, summary
from ..report.run_report import PassOutcome, RunOutcome
from ..session.session import Session
from ..settings.settings import Settings

log = logging.getLogger("deepcache")


@dataclass(eq=False)
class Generation:
    """One run of the host's `process_images`.

    `p`: the host's processing object, weakly held; `job`: what tells one job of the host's queue from the next.
    `ready`: a pass may begin at the next evaluation. `reports`: the passes of the batch at hand. `planned`: the pass
    at hand; `outcome`: all passes so far.
    """

    p: weakref.ref[Any]
    job: Any
    settings: Settings
    session: Session | None = None
    ready: bool = False
    reports: list[PassReport] = field(default_factory=list)
    estimators: set[str] = field(default_factory=set)
    planned: PlannedPass | None = None
    outcome: RunOutcome | None = None

    def end_pass(self) -> PassReport | None:
        """Close the session, if there is one, and file its report."""
        self.ready = False
        session, self.session = self.session, None
        if session is None:
            return None
        report = session.close()
        if report.evaluations:
            self.reports.append(report)
            if self.outcome is not None and self.planned is not None:
                self.outcome.passes.append(PassOutcome(self.planned, report))
            for line in report.lines():
                log.info("%s", line)
        return report

    def infotext(self) -> dict[str, Any]:
        """What to write under the picture: the settings, and what really happened."""
        values = self.settings.infotext()
        if len(self.estimators) == 1:
            values["DeepCache estimator"] = next(iter(self.estimators))
        if self.reports:
            values = {"DeepCache": summary(self.reports), **values}
        return values


class Generations:
    """A stack: the last one is active, those below are parked while a generation nested in theirs runs."""

    def __init__(self) -> None:
        self._stack: list[Generation] = []

    def begin(self, p: Any, job: Any, settings: Settings) -> Generation:
        """A new run of `process_images`. What a crash left behind (another job, or the same p) is ended; a
        generation of the same job with another p is the parent of this one and is parked.
        """
        for old in list(self._stack):
            if old.job != job or old.p() is None or old.p() is p:
                self.end(old)
        if self._stack and self._stack[-1].session is not None:
            self._stack[-1].session.unhook()
        generation = Generation(weakref.ref(p), job, settings)
        # A crash runs no hook: then the processing object's own end frees what the session kept.
        generation.p = weakref.ref(p, lambda _: self.end(generation))
        self._stack.append(generation)
        return generation

    def of(self, p: Any) -> Generation | None:
        """The generation of this p, made the active one: nested ones above it are over, though no hook said so."""
        if all(g.p() is not p for g in self._stack):
            return None
        while self._stack[-1].p() is not p:
            self.end(self._stack[-1])
        return self._stack[-1]

    @property
    def active(self) -> Generation | None:
        return self._stack[-1] if self._stack else None

    def sessions(self) -> list[Session]:
        """The open sessions, of the active generation and of parked ones."""
        return [generation.session for generation in self._stack if generation.session is not None]

    def all(self) -> tuple[Generation, ...]:
        """The active generation, and below it the parked ones."""
        return tuple(reversed(self._stack))

    def end(self, generation: Generation) -> None:
        generation.end_pass()
        if generation in self._stack:
            self._stack.remove(generation)

    def end_all(self) -> None:
        while self._stack:
            self.end(self._stack[-1])
