"""What other extensions may ask and tell us. `is_cached` and `force_full` stay; everything else of the package may
change.

    import sys
    deepcache = sys.modules.get("deepcache_ext.public")
    if deepcache is not None and deepcache.is_cached():
        ...

It is loaded whenever DeepCache is, under this name; nothing of it raises. docs/for_extensions.md says when to use it.
"""

from __future__ import annotations

import weakref
from typing import Protocol


class _Session(Protocol):
    @property
    def is_in_cached_call(self) -> bool: ...

    def ask_for_full(self) -> None: ...


_active: weakref.ref[_Session] | None = None
"""The session whose evaluation is under way. The one thing that is global."""


def _session() -> _Session | None:
    return _active() if _active is not None else None


def is_cached() -> bool:
    """Whether the UNet's call that is running now is a cached one: only its shallow blocks are run, the others' outputs
    are those of an earlier evaluation. False between calls, and where DeepCache is off.
    """
    session = _session()
    return session is not None and session.is_in_cached_call


def force_full() -> None:
    """Make the calls that follow in this evaluation full, and forget what was kept before. For what DeepCache cannot
    see from outside: a patch whose strength jumps, a mask that moves. Later evaluations are cached again, on what the
    full ones keep. A call that has begun already is not made full. Cheap, and harmless where DeepCache is off.
    """
    session = _session()
    if session is not None:
        session.ask_for_full()


def begins(session: _Session) -> None:
    """The engine's side: an evaluation of this session begins."""
    global _active
    _active = weakref.ref(session)


def ends(session: _Session) -> None:
    """The engine's side: it is over."""
    global _active
    if _session() is session:
        _active = None
