"""The evaluation under way: when it is, what the sampler asks about, and what its calls have run so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

import torch

from ..plan.estimators import Moment
from ..report.pass_report import PassReport, Reason


class Kind(Enum):
    """What a call ran: the whole UNet; the live blocks of the branch of most cached calls; or those of a deeper branch,
    which renews what shallower ones go on from.
    """

    FULL = "full"
    CACHED = "cached"
    MEDIUM = "medium"


@dataclass
class Evaluation:
    """One evaluation. `latent` gives the sampler's x, see `Session.tick`; `was_called`: the UNet was, if only on a
    replica, in another thread or to be traced; `needs_call`: it is not full unless it was; `is_begun`: its first call
    that was looked at has come.

    `together`: why its calls run in full though the plan would have them cached: a cached and a full call of one
    evaluation are not to be mixed, since guidance amplifies their difference. `is_stubborn`: one of its calls cannot be
    cached by its nature, and so the next evaluation's will not be either.
    """

    moment: Moment
    latent: Callable[[], torch.Tensor | None]
    together: Reason | None = None
    is_stubborn: bool = False
    was_called: bool = False
    needs_call: bool = False
    is_begun: bool = False
    ran: Counter[Kind] = field(default_factory=Counter)

    def asked(self, in_turn: bool) -> None:
        """A call of the UNet comes; `in_turn`: where ours are looked at. One in another thread may be a part of this
        evaluation, and cannot be cached.
        """
        self.was_called = True
        self.is_stubborn = self.is_stubborn or not in_turn

    @property
    def calls(self) -> int:
        return sum(self.ran.values())

    @property
    def is_mixed(self) -> bool:
        """Whether some of its calls were full and others not."""
        return 0 < self.ran[Kind.FULL] < self.calls

    def count(self, report: PassReport, was_watched: bool) -> None:
        """It is over: book it. One without a call that ended is none, where we were looking: it was broken off, or
        another cache skipped it. Where another one is known to, nothing is told of what nobody saw.
        """
        was_watched = was_watched or (self.needs_call and not self.was_called)
        if not self.calls and (self.is_begun or was_watched or report.is_blind):
            return
        report.evaluations += 1
        report.full_evaluations += self.ran[Kind.FULL] == self.calls
        report.mixed_evaluations += self.is_mixed
        report.medium_evaluations += not self.ran[Kind.FULL] and self.ran[Kind.MEDIUM] > 0

    def counted(self, report: PassReport, was_watched: bool) -> PassReport:
        """A copy of the report in which it is booked."""
        whole = replace(report)
        self.count(whole, was_watched)
        return whole
