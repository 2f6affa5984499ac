"""One pass: the clock's evaluations come in, the UNet's calls are cached by the plan, a report goes out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from .. import public
from ..plan.estimators import Estimator, Moment
from ..plan.importance import USUAL, Nature
from ..plan.plan import Plan
from ..report.pass_report import PassReport, Reason
from ..unet.calls import NoLatent
from ..unet.hooks import through_earlier
from ..unet.ladder import AnyLadder, Arguments
from ..unet.ldm import Ladder
from ..unet.support import UnknownLayout
from .attachment import Attachment
from .books import PassBooks
from .decisions import Decisions
from .evaluation import Evaluation, Kind
from .open_call import Begun, CachedCall, OpenCall
from .stopwatch import Stopwatch

log = logging.getLogger("deepcache")


class Session:
    """Caches the calls of one UNet during one pass of a sampler.

    The host's adapter calls `attach` with the UNet, `tick` at the start of each evaluation and `close` at the end
    of the pass. Calls outside an evaluation, from another thread or on a replica pass through untouched; in any
    doubt a call runs in full and the reason is counted. Nothing here raises: an error of our own is logged once
    and the pass goes on uncached.
    """

    def __init__(
        self,
        plan: Plan,
        estimator: Estimator,
        *,
        hires: bool = False,
        ladder: Callable[[nn.Module], AnyLadder] = Ladder,
        nature: Nature = USUAL,
        trusted: Collection[str] = (),
    ) -> None:
        """`ladder` makes the ladder of a UNet, or raises `UnknownLayout`. `nature`: of the pass's sampler. `trusted`:
        names of other people's code that the user calls harmless (`unet.neighbours`).
        """
        self.plan = plan
        self.report = PassReport(hires=hires)
        self._ladder_of, self._trusted = ladder, trusted
        self.decisions = Decisions(plan, estimator, nature, trusted, self.report)
        self._watch = Stopwatch(self.report)
        self._at: Attachment | None = None
        self._left: list[Attachment] = []
        """With hooks that could not be taken off while torch went through them."""
        self._attached = False
        self._evaluation: Evaluation | None = None
        self._last: Evaluation | None = None
        self._open = Begun()
        self.thread = 0
        self._is_raising = False
        self._index = -1

    # The UNet -----------------------------------------------------------------------------------------------

    def attach(self, unet: nn.Module, hooked: bool = True) -> None:
        """Hook this UNet; a no-op where it is hooked already, or where caching is off. Another UNet than before
        drops what was kept. With `hooked=False` the host's adapter has hooks of its own and calls `before` and
        `after` from them: a hook that is put up while a call begins does not see that call. Where the UNet cannot be
        cached nothing is hooked, and the session is off (`report.off` says why).
        """
        if self.is_off or (unet is self.unet and self._attached and self._at and not self._at.has_lost_hooks):
            return
        if self._at is not None and unet is not self.unet:
            self.detach()
            self.drop(Reason.WEIGHTS)
        elif self._attached:
            self.unhook()
        if self._at is None:
            try:
                self._at = Attachment(unet, self._ladder_of, self.plan.branches, self._trusted)
            except UnknownLayout as reason:
                self.turn_off(reason)
                return
        self._at.unhook()
        self._attached = True
        if hooked:
            self._at.hook(self.before, self.after)

    def unhook(self) -> None:
        """Take hooks and shadows off the UNet but remember what was kept: `attach` goes on from here."""
        self.pause()
        if self._last is not None:
            self._last.was_called = True  # if it was, nobody saw it: no sign of another cache
        self._attached = False
        if self._at is not None:
            self._at.unhook(self._is_raising)

    def detach(self) -> None:
        """Leave the UNet as it was, and forget it."""
        self.unhook()
        if self._at is not None and self._at.is_hooked:
            self._left.append(self._at)
        self._at = None

    @property
    def unet(self) -> nn.Module | None:
        return None if self._at is None else self._at.unet

    def drop(self, reason: Reason) -> None:
        """Forget all kept features; planned cached calls are counted under `reason` until there are new ones."""
        self.decisions.drop(reason)

    def turn_off(self, why: object) -> None:
        """Stop caching for the rest of the pass. `why`, in words or as an `UnknownLayout`, goes into the report."""
        self.report.off = self.report.off or str(why)
        self.report.is_blind = self.report.is_blind or getattr(why, "others_skip", False)
        self.drop(Reason.LAYOUT)
        self.detach()

    @property
    def is_off(self) -> bool:
        return bool(self.report.off)

    def so_far(self) -> PassReport:
        """The report, with the evaluation under way as if it were over."""
        now = self._evaluation
        return self.report if now is None else now.counted(self.report, was_watched=self._attached)

    def close(self) -> PassReport:
        """End the pass, leave nothing behind, and say what happened. May be called twice."""
        self.detach()
        self._sweep()
        self.decisions.drop(Reason.FIRST_SEEN)
        self._watch.finish()
        return self.report

    # The clock ----------------------------------------------------------------------------------------------

    def tick(self, latent: Callable[[], torch.Tensor | None], sigma: float | None = None) -> None:
        """A new evaluation begins (and the one before it ends).

        `latent` gives the evaluation's whole x, (rows, channels, height, width), unscaled or scaled, or None; it is
        asked at the first call, since other extensions may still exchange it. `sigma`: see `Moment`.
        """
        self.pause()
        if self._attached and self._last is not None and not self._last.was_called:
            self.turn_off(UnknownLayout(Reason.NO_CALL.value, others_skip=True))
        self._index += 1
        together = self.decisions.begin(self._index, self._last)
        self._evaluation = Evaluation(Moment(self._index, sigma), latent, together)
        self.thread = threading.get_ident()
        public.begins(self)
        self.report.planned_full += self.plan.is_full(self._index) and not self.report.is_blind

    def pause(self) -> None:
        """The evaluation is over: until the next tick, calls pass through untouched."""
        self._clear()
        over, self._evaluation = self._evaluation, None
        if over is not None:
            self.decisions.end()
            over.count(self.report, was_watched=self._attached)
            self._last = over
            public.ends(self)
        if not self._attached and self._at is not None:
            self._at.unhook(self._is_raising)
        self._sweep()

    def _clear(self) -> None:
        """No call is under way. A session whose UNet another one has meanwhile has no shadows there."""
        if self._at is not None and self._attached:
            self._open.wait(self._at.unet, self.thread, in_turns=not self._at.is_hooked)
            self._at.between_calls()
        self._open.clear()

    def _sweep(self) -> None:
        while self._left and not self._is_raising:
            self._left.pop().unhook()

    def ask_for_full(self) -> None:
        """The rest of this evaluation runs in full."""
        self.drop(Reason.ASKED)

    # The hooks ----------------------------------------------------------------------------------------------

    @property
    def call(self) -> OpenCall | None:
        """The call of the UNet that has begun and not ended; of one inside another the inner."""
        return self._open[-1] if self._open else None

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """A call of the UNet begins: what it is to be run with instead, or None. A forward pre-hook, with kwargs."""
        if self._at is None or self._open.is_closed:
            return None
        asking = self._evaluation or self._last
        if asking is not None:
            asking.asked(asking is self._last or threading.get_ident() == self.thread)
        if unet is not self._at.unet:
            self.report.misses[Reason.REPLICA] += 1
            return None
        if self._evaluation is None or threading.get_ident() != self.thread:
            self.report.misses[Reason.OUTSIDE] += 1
            return None
        public.begins(self)
        if self._open.is_broken_off(unet, self.thread):
            self._clear()
        try:
            opened = self.decisions.open(self._at, self._evaluation, self._last, bool(self._open), args, kwargs)
            self._open.append(opened)
            if opened.timed is not None:
                self._watch.start(opened.timed.x)
        except NoLatent:
            return None
        except Exception as error:
            self._evaluation.ran[Kind.FULL] += not getattr(error, "others_skip", False)
            if isinstance(error, UnknownLayout):  # not as it was when we attached
                self.turn_off(error)
            else:
                self._break()
            return None
        return opened.instead

    def after(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """A call of the UNet ends: its output if another is to be returned, or None. A forward hook, with kwargs;
        an `output` of None says that the forward raised.
        """
        if self._at is None or unet is not self._at.unet or not self._open:
            return None
        if self._evaluation is None or threading.get_ident() != self.thread:
            return None
        done = self._open.pop()
        if output is None:  # torch calls the hook in this way when the forward raised
            self._raised(done)
            return None
        try:
            done.end(self._at.ladder, PassBooks(self._at, self._evaluation, self.decisions, self._watch, self.report))
        except UnknownLayout as reason:
            self.turn_off(reason)
        except Exception:
            self._break()
        return self._run_in_full(unet, done) if isinstance(done, CachedCall) and done.walks.is_astray else None

    def _raised(self, done: OpenCall) -> None:
        """The forward raised: out of memory, most likely, or an interrupt. Free what can be freed, and leave the UNet
        clean. A host that goes on all the same ticks again, and its adapter attaches again. Where the hooks are the
        adapter's own, the evaluation goes on: they will see the call if it is tried again.
        """
        self._is_raising = True
        try:
            if self._at is not None and done.give_up(self._at.ladder):
                self.drop(Reason.RAISED)
                if self._at.is_hooked:
                    self.unhook()
        except Exception:
            self._break()
        finally:
            self._is_raising = False

    def _run_in_full(self, unet: nn.Module, done: CachedCall) -> Any:
        """What the cached call gave belongs to another walk. The host's arguments are still here: run it again."""
        args, kwargs = done.given
        self._watch.start(done.call.x)
        try:
            output = unet.forward(*args, **kwargs)
        except BaseException:
            self._raised(done)
            raise
        self._watch.stop(Kind.FULL)
        return through_earlier(unet, args, kwargs, output)

    def _break(self) -> None:
        """An error of our own: say so once, and let the host go on without us."""
        log.exception("error inside DeepCache; this pass goes on uncached")
        self.report.misses[Reason.ERROR] += 1
        self.turn_off(Reason.ERROR.value)
