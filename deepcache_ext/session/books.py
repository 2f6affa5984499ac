"""What the calls of a pass say when they end: counted, timed, and kept."""

from __future__ import annotations

from dataclasses import dataclass

from ..report.pass_report import PassReport, Reason
from ..unet.support import UnknownLayout
from .attachment import Attachment
from .decisions import Decisions
from .evaluation import Evaluation, Kind
from .open_call import CachedCall, ObservedCall
from .stopwatch import Stopwatch


@dataclass(frozen=True)
class PassBooks:
    """`open_call.Books` of one pass, for a call on `at` in the evaluation `now`."""

    at: Attachment
    now: Evaluation
    decisions: Decisions
    watch: Stopwatch
    report: PassReport

    def booked(self, kind: Kind) -> None:
        self.watch.stop(kind)
        self.now.ran[kind] += 1
        self.report.full_calls += kind is Kind.FULL
        self.report.cached_calls += kind is not Kind.FULL
        self.report.medium_calls += kind is Kind.MEDIUM

    def strayed(self, call: CachedCall) -> None:
        self.watch.discard()
        self.report.full_calls += 1
        reason = Reason.SIZES if call.walks.met_other_sizes else Reason.WALKS
        reason = Reason.GRADIENT if call.walks.differentiated else reason
        self.report.misses[reason] += 1
        self.decisions.drop(reason)
        self.now.ran[Kind.FULL] += 1
        self.now.together = Reason.TOGETHER

    def keep(self, call: ObservedCall) -> None:
        """Raises `UnknownLayout` where the call did not run what the ladder shadows."""
        if not call.walks.features and call.walks.failed is None:
            raise UnknownLayout(Reason.NO_EFFECT.value)
        self.decisions.keep(call, self.now)
        # Taken after the call: A1111 merges LoRAs lazily, inside the layers' forwards.
        self.at.remember_weights()

    def renew(self, call: CachedCall) -> None:
        self.decisions.renew(call, self.now)
