"""One call of the UNet, from the hook before it to the hook after it: a class for each kind of call.

Each knows how it ends. What is to be counted and kept it says through `Books`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Protocol

from torch import nn

from ..unet.calls import Call
from ..unet.hooks import calls_under_way
from ..unet.ladder import AnyLadder, Arguments, CachedWalks, Walks
from .evaluation import Kind
from .slots import Key, Slot


class Books(Protocol):
    """Where calls are booked: `books.PassBooks`."""

    def booked(self, kind: Kind) -> None:
        """A call has ended well."""

    def strayed(self, call: CachedCall) -> None:
        """A cached call did something else than its full call: it is to be run again."""

    def keep(self, call: ObservedCall) -> None:
        """What a full call gave is to be kept."""

    def renew(self, call: CachedCall) -> None:
        """What a cached call renewed is to be kept."""


class OpenCall:
    """What all kinds of calls share; each says how it ends."""

    instead: Arguments | None = None
    """What the UNet is to be run with, where that is not what the host gave."""
    is_cached = False

    @property
    def timed(self) -> Call | None:
        """What it is by its arguments; None where its time is not to be taken."""
        return getattr(self, "call", None)

    @property
    def shadowed(self) -> Walks | None:
        """What its shadows see; None where none are up."""
        return getattr(self, "walks", None)

    def end(self, ladder: AnyLadder, books: Books) -> None:
        """The forward returned: take the shadows down, and book the call."""

    def give_up(self, ladder: AnyLadder) -> bool:
        """The forward raised: take the shadows down. Whether the session must start anew."""
        ladder.take_down()
        return True


@dataclass
class PlainCall(OpenCall):
    """A call that runs in full with nothing kept."""

    call: Call | None = None

    def end(self, ladder: AnyLadder, books: Books) -> None:
        ladder.take_down()
        books.booked(Kind.FULL)


class NestedCall(OpenCall):
    """A call inside another one, whose shadows are set aside for it."""

    def __init__(self, ladder: AnyLadder) -> None:
        self._suspended: Mapping[str, Any] = ladder.take_down()

    def end(self, ladder: AnyLadder, books: Books) -> None:
        ladder.put_back(dict(self._suspended))

    def give_up(self, ladder: AnyLadder) -> bool:
        ladder.put_back(dict(self._suspended))
        return False


@dataclass
class ObservedCall(OpenCall):
    """A full call whose features are kept. `forward`: the foreign forward that runs, or None; `continues`: what its
    slot holds is of the same making, and stays for the estimator.
    """

    call: Call
    key: Key
    forward: object
    walks: Walks
    continues: bool

    def end(self, ladder: AnyLadder, books: Books) -> None:
        ladder.take_down()
        books.booked(Kind.FULL)
        books.keep(self)


@dataclass
class CachedCall(OpenCall):
    """A call that runs the live blocks alone. `given`: what the host called the UNet with."""

    call: Call
    slot: Slot
    walks: CachedWalks
    given: Arguments
    instead: Arguments | None = None
    is_cached = True

    def end(self, ladder: AnyLadder, books: Books) -> None:
        ladder.take_down()
        if self.walks.is_astray:
            books.strayed(self)
            return
        books.booked(Kind.MEDIUM if self.walks.features else Kind.CACHED)
        if self.walks.features:
            books.renew(self)


PATIENCE = 10.0
"""Seconds for which another thread waits for a call to end; on a slow CPU a call takes that long."""


class Begun(list[OpenCall]):
    """The calls that have begun and not ended, inner ones last. `closing`: none more is to begin, but inside these."""

    closing = False

    @property
    def is_closed(self) -> bool:
        """Whether a call that begins now is to pass through untouched. One inside another must not meet its shadows."""
        return self.closing and not self

    def is_broken_off(self, unet: nn.Module, thread: int) -> bool:
        """Whether they were broken off by what torch calls no hook for (Ctrl-C, a host's own interrupt), and whoever
        caught that calls again. To be asked from a hook before a call, which must be found itself: where somebody makes
        torch's calls in another way nothing is known, and it counts as one inside another.
        """
        return bool(self) and calls_under_way(unet, thread) == 1

    def wait(self, unet: nn.Module, thread: int, in_turns: bool = False) -> None:
        """In another thread than theirs: until none is under way, since their shadows are in use. `in_turns`: who asks
        has seen to that (`python.turn`), and a call that has begun since waits for it.
        """
        if not self or in_turns or get_ident() == thread:
            return
        self.closing, until = True, time.monotonic() + PATIENCE
        while self and calls_under_way(unet, thread) and time.monotonic() < until:
            time.sleep(0.01)

    def clear(self) -> None:
        super().clear()
        self.closing = False
