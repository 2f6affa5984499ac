"""Sees which blocks of a UNet run, and raises there what the recording raised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


class Provoked(RuntimeError):
    """The recorded exception in the UNet."""


class Interrupted(KeyboardInterrupt):
    """The same, of the kind that no `except Exception` sees."""


@dataclass
class BlockWatch:
    """Sees which blocks of a UNet run, through torch's own hooks, and can raise the recorded exception."""

    unet: nn.Module
    ran: list[str] = field(default_factory=list)
    fail: bool = False
    handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        unet: Any = self.unet
        ldm = hasattr(unet, "middle_block")
        named = [(str(i), block) for i, block in enumerate(unet.input_blocks)]
        named += [("m", unet.middle_block if ldm else unet.mid_block), ("out", unet.out if ldm else unet.conv_out)]
        named += [(f"-{len(unet.output_blocks) - i}", block) for i, block in enumerate(unet.output_blocks)]
        for name, block in named:
            # Some forwards do not call a block but go through its layers.
            called: Any = block if getattr(unet, "called", True) or name == "out" else block[0]
            self.handles.append(called.register_forward_pre_hook(self._sees(name)))

    def _sees(self, name: str) -> Callable[..., None]:
        def see(_block: nn.Module, _args: Any) -> None:
            # The recorded one came from the middle block; a cached call does not run it, and fails later.
            if self.fail and name in ("m", "out"):
                self.fail = False
                raise Provoked("provoked")
            if name != "out":
                self.ran.append(name)

        return see

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
