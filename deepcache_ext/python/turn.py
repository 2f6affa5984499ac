"""One thread at a time inside a UNet's calls: a cached call's shadows are on the UNet, where every thread sees them."""

from __future__ import annotations

import threading
from enum import Enum

from torch import nn

from ..unet.hooks import calls_under_way

PATIENCE = 0.1
"""Seconds after which a thread that waits looks whether the call that it waits for is still running."""


class Entry(Enum):
    """What is found by who takes the turn."""

    FREE = "nobody's call is under way"
    INSIDE = "a call of this thread is under way, and this is a part of it"
    BROKEN = "a call was broken off, and nobody has cleared up after it"


class Turn:
    """Whose turn it is to call a UNet. What took it gives it back: the hooks before and after a call, or who wants no
    call to be under way.

    torch runs no hook after a call that Ctrl-C broke off, nor in 2.0 after any exception: such a call gives nothing
    back. That it is over is seen from its thread's stack, by the next one who comes.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._given = threading.Condition()
        self._by_call = False
        self.owner: int | None = None
        """The thread whose turn it is; None: nobody's."""
        self.depth = 0
        """How many times that thread has taken it and not given it back."""

    def take(self, by_call: bool) -> tuple[Entry, int | None]:
        """Waits for other threads' calls to end. `by_call`: this is the beginning of a call.

        Returns what was found, and for `BROKEN` the thread whose call that was.
        """
        me = threading.get_ident()
        with self._given:
            while self.owner not in (None, me) and self._is_running():
                self._given.wait(PATIENCE)
            if self.owner == me and calls_under_way(self._unet, me) > by_call:
                self.depth += 1
                return Entry.INSIDE, None
            return self._taken(by_call)

    def take_if_free(self) -> tuple[Entry, int | None] | None:
        """As `take`, where no call is under way, in this thread or another; None where one is."""
        with self._given:
            return None if self.owner is not None and self._is_running() else self._taken(by_call=False)

    def give(self) -> None:
        """To be asked by the owner alone."""
        with self._given:
            self.depth -= 1
            if not self.depth:
                self.owner = None
                self._given.notify_all()

    def _taken(self, by_call: bool) -> tuple[Entry, int | None]:
        before, self.owner = self.owner, threading.get_ident()
        self.depth, self._by_call = 1, by_call
        return (Entry.FREE, None) if before is None else (Entry.BROKEN, before)

    def _is_running(self) -> bool:
        """Whether the owner still has the turn by right."""
        return not self._by_call or (self.owner is not None and calls_under_way(self._unet, self.owner) > 0)
