"""The generations that are under way: begun, nested, crashed, ended. Common to all hosts; imports none."""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import dataclass, field
from typing import Any

from ..plan.noise import MATCH, are_known
from ..plan.preview import PlannedPass
from ..report.pass_report import PassReport, Reason, summary
from ..report.run_report import PassOutcome, RunOutcome
from ..session.session import Session
from ..settings.settings import Settings
from ..unet.support import UnknownLayout

log = logging.getLogger("deepcache")

UNSURE = math.inf
"""Before each evaluation of a step the host counts its steps, but not before a step's second one."""


@dataclass(eq=False)
class Generation:
    """One run of the host's `process_images`.

    `p`: the host's processing object, weakly held; `job`: what tells one job of the host's queue from the next.
    `outcome`: all passes so far; `reports`: those of the batch at hand; `planned`: the pass at hand. `ready`: a pass
    may begin at the next evaluation. `step`: the host's at the latest evaluation, None where none came just before;
    `UNSURE` while it may be what another generation left. `seen`: an evaluation of this generation was. `wanted`:
    whether a pass that the host has announced is to be cached; None while it has announced none.
    """

    p: weakref.ref[Any]
    job: Any
    settings: Settings
    outcome: RunOutcome
    session: Session | None = None
    ready: bool = False
    step: float | None = None
    seen: bool = False
    wanted: bool | None = None
    reports: list[PassReport] = field(default_factory=list)
    estimators: set[str] = field(default_factory=set)
    planned: PlannedPass | None = None
    notes: dict[str, None] = field(default_factory=dict)

    def announce(self, *hires: bool) -> bool:
        """The host says that passes come, hires ones or others: whether one of them is to be cached."""
        covered = any(map(self.settings.covers, hires))
        self.wanted = covered or bool(self.wanted)
        return covered

    @property
    def is_unseen(self) -> bool:
        """Whether something was to be cached and nothing was heard of it: it should have been seen by now."""
        told = self.outcome.inactive or self.outcome.error
        return self.settings.enabled and not self.seen and not told and self.wanted is not False

    def end_pass(self) -> PassReport | None:
        """Close the session, if there is one, and file its report."""
        self.ready = False
        session, self.session = self.session, None
        if session is None:
            return None
        report = session.close()
        if not report.evaluations and report.misses:  # the UNet was called, but never where it was looked for
            report.off = report.off or report.reasons()[0][1]
        if report.evaluations or report.off:
            self.reports.append(report)
            if self.planned is not None:
                self.outcome.passes.append(PassOutcome(self.planned, report))
            for line in report.lines():
                log.info("%s", line)
        return report

    def left_out(self, step: int, sigma: float | None) -> UnknownLayout | None:
        """An evaluation begins at this step of the host's and this noise level: why there is no more caching where a
        whole step went by since the one before, with no evaluation: somebody stands above them. Samplers that choose
        their own steps count as they like (reForge's ODE solvers): they are not at a level of the schedule.
        """
        last, self.step = self.step, None if self.step == UNSURE else step
        levels = self.planned.ahead.sigmas if self.planned is not None else None
        if last is None or step <= last + 1 or sigma is None or not are_known(levels):
            return None
        on_schedule = any(abs(math.log(sigma / level)) <= MATCH for level in levels)
        return UnknownLayout(Reason.NO_CALL.value, others_skip=True) if on_schedule else None

    def plans(self, found: PlannedPass) -> None:
        """The pass at hand will run that plan."""
        self.planned = found
        self.estimators.add(found.estimator.name)
        # The weighted plan goes by noise levels: a remark says why it is another one.
        if found.remark and self.settings.for_pass(found.hires).strategy == "weighted":
            self.notes[found.remark] = None

    def infotext(self) -> dict[str, Any]:
        """What to write under the picture: the settings, and what really happened so far."""
        values = self.settings.infotext()
        if len(self.estimators) == 1:
            values["DeepCache estimator"] = next(iter(self.estimators))
        if self.notes:
            values["DeepCache note"] = "; ".join(self.notes)
        now = None if self.session is None else self.session.so_far()
        reports = self.reports if now is None or not (now.evaluations or now.off) else [*self.reports, now]
        return {"DeepCache": summary(reports), **values} if reports else values


class Generations:
    """A stack: the last one is active, those below are parked while a generation nested in theirs runs."""

    def __init__(self) -> None:
        self._stack: list[Generation] = []

    def begin(self, p: Any, job: Any, settings: Settings, outcome: RunOutcome) -> Generation:
        """A new run of `process_images`. What a crash left behind (another job, or the same p) is ended; a
        generation of the same job with another p is the parent of this one and is parked.
        """
        for old in list(self._stack):
            if old.job != job or old.p() is None or old.p() is p:
                self.end(old)
        self.forget_steps()
        if self._stack and self._stack[-1].session is not None:
            self._stack[-1].session.unhook()
        generation = Generation(weakref.ref(p), job, settings, outcome)
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

    def forget_steps(self) -> None:
        """Evaluations come that are no generation's here, or another one's."""
        for generation in self._stack:
            generation.step = UNSURE

    def share_text(self, p: Any) -> bool:
        """Whether what is written for p is written for a generation under way too: ADetailer announces copies of p that
        share one mapping.
        """
        others = [
            other for other in (generation.p() for generation in self._stack) if other is not None and other is not p
        ]
        return any(other.extra_generation_params is p.extra_generation_params for other in others)

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


def kind_of(p: Any) -> str:
    """Of a host's processing object, "img2img" where it begins with pictures. In SD.Next every one has a list for them,
    which is empty, or None in its place.
    """
    pictures = getattr(p, "init_images", None)
    none = pictures is None or (hasattr(pictures, "__len__") and len(pictures) == 0)
    return "txt2img" if none else "img2img"
