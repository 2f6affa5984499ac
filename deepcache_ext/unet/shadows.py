"""What stands in a UNet's ladder for its blocks, for the length of one call: lists, and stands for single blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import nn


def _itself(real: Any) -> Any:
    """What a copy or a pickle of a shadow is made of: the real thing."""
    return real


class Shadow:
    """Is asked in place of `_real`; for every question that the subclass does not answer, the real one does.

    accelerate, for instance, asks `getattr(blocks, "0")`.
    """

    _real: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_real":
            raise AttributeError(name)
        return getattr(self._real, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self._real,)


class Stand(Shadow):
    """Stands in a ladder for the block `real`: callable like it, and iterable like it, since some forwards
    (reForge's) do not call a block but go through its layers. ControlNet's asks for `input_blocks[0][0].in_channels`.
    """

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getitem__(self, index: Any) -> Any:
        return self._real[index]

    def __len__(self) -> int:
        return len(self._real)

    def __bool__(self) -> bool:
        return bool(self._real)  # a block without a length is true


class Observed(Stand):
    """Runs the real block and hands a look at its output to `see`."""

    def __init__(self, real: Any, see: Callable[[torch.Tensor], None]) -> None:
        super().__init__(real)
        self._see = see

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self._real(*args, **kwargs)
        self._see(output)
        return output

    def __iter__(self) -> Iterator[Any]:
        yield from self._real
        yield self._passing

    def _passing(self, h: torch.Tensor) -> torch.Tensor:
        self._see(h)
        return h


class Supplied(Stand):
    """Runs nothing and returns what `supply` gives."""

    def __init__(self, real: Any, supply: Callable[[], torch.Tensor]) -> None:
        super().__init__(real)
        self._supply = supply

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._supply()

    def __iter__(self) -> Iterator[Any]:
        yield self


class Noted(Stand):
    """Hands a look at what the block is given to `see`, then runs the block."""

    def __init__(self, real: Any, see: Callable[[Any], None]) -> None:
        super().__init__(real)
        self._see = see

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # diffusers calls some blocks and layers by name.
        self._see(args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor")))
        output: torch.Tensor = self._real(*args, **kwargs)
        return output

    def __iter__(self) -> Iterator[Any]:
        yield self._passing
        yield from self._real

    def _passing(self, h: torch.Tensor) -> torch.Tensor:
        self._see(h)
        return h


class Cut(Stand):
    """Runs the real down block, of diffusers, and hands on its first `count` skips: a block whose list of downsamplers
    is empty tells one for them all the same. The list cannot be None instead, which would be None in a copy too.
    """

    def __init__(self, real: Any, count: int) -> None:
        super().__init__(real)
        self._count: int | None = count

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        h, skips = self._real(*args, **kwargs)
        if self._count is None:  # its lists were not what they are now
            h, skips = self._real(*args, **kwargs)
        return h, skips[: self._count]

    def complete(self) -> None:
        """Run all of it, again where it is running."""
        self._count = None


class Blocks(Shadow, list[Any]):
    """The blocks of one call, in place of a ModuleList."""

    def __init__(self, blocks: Sequence[Any], real: nn.ModuleList) -> None:
        super().__init__(blocks)
        self._real = real


class First(Blocks):
    """The first of a UNet's down blocks alone."""

    def complete(self) -> None:
        """All of them: a forward that goes through these goes on to the rest. Before the shadows are taken down in the
        middle of its call, since what is left of that then meets the real blocks on the way up.
        """
        for block in self:
            if isinstance(block, Cut):
                block.complete()
        self.extend(list(self._real)[len(self) :])


class OwnBlocks(Blocks):
    """Blocks that only the thread meets that put them up: to another one's call of the same UNet the real ones are
    there, with nothing of ours among them. Who asks for one that is not there, as no forward does, gets the real one.
    """

    def __init__(self, blocks: Sequence[Any], real: nn.ModuleList) -> None:
        super().__init__(blocks, real)
        self._thread = get_ident()

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__() if get_ident() == self._thread else iter(self._real)

    def __reversed__(self) -> Iterator[Any]:
        return super().__reversed__() if get_ident() == self._thread else reversed(self._real)

    def __len__(self) -> int:
        return super().__len__() if get_ident() == self._thread else len(self._real)

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index) if get_ident() == self._thread else self._real[index]
        except IndexError:
            return self._real[index]


class OwnStand(Stand):
    """The same for a single block: `stand` is what the own thread meets in the place of `real`."""

    def __init__(self, real: Any, stand: Any) -> None:
        super().__init__(real)
        self._stand, self._thread = stand, get_ident()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._stand if get_ident() == self._thread else self._real)(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        yield from self._stand if get_ident() == self._thread else self._real
