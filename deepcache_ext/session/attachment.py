"""What a session is attached to: one UNet, its ladder, our hooks on it, and what may change about it in mid-run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..unet.hooks import comes_last, register_after, register_before
from ..unet.ladder import AnyLadder
from ..unet.neighbours import Foreign, around, class_forward, home_of, in_part, look, origin, unknown_names
from ..unet.support import CACHES, UnknownLayout, own_forward
from ..unet.tracing import modes
from .changes import WeightsWatch, parts, same_parts
from .values import Values


def check_forwards(unet: nn.Module, home: Collection[str], trusted: Collection[str]) -> None:
    """Whoever replaced the UNet's forward, on its class or on this instance, must be known: else `UnknownLayout`."""
    own, call = own_forward(unet), type(unet).__call__
    names = {
        "calls of the UNet's class": [] if call is nn.Module.__call__ else [origin(call)],
        "forward of the UNet's class": filter(None, [class_forward(type(unet), home)]),
        "UNet's forward": [*([] if own is None else [origin(own)]), *around(unet)],
    }
    for what, those in names.items():
        unknown = unknown_names(those, trusted)
        if unknown:
            raise UnknownLayout(f"`{unknown[0]}` replaced the {what}", others_skip=True)


class Attachment:
    """One UNet. `branches`: those that its cached calls run. Raises `UnknownLayout`."""

    def __init__(
        self,
        unet: nn.Module,
        ladder_of: Callable[[nn.Module], AnyLadder],
        branches: Sequence[int],
        trusted: Collection[str] = (),
    ) -> None:
        self.unet, self.ladder = unet, ladder_of(unet)
        self._branches, self._trusted = branches, trusted
        self._ladder_of, self._home = ladder_of, home_of(unet)
        self._check()
        self._own = own_forward(unet), type(unet).forward, [*around(unet)]
        self._take_stock()
        self._handles: list[Any] = []

    def _take_stock(self) -> None:
        """What there is now, to be compared with later."""
        self._weights = WeightsWatch(self.unet)
        self._version: Hashable = None
        self._skipped = self.ladder.skipped(min(self._branches))
        inside = frozenset(id(module) for block in self._skipped for module in block.modules())
        self._in_part = in_part(self.unet, inside)
        self._inside = inside.union(map(id, self._in_part))
        self._seen: dict[Hashable, int] = {}
        self._last_seen: tuple[Hashable, int] = (None, 0)
        self._parts = parts(self.unet)
        self._foreign: Foreign | None = None
        self._put_on: object = None
        self._hooks_so_far = RemovableHandle.next_id

    def _check(self) -> None:
        for name, branch in zip(("cache_branch_id", "deeper_branch_id"), self._branches, strict=False):
            if branch >= self.ladder.depth:
                raise UnknownLayout(
                    f"{name} = {branch} is not allowed: this UNet has the branches 0 to {self.ladder.depth - 1}"
                )
        self._check_forwards()

    def _check_forwards(self) -> None:
        check_forwards(self.unet, self._home, self._trusted)

    def _check_modes(self) -> None:
        """Modes of torch see every function that a call uses: a cached one uses fewer."""
        unknown = unknown_names(map(origin, map(type, modes())), self._trusted)
        if unknown:
            raise UnknownLayout(f"`{unknown[0]}` watches functions that a cached call would skip")

    # Our hooks ----------------------------------------------------------------------------------------------

    def hook(self, before: Callable[..., Any], after: Callable[..., Any]) -> None:
        self._handles = [
            register_before(self.unet, before),
            register_after(self.unet, after),
        ]

    def unhook(self, raising: bool = False) -> None:
        """Take the hooks off, unless torch is going through them for a forward that raised: a hook that goes away
        there, with another extension's behind it, would replace the host's exception by torch's own. Those that stay
        do nothing, and go when the session is next asked for anything.
        """
        if raising and self._handles and next(reversed(self.unet._forward_hooks), None) != self._handles[-1].id:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def between_calls(self) -> None:
        """No shadow is up, and our hook comes behind those that others have put up meanwhile."""
        self.ladder.take_down()
        comes_last(self.unet)

    @property
    def is_hooked(self) -> bool:
        return bool(self._handles)

    @property
    def has_lost_hooks(self) -> bool:
        """Whether somebody took hooks of ours off, as those do who clear all hooks of all modules."""
        hooks = (self.unet._forward_pre_hooks, self.unet._forward_hooks)
        return any(handle.id not in those for handle, those in zip(self._handles, hooks, strict=False))

    # What changes -------------------------------------------------------------------------------------------

    def blocks_changed(self) -> bool:
        """Whether blocks are others than when this was last asked; then the ladder is made anew. Raises
        `UnknownLayout`.
        """
        if same_parts(self._parts, parts(self.unet)):
            return False
        self.ladder = self._ladder_of(self.unet)
        self._check()
        self._take_stock()
        return True

    @property
    def values(self) -> Values:
        """Single values of the weights, to be asked for before the first call of an evaluation."""
        return self._weights.values

    def weights_changed(self, is_first: bool) -> bool:
        """Whether weights are others than when they were last remembered, as far as a sample's traces tell. `is_first`:
        of the evaluation's calls.
        """
        now = self._weights.version(is_first)  # looks for LoRAs even where nothing is to be compared with yet
        return self._version is not None and now != self._version

    def values_changed(self) -> bool:
        """The same, by what the `values` say that were asked for."""
        return self._version is not None and self.values.changed()

    def remember_weights(self) -> None:
        self._version = self._weights.version(look=False)
        self.values.remember()

    def forwards(self) -> int:
        """A number for what runs in the skipped part now, as far as a sample tells: the same where the same forwards,
        classes and hooks are there. Raises `UnknownLayout` for a new one that is not known.
        """
        own = own_forward(self.unet), type(self.unet).forward, [*around(self.unet)]
        if own[0] is not self._own[0] or own[1] is not self._own[1] or own[2] != self._own[2]:
            self._check_forwards()
            self._own = own
        self._check_modes()
        if RemovableHandle.next_id != self._hooks_so_far:  # torch numbers all hooks: there is a new one somewhere
            self._foreign, self._hooks_so_far = None, RemovableHandle.next_id
        now = self._weights.forwards(self._inside)
        if now is not self._last_seen[0]:  # hashing it takes longer than all the rest
            if now not in self._seen:
                self._foreign = None
                self._seen[now] = len(self._seen)
            self._last_seen = now, self._seen[now]
        return self._last_seen[1]

    def foreign(self) -> Foreign:
        """Who lives in the blocks that cached calls skip. Raises `UnknownLayout` where that is not known."""
        if self.ladder.put_on is not self._put_on:
            self._foreign, self._put_on = None, self.ladder.put_on
        if self._foreign is None:
            found = look(self._skipped, self._home, self._trusted, self._in_part)
            if found.unknown:
                watch = "watches" if len(found.unknown) == 1 else "watch"
                names = ", ".join(f"`{name}`" for name in found.unknown)
                is_cache = any(map(CACHES.search, found.unknown))
                raise UnknownLayout(f"{names} {watch} layers that a cached call would skip", others_skip=is_cache)
            self._foreign = found
        return self._foreign
