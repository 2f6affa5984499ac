"""A pass that caches nothing itself, and looks whether another cache does: what was not full is never called full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..report.pass_report import Reason
from ..unet.compiled import is_compiled
from ..unet.hooks import register_before
from ..unet.neighbours import home_of
from ..unet.support import UnknownLayout, cache_inside, other_cache, twice
from .attachment import check_forwards
from .session import Session


class Onlooker(Session):
    """Runs nothing otherwise than the host does. Of what only keeps a UNet from being cached it says nothing; who may
    leave out evaluations, or parts of the UNet, ends the counting.
    """

    _unet: nn.Module | None = None
    _handle: Any = None

    def attach(self, unet: nn.Module, hooked: bool = True) -> None:
        """Look at this UNet, and who calls it from now on; with `hooked=False` the calls are somebody else's to see."""
        if self.is_off:
            return
        if not _can_be_looked_at(unet):
            self._take_off()  # from the one before: that it is called no more tells nothing
            return
        is_new = unet is not self._unet
        # There may be thousands of layers, which are looked at once.
        name = other_cache(unet) or (cache_inside(unet) if is_new else None)
        try:
            if name is not None:
                raise twice(name)
            check_forwards(unet, home_of(unet), self._trusted)
        except UnknownLayout as why:
            self.turn_off(why)
            return
        if not hooked:
            self._unet = unet
        if not hooked or (not is_new and self._handle is not None and self._handle.id in unet._forward_pre_hooks):
            return
        if self._evaluation is not None:
            self._evaluation.was_called = True  # if it was, nobody saw it
        self._take_off()
        self._unet, self._handle = unet, register_before(unet, self._see)

    def unhook(self) -> None:
        super().unhook()
        self._take_off()

    def turn_off(self, why: object) -> None:
        if isinstance(why, UnknownLayout) and not why.others_skip:
            self._take_off()
            return
        self.pause()  # before the counting ends
        super().turn_off(why)

    def tick(self, latent: Callable[[], torch.Tensor | None], sigma: float | None = None) -> None:
        over = self._evaluation
        if self._handle is not None and over is not None and not over.was_called:
            self.turn_off(UnknownLayout(Reason.NO_CALL.value, others_skip=True))
        super().tick(latent, sigma)
        if self._handle is not None and self._evaluation is not None:
            self._evaluation.needs_call = True

    def _see(self, *_: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.was_called = True

    def _take_off(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._unet = self._handle = None


def _can_be_looked_at(unet: Any) -> bool:
    """TorchScript's modules take no hooks, and compiled ones would be compiled anew with them."""
    return isinstance(unet, nn.Module) and not isinstance(unet, torch.jit.ScriptModule) and not is_compiled(unet)
