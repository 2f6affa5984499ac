"""Drives sessions by a UNet's own calls, where no host announces a pass or an evaluation: plain diffusers and SD.Next.

Which call begins a pass or an evaluation, the clock tells (`unet_clock`). With what a pass is made, and what becomes of
it, is the user's to say (`DeepCache`, SD.Next's adapter), who hands it to the driver as functions.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..report.pass_report import Reason
from ..session.onlooker import Onlooker
from ..session.session import Session
from ..unet.compiled import Graphs, inner, is_compiled, is_compiled_as_a_whole, why_not
from ..unet.hooks import register_after, register_before
from ..unet.ladder import Arguments
from ..unet.shadows import First
from ..unet.support import UnknownLayout
from ..unet.tracing import is_compiling, is_traced
from .turn import Entry, Turn
from .unet_clock import Beat, Clock


@dataclass(frozen=True)
class Here:
    """Where a call stands, as the driver's user knows it. `scheduler`: the pipeline's, where there is one. `key`: the
    same for all calls of a pass; another one begins a new pass, whatever the clock says.
    """

    scheduler: Any = None
    key: Hashable = None


class Loop:
    """Notices the end of a loop over a tensor of timesteps: where it is broken off, and where it leaves the end of a
    scheduler's list to another pipeline (`denoising_end`).

    Whoever iterates over a tensor gets elements that are all made at the start and live as long as the loop does: when
    the first one goes, the loop is over. Where that has gone by the second evaluation, each element is made when its
    turn comes, and the end does not show.
    """

    def __init__(self, first: Any, over: Callable[[], None]) -> None:
        self._first = weakref.ref(first) if isinstance(first, torch.Tensor) else None
        self._over = over

    def goes_on(self) -> None:
        """The second evaluation begins."""
        first = self._first() if self._first is not None else None
        self._first = weakref.ref(first, lambda _: self._over()) if first is not None else None


@dataclass
class Run:
    """What is under way in one thread. `session`: of its pass, None where nothing is to be cached. `is_over`: nothing
    more is expected of the pass. `calls`: of this evaluation so far; `calls_before`: of the one before; `is_even`: all
    evaluations so far had as many; `evaluations`: of the pass so far; `was_traced`: since the last evaluation a call
    came that the clock was not shown.
    """

    clock: Clock = field(default_factory=Clock)
    key: Hashable = None
    session: Session | None = None
    is_over: bool = False
    calls: int = 0
    calls_before: int = 0
    is_even: bool = True
    evaluations: int = 0
    loop: Loop | None = None
    was_traced: bool = False


class Driver:
    """Hooks a UNet, and has sessions begin, tick and end by its calls. Each thread has passes of its own; their calls
    are taken in turns.

    `here()`: where a call stands; None where it is not ours, and runs untouched. `begin(here, clock)`: the session of a
    pass that begins, or None where it is not to be cached. `end(session)`: the pass is over.
    `say(message)`: why nothing can be cached. `failed()`: asked while an error of our own is handled; from then on
    `here` says None, until the user knows better.
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        here: Callable[[], Here | None],
        begin: Callable[[Here, Clock], Session | None],
        end: Callable[[Session], object],
        say: Callable[[str], object],
        failed: Callable[[], object],
    ) -> None:
        """`unet`: may be compiled, in any of torch's ways."""
        compiled, self.unet = is_compiled(unet), inner(unet)
        self._graphs = Graphs(self.unet) if compiled else None
        self._here, self._begin, self._end, self._say, self._failed = here, begin, end, say, failed
        self._turn = Turn(self.unet)
        self._runs: dict[int, Run] = {}
        self._called: Session | None = None
        """The session of the call under way, if it is of a pass; whose call that is, the turn says."""
        self._trusts_loops = True
        self._handles = [
            register_before(self.unet, self._before, compiled),
            register_after(self.unet, self._after, compiled),
        ]

    def release(self) -> None:
        """End what is under way, and leave the UNet as it was. Waits for other threads' calls. May be called twice."""
        self.end_passes()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def end_passes(self) -> None:
        """End what is under way: the next call begins a new pass. Waits for other threads' calls."""
        self._end_runs(lambda: list(self._runs))

    def end_pass(self) -> None:
        """As `end_passes`, of this thread alone."""
        self._end_runs(lambda: [threading.get_ident()])

    def _end_runs(self, which: Callable[[], Sequence[int]]) -> None:
        """Of these threads, asked for when no other one's call is under way. One of this thread becomes a full one."""
        found, _ = self._turn.take(by_call=False)
        try:
            below = vars(self.unet).get("down_blocks")
            if found is Entry.INSIDE and isinstance(below, First):
                below.complete()
            self._called = None
            for thread in which():
                self._clear_up_after(thread)
        finally:
            self._turn.give()

    @property
    def sessions(self) -> list[Session]:
        """Of the passes under way."""
        return [run.session for run in list(self._runs.values()) if run.session is not None]

    def is_left_out(self, unet: nn.Module) -> bool:
        """Whether the UNet, as it is called now, was compiled when we had hooked it: the compiler then made nothing of
        our hooks.
        """
        return self._graphs is None and is_compiled_as_a_whole(unet)

    # The hooks ----------------------------------------------------------------------------------------------

    def _before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if unet is not self.unet or is_compiling():  # a replica; no real call
            return None
        found, thread = self._turn.take(by_call=True)
        if found is Entry.INSIDE:
            session = self._called
            return session.before(unet, args, kwargs) if session is not None and session.call is not None else None
        self._called = None
        try:
            self._clear_up_after(thread)
            here = self._here()
            if here is not None:
                self._called = self._look(here, args, kwargs)
        except Exception:
            self._give_up()
        session = self._called
        if session is None or session.unet is not unet:
            return None
        if self._graphs is None and is_compiled(unet):  # its forward alone, since we hooked it
            if why := why_not(unet):
                session.turn_off(why)
                return None
            self._graphs = Graphs(unet)
        instead = session.before(unet, args, kwargs)
        walks = session.call.shadowed if self._graphs is not None and session.call is not None else None
        if self._graphs is None or walks is None:
            return instead
        return self._graphs.told_apart(walks, *(instead or (args, kwargs)))

    def _after(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if unet is not self.unet or is_compiling() or self._turn.owner != threading.get_ident():
            return None
        session = self._called
        try:
            if session is not None and session.call is not None:
                if self._graphs is not None and session.call.shadowed is not None:
                    self._graphs.leave(session.call.shadowed)
                return session.after(unet, args, kwargs, output)
            if session is not None and self._turn.depth == 1 and output is not None:
                # Its plan caches nothing, or it is off; where another cache acts, nobody knows what was full.
                session.report.full_calls += not session.report.is_blind
            return None
        finally:
            if self._turn.depth == 1:
                self._called = None
                self._call_is_over(session)
            self._turn.give()

    def _call_is_over(self, session: Session | None) -> None:
        run = self._runs.get(threading.get_ident())
        if run is not None and run.session is session and run.clock.remaining == 1:
            # Where their number varies, a further call of this evaluation may come.
            run.is_over = run.is_over or (run.is_even and run.calls == run.calls_before)
        # Where nothing is to come, what was kept need not lie about while the VAE works.
        try:
            for run in [run for run in self._runs.values() if run.is_over]:
                self._end_pass(run)
        except Exception:
            self._give_up()

    # Passes and evaluations ---------------------------------------------------------------------------------

    def _look(self, here: Here, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Session | None:
        """Where the call stands: in a new pass, in a new evaluation, or in the same one. The session of its pass,
        or None where it is to run untouched.
        """
        run = self._runs.setdefault(threading.get_ident(), Run())
        if is_traced(args, kwargs):
            # The clock goes by numbers. If this was an evaluation, what is kept is older than the session knows.
            run.was_traced = True
            if run.session is not None:
                run.session.drop(Reason.TRACED)
            return None
        x, timestep = args[0] if args else kwargs.get("sample"), args[1] if len(args) > 1 else kwargs.get("timestep")
        if not isinstance(x, torch.Tensor) or timestep is None:  # its forward will say so
            return None
        beat = run.clock.look(x, timestep, here.scheduler)
        if beat is Beat.EVALUATION and run.is_over:  # more comes than was expected
            beat, self._trusts_loops = Beat.PASS, False
        if here.key != run.key:
            beat = Beat.PASS
        if beat is Beat.CALL:
            run.calls += 1
            return run.session
        if beat is Beat.PASS:
            self._begin_pass(run, here, timestep)
        if run.evaluations > 1:
            run.is_even = run.is_even and run.calls == run.calls_before
        run.calls_before, run.calls, run.evaluations = run.calls, 1, run.evaluations + 1
        if run.evaluations == 2 and run.loop is not None:
            run.loop.goes_on()
        if run.session is not None:
            self._tick(run, run.session, here, x)
        return run.session

    def _begin_pass(self, run: Run, here: Here, timestep: Any) -> None:
        self._end_pass(run)
        alive = set(sys._current_frames())  # not the frames: they would hold what is in them
        for thread in [thread for thread in self._runs if thread not in alive]:
            self._end_pass(self._runs.pop(thread))
        run.key, run.is_over, run.is_even, run.calls, run.evaluations = here.key, False, True, 0, 0
        run.loop = Loop(timestep, lambda: self._loop_is_over(run)) if self._trusts_loops else None
        run.session = self._begin(here, run.clock)

    def _tick(self, run: Run, session: Session, here: Here, x: Any) -> None:
        if (session.plan.caches or isinstance(session, Onlooker)) and not session.is_off:
            session.attach(self.unet, hooked=False)
            if session.is_off:
                self._say(f"not active: {session.report.off}")
        if run.clock.left_out and not run.was_traced:
            session.turn_off(UnknownLayout(Reason.NO_CALL.value, others_skip=True))
        run.was_traced = False
        session.tick(lambda: x, run.clock.noise_level(here.scheduler))

    def _end_pass(self, run: Run) -> None:
        session, run.session, run.loop, run.is_over = run.session, None, None, True
        if session is not None:
            try:
                self._end(session)
            finally:
                session.close()

    # What goes otherwise than planned -----------------------------------------------------------------------

    def _loop_is_over(self, run: Run) -> None:
        """Asked by Python when an object goes, in the middle of whatever runs then."""
        run.is_over = True
        taken = self._turn.take_if_free()
        if taken is None:  # a call is under way, of another thread: its end will do it
            return
        try:
            self._clear_up_after(taken[1])
            self._end_pass(run)
        except Exception:
            self._give_up()
        finally:
            self._turn.give()

    def _clear_up_after(self, thread: int | None) -> None:
        """The thread's call was broken off, or is to count no more: what its pass left on the UNet, or kept, goes."""
        run = self._runs.pop(thread, None) if thread is not None else None
        if run is not None:
            self._end_pass(run)

    def _give_up(self) -> None:
        """After an error of our own: nothing is left, and nothing more cached until the user says so."""
        self._called = None
        self._failed()
        run = self._runs.pop(threading.get_ident(), None)
        if run is not None and run.session is not None:
            run.session.turn_off(Reason.ERROR.value)
            with contextlib.suppress(Exception):
                self._end_pass(run)
