"""One call of the UNet, from the hook before it to the hook after it: a class for each kind of call.

Each knows how it ends. What is to be counted and kept it says through `Books`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..unet.calls import Call
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
