"""One pass: the clock's evaluations come in, the UNet's calls are cached by the plan, a report goes out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from itertools import chain
from typing import Any

import torch
from torch import nn

from .. import public
from ..plan.estimators import Estimator, Moment
from ..plan.plan import Plan
from ..report.pass_report import PassReport, Reason
from ..unet.hooks import register_after, register_before
from ..unet.ladder import AnyLadder, Arguments, Walks
from ..unet.ldm import Ladder
from ..unet.support import UnknownLayout, is_traced, own_forward
from .changes import Parts, WeightsWatch, parts, same_parts
from .open_call import OpenCall
from .slots import Slot, Slots
from .stopwatch import Kind, Stopwatch

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
    ) -> None:
        """`ladder` makes the ladder of a UNet, or raises `UnknownLayout`."""
        self.plan = plan
        self.estimator = estimator
        self._ladder_of = ladder
        self.report = PassReport(hires=hires)
        self._slots = Slots(estimator.keeps)
        self._watch = Stopwatch(self.report)
        self._unet: nn.Module | None = None
        self._ladder: AnyLadder | None = None
        self._handles: list[Any] = []
        self._attached = False
        self._weights: WeightsWatch | None = None
        self._version: Hashable = None
        self._parts: Parts = ()
        self._moment: Moment | None = None
        self._latent: Callable[[], torch.Tensor | None] | None = None
        self._was_full = self._was_deeper = False
        self._thread = 0
        self._open: list[OpenCall] = []
        self._is_raising = False
        self._no_slot: Reason = Reason.FIRST_SEEN
        self._index = -1

    # The UNet -----------------------------------------------------------------------------------------------

    def attach(self, unet: nn.Module, hooked: bool = True) -> None:
        """Hook this UNet; a no-op where it is hooked already, or where caching is off. Another UNet than before
        drops what was kept. With `hooked=False` the host's adapter has hooks of its own and calls `before` and
        `after` from them: a hook that is put up while a call begins does not see that call.

        Raises `UnknownLayout`, with nothing hooked, where the UNet cannot be cached.
        """
        if self.is_off or (unet is self._unet and self._attached):
            return
        if unet is not self._unet:
            if self._unet is not None:
                self.detach()
                self.drop(Reason.WEIGHTS)
            self._look_at(unet)
        self._remove_handles()
        self._attached = True
        if hooked:
            self._handles = [register_before(unet, self.before), register_after(unet, self.after)]

    def _look_at(self, unet: nn.Module) -> None:
        """Learn what the UNet is made of. Raises `UnknownLayout`."""
        ladder = self._ladder_of(unet)
        for name, branch in zip(("cache_branch_id", "deeper_branch_id"), self.plan.branches, strict=False):
            if branch >= ladder.depth:
                raise UnknownLayout(
                    f"{name} = {branch} is not allowed: this UNet has the branches 0 to {ladder.depth - 1}"
                )
        self._ladder, self._unet = ladder, unet
        self._weights, self._version, self._parts = WeightsWatch(unet), None, parts(unet)

    def unhook(self) -> None:
        """Take hooks and shadows off the UNet but remember what was kept: `attach` goes on from here."""
        self.pause()
        self._attached = False
        self._remove_handles()

    def _remove_handles(self) -> None:
        """Take the hooks off, unless torch is going through them for a forward that raised: a hook that goes away
        there, with another extension's behind it, would replace the host's exception by torch's own. Those that stay
        do nothing, and go when the session is next asked for anything.
        """
        if (
            self._is_raising
            and self._handles
            and self._unet is not None
            and next(reversed(self._unet._forward_hooks), None) != self._handles[-1].id
        ):
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def detach(self) -> None:
        """Leave the UNet as it was, and forget it."""
        self.unhook()
        self._unet = self._ladder = self._weights = self._version = None
        self._parts = ()

    @property
    def unet(self) -> nn.Module | None:
        return self._unet

    def drop(self, reason: Reason) -> None:
        """Forget all kept features; planned cached calls are counted under `reason` until there are new ones."""
        self._slots.clear()
        self._no_slot = reason

    def turn_off(self, why: str) -> None:
        """Stop caching for the rest of the pass; `why` goes into the report, in words."""
        self.report.off = self.report.off or why
        self._was_full = True
        self.drop(Reason.LAYOUT)
        self.detach()

    @property
    def is_off(self) -> bool:
        return bool(self.report.off)

    def close(self) -> PassReport:
        """End the pass, leave nothing behind, and say what happened. May be called twice."""
        self.detach()
        self._slots.clear()
        self._watch.finish()
        return self.report

    # The clock ----------------------------------------------------------------------------------------------

    def tick(self, latent: Callable[[], torch.Tensor | None], sigma: float | None = None) -> None:
        """A new evaluation begins (and the one before it ends).

        `latent` gives the evaluation's whole x, (rows, channels, height, width), unscaled or scaled, or None; it is
        asked at the first call, since other extensions may still exchange it. `sigma`: see `Moment`.
        """
        self.pause()
        self._index += 1
        self._moment = Moment(self._index, sigma)
        public.begins(self)
        self._latent = latent
        self._thread = threading.get_ident()
        self.report.evaluations += 1
        if len(self._slots):
            self._no_slot = Reason.FIRST_SEEN
        if self.plan.is_full(self._index):
            self.report.planned_full += 1
            if self._index:
                self._slots.forget_older(self.plan.last_full(self._index - 1))

    def pause(self) -> None:
        """The evaluation is over: until the next tick, calls pass through untouched."""
        if self._ladder is not None:
            self._ladder.take_down()
        self._open.clear()
        if self._moment is not None:
            self._slots.end_evaluation()
            if self._was_full or not self._attached:
                self.report.full_evaluations += 1
            elif self._was_deeper:
                self.report.deeper_evaluations += 1
            public.ends(self)
        self._moment = None
        self._latent = None
        self._was_full = self._was_deeper = False
        if not self._attached:
            self._remove_handles()

    # What other extensions ask ------------------------------------------------------------------------------

    @property
    def is_in_cached_call(self) -> bool:
        return bool(self._open) and self._open[-1].cached

    def ask_for_full(self) -> None:
        """The rest of this evaluation runs in full."""
        self.drop(Reason.ASKED)

    # The hooks ----------------------------------------------------------------------------------------------

    @property
    def is_in_call(self) -> bool:
        """Whether a call of the UNet has begun and not ended."""
        return bool(self._open)

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """A call of the UNet begins: what it is to be run with instead, or None. A forward pre-hook, with kwargs."""
        if self._unet is None or self._ladder is None:  # attached to no UNet: nothing was to be cached here
            return None
        if unet is not self._unet:
            self.report.misses[Reason.REPLICA] += 1
            return None
        if not self._is_ours():
            self.report.misses[Reason.OUTSIDE] += 1
            return None
        try:
            opened = self._begin_call(unet, args, kwargs, self._moment)
            self._open.append(opened)
        except UnknownLayout as reason:  # another forward than when we attached
            self.turn_off(str(reason))
            return None
        except Exception:
            self._break()
            return None
        return opened.instead

    def _is_ours(self) -> bool:
        """Whether a call at this moment is part of an evaluation, in the sampler's own thread."""
        return self._moment is not None and threading.get_ident() == self._thread

    def _begin_call(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], moment: Moment | None
    ) -> OpenCall:
        assert self._ladder is not None and moment is not None
        if self._open:
            return OpenCall(nested=True, suspended=self._ladder.take_down())
        self._ladder.take_down()
        if is_traced():
            return self._plain(Reason.TRACED)
        if self._latent is not None:
            self._slots.start_evaluation(self._latent())
            self._latent = None
        if not same_parts(self._parts, parts(unet)):
            self.drop(Reason.BLOCKS)
            self._look_at(unet)
        if self._version is not None and self._weights is not None and self._weights.version() != self._version:
            self.drop(Reason.WEIGHTS)
        call = self._ladder.call(args, kwargs)
        # Hosts run without gradients; in a training loop those of the skipped blocks' parameters count too.
        if torch.is_grad_enabled() and any(
            t.requires_grad for t in chain((call.x, *call.conditioning), unet.parameters())
        ):
            return self._plain(Reason.GRADIENT)
        branch = self.plan.branch_at(moment.index)
        planned_full = branch is None
        if call.whole:
            return self._plain(None if planned_full else Reason.PATCHED)
        key = self._slots.place(call)
        if key is None:
            return self._plain(None if planned_full else Reason.UNPLACED)
        forward = own_forward(unet)
        if branch is not None:
            slot, reason = self._slots.find(key, call, forward, branch, self.plan.source(moment.index))
            if slot is not None:
                features = self.estimator.estimate(slot.kept[branch], moment)
                instead = self._ladder.arguments(branch, args, kwargs)
                renewed = [other for other in self.plan.branches if other < branch]
                walks = self._ladder.up_cached(branch, features, None if forward is None else slot.walks, renewed)
                walks.expected_sizes = slot.walks.sizes
                self._watch.start(call.x)
                return OpenCall(
                    call, key, slot, forward, walks, True, len(features), given=(args, kwargs), instead=instead
                )
            self._miss(reason)
        self._was_full = True
        if not self.plan.worth_keeping(moment.index, self.estimator.keeps):
            self._watch.start(call.x)
            return OpenCall(call)
        continues = self._slots.continues(key, call, forward)
        walks = self._ladder.up_full(self.plan.branches, full_length=forward is not None)
        self._watch.start(call.x)
        return OpenCall(call, key, None, forward, walks, continues=continues)

    def after(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """A call of the UNet ends: its output if another is to be returned, or None. A forward hook, with kwargs;
        an `output` of None says that the forward raised.
        """
        if unet is not self._unet or self._ladder is None or not self._open or not self._is_ours():
            return None
        done = self._open.pop()
        if output is None:  # torch calls the hook in this way when the forward raised
            self._raised(done)
            return None
        try:
            self._end_call(done)
        except Exception:
            self._break()
        return self._run_in_full(unet, done) if done.is_astray else None

    def _raised(self, done: OpenCall) -> None:
        """The forward raised: out of memory, most likely, or an interrupt. Free what can be freed, and leave the UNet
        clean. A host that goes on all the same ticks again, and its adapter attaches again.
        """
        assert self._ladder is not None
        self._is_raising = True
        try:
            if done.nested:
                self._ladder.put_back(dict(done.suspended or {}))
                return
            self.drop(Reason.RAISED)
            self._was_full = True
            self.unhook()
        except Exception:
            self._break()
        finally:
            self._is_raising = False

    def _end_call(self, done: OpenCall) -> None:
        """The forward returned: take the shadows down, and book the call."""
        assert self._ladder is not None
        if done.nested:
            self._ladder.put_back(dict(done.suspended or {}))
            return
        self._ladder.take_down()
        if done.call is None:
            return
        if done.is_astray:
            self._watch.discard()
            self._was_full = True
            self.report.full_calls += 1
            self.report.misses[Reason.WALKS] += 1
            self.drop(Reason.WALKS)
            return
        if done.cached:
            self._end_cached(done)
            return
        self._watch.stop(Kind.FULL)
        self.report.full_calls += 1
        if done.walks is not None:
            self._keep(done, done.walks)

    def _end_cached(self, done: OpenCall) -> None:
        assert done.walks is not None and done.slot is not None and self._moment is not None
        self.report.cached_calls += 1
        if not done.walks.features:
            self._watch.stop(Kind.CACHED)
            return
        self._watch.stop(Kind.DEEPER)
        self._was_deeper = True
        self.report.deeper_calls += 1
        if done.walks.failed is not None:
            raise done.walks.failed
        self._remember(done.slot, done.walks, self._moment)

    def _run_in_full(self, unet: nn.Module, done: OpenCall) -> Any:
        """What the cached call gave belongs to another walk. The host's arguments are still here: run it again."""
        assert done.call is not None and done.given is not None
        args, kwargs = done.given
        self._watch.start(done.call.x)
        try:
            output = unet.forward(*args, **kwargs)
        except BaseException:
            self._raised(done)
            raise
        self._watch.stop(Kind.FULL)
        return output

    def _keep(self, done: OpenCall, walks: Walks) -> None:
        assert self._moment is not None and done.call is not None and done.key is not None
        if walks.failed is not None:
            raise walks.failed
        if not walks.features:
            self.turn_off(Reason.NO_EFFECT.value)
            return
        slot = self._slots.keep(done.key, done.call, done.forward, walks, done.continues)
        self._remember(slot, walks, self._moment)
        if self._weights is not None:
            # Taken after the call: A1111 merges LoRAs lazily, inside the layers' forwards.
            self._version = self._weights.version()

    def _remember(self, slot: Slot, walks: Walks, moment: Moment) -> None:
        for branch, features in walks.features.items():
            slot.add(branch, features, moment)
            self.estimator.learn(slot.kept[branch])
        self.report.kept_bytes = max(self.report.kept_bytes, self._slots.nbytes)

    def _plain(self, reason: Reason | None) -> OpenCall:
        """A call that runs without us, in full."""
        if reason is not None:
            self._miss(reason)
        self._was_full = True
        self.report.full_calls += 1
        return OpenCall()

    def _miss(self, reason: Reason | None) -> None:
        reason = self._no_slot if reason in (None, Reason.FIRST_SEEN) else reason
        self.report.misses[reason] += 1

    def _break(self) -> None:
        """An error of our own: say so once, and let the host go on without us."""
        log.exception("error inside DeepCache; this pass goes on uncached")
        self.report.misses[Reason.ERROR] += 1
        self.turn_off(Reason.ERROR.value)
