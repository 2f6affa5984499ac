"""What each call of the UNet runs: a list of refusals, and then the plan."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain
from typing import Any

import torch

from ..plan.estimators import Estimator
from ..plan.importance import Nature
from ..plan.plan import Plan
from ..report.pass_report import PassReport, Reason
from ..unet.answers import Answers
from ..unet.calls import WHOLE, Call, tensors_in
from ..unet.hooks import comes_last
from ..unet.ladder import Arguments, Walks
from ..unet.neighbours import unknown_names
from ..unet.support import UnknownLayout, own_forward
from ..unet.tracing import has_tangents, is_traced
from .attachment import Attachment
from .evaluation import Evaluation, Kind
from .motion import Motion
from .open_call import CachedCall, NestedCall, ObservedCall, OpenCall, PlainCall
from .slots import Key, Slot, Slots

MOVES = 2
"""After so many times that the picture moved further than its sampler, the rest of the pass runs in full: towards the
end there is little noise left by which it shows. Once may be chance, or somebody's single act. Chosen by hand.
"""


class Decisions:
    """Decides for the calls of one pass, and remembers what they left. Reasons are counted in the `report`; `trusted`:
    names of other people's code that the user calls harmless (`unet.neighbours`). `estimator`: what stands for the
    skipped part; another one that looks back no further may take its place.
    """

    def __init__(
        self, plan: Plan, estimator: Estimator, nature: Nature, trusted: Collection[str], report: PassReport
    ) -> None:
        self._plan, self.estimator, self._trusted, self._report = plan, estimator, trusted, report
        self._slots = Slots(estimator.keeps)
        self._motion = Motion(nature.fresh_noise, nature.all_fresh)
        self._no_slot = Reason.FIRST_SEEN
        self._moves = 0
        self._asked: tuple[torch.Tensor | None, Callable[[], bool] | None, bool] | None = None
        """By an evaluation's first call: the latent, whether it follows from the last one, whether that matters."""

    def drop(self, reason: Reason) -> None:
        """Forget all kept features; planned cached calls are counted under `reason` until there are new ones."""
        self._slots.clear()
        self._no_slot = reason

    def begin(self, index: int, last: Evaluation | None) -> Reason | None:
        """Evaluation `index` begins, after the `last` one; why all its calls run in full, going by that one."""
        if len(self._slots):
            self._no_slot = Reason.FIRST_SEEN
        if index and self._plan.is_full(index):
            self._slots.forget_older(self._plan.last_full(index - 1))
        return Reason.TOGETHER if last is not None and (last.is_stubborn or last.is_mixed) else None

    def end(self) -> None:
        """The evaluation is over."""
        if self._asked is not None:  # its only call went wrong before that was heeded
            self._asked = None
            self.drop(self._no_slot)
        self._slots.end_evaluation()

    # One call -----------------------------------------------------------------------------------------------

    def open(
        self,
        at: Attachment,
        now: Evaluation,
        last: Evaluation | None,
        inside: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> OpenCall:
        """What the call with these arguments is, with its shadows up. `inside`: another call is under way. Raises
        `UnknownLayout` where nothing can be cached any more.
        """
        if inside:
            return NestedCall(at.ladder)
        at.ladder.take_down()
        if is_traced(args, kwargs):
            return self._plain(now, Reason.TRACED)
        is_first, now.is_begun = not now.is_begun, True
        if is_first:
            self._ask(at, now)
        forwards = self._look_for_changes(at, now, is_first)
        call, key = self._place(at, now, forwards, args, kwargs)
        self._heed(at, now)  # now that all has been asked, so that it is read at once
        if call is None:
            return self._unseen(now)
        if isinstance(key, Reason):
            return self._plain(now, key)
        branch = self._plan.branch_at(now.moment.index)
        if at.foreign().counting and not self._is_alone(call, key, last):
            now.together = now.together or Reason.LAYERS
        forward = own_forward(at.unet)
        if branch is not None and now.together is None:
            slot, reason = self._slots.find(key, call, forward, branch, self._plan.source(now.moment.index))
            if slot is not None:
                return self._cached(at, now, call, slot, branch, forward is not None, (args, kwargs))
            self._miss(reason)
            now.together = Reason.TOGETHER
        elif branch is not None:
            self._miss(now.together)
        return self._observed(at, now, call, key, forward)

    def _ask(self, at: Attachment, now: Evaluation) -> None:
        """Before an evaluation's first call: begin to find out what only a device can tell."""
        latent, answers = now.latent(), Answers()
        self._slots.start_evaluation(latent, answers)
        matters = self.estimator.keeps > 1 or not self._plan.is_full(now.moment.index)
        if matters:
            at.values.ask(answers)
        follows = None if latent is None else self._motion.ask(latent, now.moment, answers, matters)
        self._asked = latent, follows, matters

    def _heed(self, at: Attachment, now: Evaluation) -> None:
        """What was asked before the first call, if it was not heeded yet."""
        if self._asked is None:
            return
        (latent, follows, matters), self._asked = self._asked, None
        if latent is not None and follows is not None and not follows():
            is_lost = not latent.isfinite().all()
            self.drop(Reason.NO_NUMBERS if is_lost else Reason.MOVED)
            self._moves += not is_lost
        if self._moves >= MOVES:
            now.together = now.together or Reason.MOVED
        if matters and at.values_changed():
            self.drop(Reason.WEIGHTS)

    def _look_for_changes(self, at: Attachment, now: Evaluation, is_first: bool) -> int:
        """What came between this call and the one before it; `Attachment.forwards`. Raises `UnknownLayout`."""
        if at.blocks_changed():
            self.drop(Reason.BLOCKS)
        elif at.weights_changed(is_first):
            self.drop(Reason.WEIGHTS)
        forwards = at.forwards()
        if at.foreign().counting and now.calls > now.ran[Kind.FULL]:
            raise UnknownLayout(Reason.LAYERS.value)
        return forwards

    def _place(
        self, at: Attachment, now: Evaluation, forwards: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Call | None, Key | Reason]:
        """What a call is, and its key or why it runs without us; no call where its arguments may still change, or where
        nobody tells us of its end.
        """
        if not comes_last(at.unet) or at.has_lost_hooks:
            return None, Reason.FORWARD
        call = self._slots.with_further_channels(at.ladder.call(args, kwargs))
        # Hosts run without gradients; in a training loop those of the skipped blocks' parameters count too.
        if has_tangents() or (
            torch.is_grad_enabled()
            and any(t.requires_grad for t in chain(tensors_in((args, kwargs)), at.unet.parameters()))
        ):
            return call, Reason.GRADIENT
        patched = [call.whole] if call.whole else unknown_names(call.functions, self._trusted)
        if patched:
            self._report.foreign.update(patched)
            return call, Reason.PATCHED
        return call, self._slots.place(call, forwards, is_full=self._plan.branch_at(now.moment.index) is None)

    def _is_alone(self, call: Call, key: Key, last: Evaluation | None) -> bool:
        """Whether this is the only call of its evaluation: as far as the one before tells, and as it holds both prompts
        (A1111's latent has the rows of both).
        """
        both = key[1] == WHOLE if call.has_both is None else call.has_both
        return both and (last is None or last.calls <= 1)

    def _plain(self, now: Evaluation, reason: Reason) -> PlainCall:
        """A call that runs without us, in full, by its nature: so the others of its evaluation do too."""
        if self._plan.branch_at(now.moment.index) is not None:
            self._miss(reason)
        now.is_stubborn, now.together = True, now.together or Reason.TOGETHER
        return PlainCall()

    def _unseen(self, now: Evaluation) -> PlainCall:
        """A call whose arguments another extension's new hook may change behind ours, or whose end nobody tells us."""
        if self._plan.branch_at(now.moment.index) is not None:
            self._miss(Reason.FORWARD)
        now.together = now.together or Reason.TOGETHER
        return PlainCall()

    def _cached(
        self, at: Attachment, now: Evaluation, call: Call, slot: Slot, branch: int, full_length: bool, given: Arguments
    ) -> CachedCall:
        features = self.estimator.estimate(slot.kept[branch], now.moment)
        instead = at.ladder.arguments(branch, *given)
        renewed = [other for other in self._plan.branches if other < branch]
        walks = at.ladder.up_cached(branch, features, slot.walks, full_length, renewed)
        return CachedCall(call, slot, walks, given, instead)

    def _observed(self, at: Attachment, now: Evaluation, call: Call, key: Key, forward: object) -> OpenCall:
        if not self._plan.worth_keeping(now.moment.index, self.estimator.keeps):
            return PlainCall(call)
        continues = self._slots.continues(key, call, forward)
        walks = at.ladder.up_full(self._plan.branches, full_length=forward is not None)
        return ObservedCall(call, key, forward, walks, continues)

    def _miss(self, reason: Reason | None) -> None:
        reason = self._no_slot if reason in (None, Reason.FIRST_SEEN) else reason
        self._report.misses[reason] += 1

    # What calls leave ---------------------------------------------------------------------------------------

    def keep(self, call: ObservedCall, now: Evaluation) -> None:
        """What a full call gave. Raises what kept it from being kept."""
        self._remember(self._slots.keep(call.key, call.call, call.forward, call.walks, call.continues), call.walks, now)

    def renew(self, call: CachedCall, now: Evaluation) -> None:
        """What a medium call renewed. Raises what kept it from being kept."""
        self._remember(call.slot, call.walks, now)

    def _remember(self, slot: Slot, walks: Walks, now: Evaluation) -> None:
        if walks.failed is not None:
            raise walks.failed
        for branch, features in walks.features.items():
            slot.add(branch, features, now.moment)
            self.estimator.learn(slot.kept[branch])
        self._report.kept_bytes = max(self._report.kept_bytes, self._slots.nbytes)
