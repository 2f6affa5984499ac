"""How deep to run at each evaluation of a pass."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Protocol


class Plan(Protocol):
    """What a session asks of a plan. Evaluations are counted from 0; the plan must answer for any index, since
    the number of evaluations that a host announces is an estimate (DDIM makes one fewer, DPM adaptive many more).
    """

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches (`cache_branch_id`, 0 = shallowest) that cached evaluations run, shallowest first: one, or two
        where some evaluations run a deeper one and renew what the others go on from.
        """

    def branch_at(self, evaluation: int) -> int | None:
        """The branch that runs at this evaluation, or None for the whole UNet."""

    @property
    def caches(self) -> bool:
        """Whether there is any evaluation at which less than the whole UNet runs."""

    def is_full(self, evaluation: int) -> bool:
        """Whether the whole UNet runs at this evaluation."""

    def last_full(self, evaluation: int) -> int:
        """The latest full evaluation that is not after `evaluation`."""

    def source(self, evaluation: int) -> int:
        """The latest evaluation not after this one that runs more of the UNet than it does, or this one where it is
        full: a kept feature must not be older.
        """

    def worth_keeping(self, evaluation: int, keeps: int) -> bool:
        """Whether what is kept at this full evaluation can serve a cached one, as one of the last `keeps`."""


@dataclass(frozen=True)
class UniformPlan:
    """Uniform 1:N (arXiv 2312.00858, section 3.3): full at every `interval`-th evaluation from the first cacheable
    one on, and everywhere outside the window from `start` to `end`, two fractions of `total` evaluations.

    `deeper`: where that is a deeper branch than `branch`, every second full evaluation of the window runs it instead.
    """

    interval: int
    branch: int
    total: int
    start: float = 0.0
    end: float = 1.0
    deeper: int = 0

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch, self.deeper) if self.deeper > self.branch else (self.branch,)

    @property
    def _apart(self) -> int:
        """The distance of full evaluations."""
        return self.interval * len(self.branches)

    def branch_at(self, evaluation: int) -> int | None:
        if self.is_full(evaluation):
            return None
        return self.branch if (evaluation - self.first) % self.interval else self.deeper

    @property
    def first(self) -> int:
        """The first evaluation of the window."""
        # 1e-9: 0.3 * 10 is 3.0000000000000004 in floating point, and means 3.
        return math.ceil(self.start * self.total - 1e-9)

    @property
    def stop(self) -> float:
        """The first evaluation after the window; there is none when the window is open to the end."""
        return math.inf if self.end >= 1 else math.ceil(self.end * self.total - 1e-9)

    def is_outside(self, evaluation: int) -> bool:
        """Whether it lies outside the window."""
        return not self.first <= evaluation < self.stop

    def is_full(self, evaluation: int) -> bool:
        if not self.caches or self.is_outside(evaluation):
            return True
        return (evaluation - self.first) % self._apart == 0

    def last_full(self, evaluation: int) -> int:
        if self.is_full(evaluation):
            return evaluation
        return evaluation - (evaluation - self.first) % self._apart

    def source(self, evaluation: int) -> int:
        if self.branch_at(evaluation) != self.branch:
            return self.last_full(evaluation)
        return evaluation - (evaluation - self.first) % self.interval

    def worth_keeping(self, evaluation: int, keeps: int) -> bool:
        if not self.caches or not self.first - (keeps - 1) <= evaluation < self.stop:
            return False
        next_cached = evaluation + 1 if evaluation >= self.first else self.first + 1
        return next_cached < self.stop

    @property
    def caches(self) -> bool:
        """Whether there is any evaluation at which less than the whole UNet runs."""
        return self.interval > 1 and self.start < 1 and self.first + 1 < self.stop


@dataclass(frozen=True)
class ListedPlan:
    """Full at the listed evaluations, and outside the window. Beyond the announced `total` every so manieth
    evaluation is full, at the list's own mean distance (those that renew a feature counted in).

    `renewed`: evaluations that run the branch `deeper` on what it kept, and renew the feature of `branch`.
    """

    listed: tuple[int, ...]
    branch: int
    total: int
    start: float = 0.0
    end: float = 1.0
    renewed: tuple[int, ...] = ()
    deeper: int = 0
    _full: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        window = UniformPlan(2, self.branch, self.total, self.start, self.end)
        known = {0, *self.listed} | {k for k in range(self.total) if window.is_outside(k)}
        object.__setattr__(self, "_full", tuple(sorted(k for k in known if k < self.total)))
        if self.renewed and self.deeper <= self.branch:
            raise ValueError(f"branch {self.deeper} is not deeper than branch {self.branch}")

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch, self.deeper) if self.renewed else (self.branch,)

    def branch_at(self, evaluation: int) -> int | None:
        if self.is_full(evaluation):
            return None
        return self.deeper if evaluation in self.renewed else self.branch

    @property
    def caches(self) -> bool:
        return len(self._full) < self.total

    @property
    def _beyond(self) -> int:
        """The distance of full evaluations after the announced ones, where none runs the deeper branch."""
        renewals = {*self._full, *(k for k in self.renewed if k < self.total)}
        return -(-self.total // len(renewals)) if self.end >= 1 and renewals else 1

    def is_full(self, evaluation: int) -> bool:
        return self.last_full(evaluation) == evaluation

    def last_full(self, evaluation: int) -> int:
        if evaluation >= self.total:
            return evaluation - (evaluation - self.total) % self._beyond
        return self._full[bisect_right(self._full, evaluation) - 1]

    def source(self, evaluation: int) -> int:
        full = self.last_full(evaluation)
        if evaluation in self.renewed:
            return full
        return max((k for k in self.renewed if full < k < evaluation), default=full)

    def worth_keeping(self, evaluation: int, keeps: int) -> bool:
        if not self.caches:
            return False
        following = evaluation
        for _ in range(keeps):  # of `keeps` features the last one goes when so many full ones have followed
            if not self.is_full(following + 1):
                return following + 1 < self.total or self.end >= 1
            following += 1
        return False
