"""What a player tells a judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from . import fakehost
from .models import Control
from .recording import Event

Key = tuple[str, int]
"""Of a call: its generation's key, and its number in it."""


@dataclass(frozen=True)
class Made:
    """One call that was made: everything that a judge needs to say what it should have given.

    `part`: which rows and crops it held, and the shapes of all that it got; None for a call outside any evaluation.
    `ran`: the blocks that ran, in order: input blocks "0", "1" ..., the middle block "m", output blocks "-12" ...
    "-1".
    """

    key: Key
    part: object
    conditioning: object
    weights: object
    forward: str
    arguments: dict[str, Any]
    control: Control | None
    unet: nn.Module
    output: torch.Tensor
    ran: list[str]


class Judge(Protocol):
    """Is told what happens, and may look at it."""

    def pass_begins(self, sampler: str, hires: bool) -> None: ...
    def evaluation_begins(self, announced: Event) -> None: ...
    def called(self, made: Made) -> None: ...
    def batch_ends(self, p: fakehost.Processing) -> None: ...
    def generation_ends(self, p: fakehost.Processing) -> None: ...

    def raised(self) -> None:
        """A call raised, and the host goes on."""

    def crashed(self) -> None:
        """A call raised, and the generation is over."""

    def forgets(self) -> None:
        """The host begins again: no infotext will tell of the passes so far."""
