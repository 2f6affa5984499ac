"""What other extensions may ask and tell us. `is_cached` and `force_full` stay; everything else of the package may
change.

    import sys
    deepcache = sys.modules.get("deepcache_ext.public")
    if deepcache is not None and deepcache.is_cached():
        ...

It is loaded whenever DeepCache is, under this name; nothing of it raises. docs/for_extensions.md says when to use it.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial
from typing import Protocol


class _Call(Protocol):
    is_cached: bool


class _Session(Protocol):
    thread: int

    @property
    def call(self) -> _Call | None: ...

    def ask_for_full(self) -> None: ...


_under_way: dict[int, weakref.ref[_Session]] = {}
"""The sessions whose evaluations are under way, by their ids; the one whose call began last is the last. The one thing
that is global.
"""


def _sessions() -> list[_Session]:
    """Of this thread."""
    here, found = threading.get_ident(), [session() for session in list(_under_way.values())]
    return [session for session in found if session is not None and session.thread == here]


def is_cached() -> bool:
    """Whether the UNet's call that is running now is a cached one: only its shallow blocks are run, the others' outputs
    are those of an earlier evaluation. False between calls, and where DeepCache is off.
    """
    calls = [session.call for session in _sessions() if session.call is not None]
    return bool(calls) and calls[-1].is_cached


def force_full() -> None:
    """Make the calls that follow in this evaluation full, and forget what was kept before. For what DeepCache cannot
    see from outside: a patch whose strength jumps, a mask that moves. Later evaluations are cached again, on what the
    full ones keep. A call that has begun already is not made full. Where several UNets are sampled in turns, this is
    asked of all of them. Cheap, and harmless where DeepCache is off.
    """
    for session in _sessions():
        session.ask_for_full()


def begins(session: _Session) -> None:
    """The engine's side: an evaluation of this session begins, or a call in it."""
    key = id(session)
    known = _under_way.pop(key, None)
    _under_way[key] = known or weakref.ref(session, partial(_under_way.pop, key))  # one that is never ended goes too


def ends(session: _Session) -> None:
    """The engine's side: the evaluation is over."""
    _under_way.pop(id(session), None)
