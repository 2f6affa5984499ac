"""One call of the UNet, from the hook before it to the hook after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..unet.calls import Call
from ..unet.ladder import Arguments, Walks
from .slots import Key, Slot


@dataclass
class OpenCall:
    """What the hook before a call knows and the hook after it needs. `walks` is None where we did nothing; `given` is
    what the host called the UNet with, where a cached call runs on something else.
    """

    call: Call | None = None
    key: Key | None = None
    slot: Slot | None = None
    forward: object = None
    walks: Walks | None = None
    cached: bool = False
    expected_walks: int = 0
    continues: bool = False
    suspended: Mapping[str, Any] | None = None
    nested: bool = False
    given: Arguments | None = None
    instead: Arguments | None = None

    @property
    def is_astray(self) -> bool:
        """Whether this was a cached call that did something else on the ladder than the full call it goes back to."""
        if not self.cached or self.walks is None:
            return False
        renewed = [] if self.walks.failed is not None else [len(those) for those in self.walks.features.values()]
        return self.walks.astray or any(count != self.expected_walks for count in (self.walks.supplied, *renewed))
