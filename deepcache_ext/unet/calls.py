"""What distinguishes one call of the UNet from another: its kind, its conditioning, its part of the latent."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from types import MethodType
from typing import Any

import torch

from .answers import Answers

TIME_NAMES = frozenset({"timesteps", "timestep", "t"})

Region = tuple[tuple[int, int, int], ...]
"""For each row of a call's x: the row of the evaluation's latent it comes from, and the crop's top and left. The
empty region is the whole latent, all rows in order."""

WHOLE: Region = ()


class NoLatent(TypeError):
    """A call without a tensor x, which its forward will refuse."""


@dataclass(frozen=True)
class Call:
    """One call of the UNet as its arguments show it.

    `x`: (batch, channels, height, width). `kind`: shapes, dtypes and plain values of all arguments but x and the
    timesteps, and autocast; calls of different kinds never share anything. `conditioning`: the tensors among those
    arguments. `passing`: arguments that are others at each evaluation (timesteps, a control network's residuals), and
    so no part of what it is. `state`: what acts on the call besides its arguments, as far as it is known (active
    control units, loaded LoRAs). `functions`: the origins (see `neighbours`) of other people's code that the call takes
    along. `whole`: why it can only run in full, whatever that code is; "" where it need not. `has_both`: whether prompt
    and negative prompt are both in it, where its arguments say so; None where they do not.
    """

    x: torch.Tensor
    kind: Hashable
    conditioning: tuple[torch.Tensor, ...]
    passing: tuple[Any, ...] = ()
    state: Hashable = None
    functions: tuple[str, ...] = ()
    whole: str = ""
    has_both: bool | None = None

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """From the arguments of `UNet.forward(x, timesteps, context, y, ...)`, positional or named.

        Raises `NoLatent`.
        """
        x = args[0] if args else kwargs.get("x")
        # Positional 2 and 3 are context and y; a caller may pass the same call either way.
        names = ("context", "y")
        others: list[tuple[Hashable, Any]] = [
            (names[place] if place < len(names) else place, value) for place, value in enumerate(args[2:])
        ]
        others += [(name, kwargs[name]) for name in sorted(kwargs) if name != "x" and name not in TIME_NAMES]
        return cls.of_named(x, others, (*args[1:2], *(kwargs[name] for name in TIME_NAMES & kwargs.keys())))

    @classmethod
    def of_named(cls, x: Any, others: Iterable[tuple[Hashable, Any]], passing: tuple[Any, ...] = ()) -> Call:
        """From x and all that distinguishes this call from another, each under its name, always in the same order, and
        what is `passing`.

        Raises `NoLatent` when x is no tensor.
        """
        if not isinstance(x, torch.Tensor):
            raise NoLatent(f"the UNet was called without a tensor x, but with {type(x).__name__}")
        tensors: list[torch.Tensor] = []
        kinds: list[tuple[Hashable, Hashable]] = [("x", _tensor_kind(x)), ("autocast", autocast(x.device.type))]
        kinds += [(name, _kind(value, tensors)) for name, value in others]
        return cls(x, tuple(k for k in kinds if k[1] is not None), tuple(tensors), passing)

    def is_taken_for(self, other: Call) -> bool:
        """Whether both, of one kind and part of the latent, differ in nothing by which they could be told apart at
        another evaluation, and yet are not the same. Costs one device synchronisation at most.
        """
        if self.state != other.state:
            return False
        answers, mine, others = Answers(), [self.x], [other.x]  # of one place, but maybe of another scale
        is_alike = ask_same_content(self.conditioning, other.conditioning, answers)
        if _kind(self.passing, mine) != _kind(other.passing, others):
            return is_alike()
        is_same = ask_same_content(mine, others, answers)
        return is_alike() and not is_same()


class Same:
    """Equal for the very same object only, which lives on as long as this; a bound method is made anew each time."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return False
        if isinstance(self.value, MethodType) and isinstance(other.value, MethodType):
            return self.value.__self__ is other.value.__self__ and self.value.__func__ is other.value.__func__
        return self.value is other.value

    def __hash__(self) -> int:
        if isinstance(self.value, MethodType):
            return hash((id(self.value.__self__), id(self.value.__func__)))
        return id(self.value)


def autocast(device: str) -> torch.dtype | None:
    """To which type torch casts what runs on such devices now; None where it does not, or knows no such devices."""
    try:
        if hasattr(torch, "get_autocast_dtype"):
            return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    except RuntimeError:
        return None
    if device == "cpu":  # before torch 2.4
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def _tensor_kind(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    return (tensor.shape, tensor.dtype, tensor.device)


def _kind(value: Any, tensors: list[torch.Tensor]) -> Hashable:
    """A hashable description of `value`; tensors in it are appended to `tensors`, to be compared by content."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _tensor_kind(value)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, Mapping):
        return tuple((str(key), _kind(item, tensors)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_kind(item, tensors) for item in value)
    # Nothing is known of how such an object acts on the UNet: only the very same one is the same.
    return Same(value)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def ask_same_content(
    one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], answers: Answers
) -> Callable[[], bool]:
    """Whether tensors of equal shapes hold equal values. To be read later: with what else is among the `answers`, in
    one synchronisation of the device.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not b]
    if len(one) != len(other) or any(_tensor_kind(a) != _tensor_kind(b) for a, b in pairs):
        return lambda: False
    differ = [answers.about((a != b).any()) for a, b in pairs]
    return lambda: not any(any(answer()) for answer in differ)


# Which part of the latent ------------------------------------------------------------------------------------

MISMATCH = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-5, torch.bfloat16: 1e-4}
"""Largest 1 - cos^2 between a part of the latent and its scaled copy at the UNet: rounding, and no more. Two frames
of an animation differ by their noise, which is sigma times a unit normal: 1e-3 at the lowest sigma in use. Chosen by
hand between the two, by the dtypes' rounding.
"""

PROBES = 8
"""How many places of a crop are tried per row before its place counts as unknown. Chosen by hand."""


def is_whole(x: torch.Tensor, latent: torch.Tensor) -> bool:
    """Whether x has the latent's rows and size, so that it is the whole of it (channels may be concatenated)."""
    return x.shape[0] == latent.shape[0] and x.shape[2:] == latent.shape[2:] and x.shape[1] >= latent.shape[1]


def ask_lies_at(x: torch.Tensor, latent: torch.Tensor, region: Region, answers: Answers) -> Callable[[], bool]:
    """Whether x, (b, c', h, w), is that region of the latent, (r, c, H, W), scaled: the sampler scales rows by one
    factor (1/sqrt(sigma^2+1)). To be read later, as `ask_same_content`.
    """
    there = _rows_of(x, latent, region)
    if there is None:
        return lambda: False
    here = x.detach()[:, : latent.shape[1]].flatten(1).float()
    there = there.detach().to(here.device)
    # Sums, which are taken in pairs: `vector_norm` on a CPU adds up one by one, wrong by more than the tolerance.
    products = [(one * other).sum(1) for one, other in ((here, there), (here, here), (there, there))]
    told, tolerance = answers.about(torch.cat(products)), _tolerance(x, latent)
    return lambda: all(starmap(partial(_is_scaled, tolerance), zip(*_thirds(told()), strict=True)))


def _is_scaled(tolerance: float, product: float, one: float, other: float) -> bool:
    """Whether two vectors, of which these are the product and each one's with itself, point to the same side."""
    return product > 0 and 1 - product**2 / max(one * other, 1e-30) <= tolerance


def _thirds(numbers: list[float]) -> list[list[float]]:
    count = len(numbers) // 3
    return [numbers[place * count : (place + 1) * count] for place in range(3)]


def _rows_of(x: torch.Tensor, latent: torch.Tensor, region: Region) -> torch.Tensor | None:
    """That region of the latent, (rows, n); None where x cannot be it."""
    if region == WHOLE:
        return latent.flatten(1).float() if is_whole(x, latent) else None
    parts = [_crop(latent, row, top, left, x) for row, top, left in region]
    found = [part for part in parts if part is not None]
    return torch.stack(found).flatten(1).float() if len(found) == len(x) == len(region) else None


def locate(x: torch.Tensor, latent: torch.Tensor) -> Region | None:
    """The region of the latent that x holds, found by content, or None when there is no proof.

    x: (b, c', h, w), latent: (r, c, H, W) with c' >= c, h <= H, w <= W. Of equal rows the first is named, so that
    a region means the same in the next evaluation.
    """
    if x.dim() != 4 or latent.dim() != 4:
        return WHOLE if is_whole(x, latent) else None
    if is_whole(x, latent):
        return WHOLE
    if x.shape[1] < latent.shape[1] or x.shape[2] > latent.shape[2] or x.shape[3] > latent.shape[3]:
        return None
    tolerance = _tolerance(x, latent)
    source = latent.to(device=x.device, dtype=torch.float32)
    rows = x[:, : latent.shape[1]].float()
    found = []
    for row in rows:
        search = _whole_row if row.shape == source.shape[1:] else _crop_of
        place = search(row, source, tolerance)
        if place is None:
            return None
        found.append(place)
    return tuple(found)


def _whole_row(row: torch.Tensor, latent: torch.Tensor, tolerance: float) -> tuple[int, int, int] | None:
    mismatch = _mismatch(row.flatten().expand(latent.shape[0], -1), latent.flatten(1))
    near = mismatch <= torch.clamp(mismatch.min() + tolerance / 10, max=tolerance)
    rows = near.nonzero()
    return (int(rows[0]), 0, 0) if len(rows) else None


def _crop_of(crop: torch.Tensor, latent: torch.Tensor, tolerance: float) -> tuple[int, int, int] | None:
    """Finds a crop by the direction of the channel vector in its corner, then compares it as a whole."""
    height, width = crop.shape[1:]
    corners = latent[:, :, : latent.shape[2] - height + 1, : latent.shape[3] - width + 1]
    corner = crop[:, 0, 0].view(1, -1, 1, 1)
    product = (corners * corner).sum(1)
    cosine2 = product.square() / (corners.square().sum(1) * corner.square().sum()).clamp_min(1e-30)
    candidates = ((product > 0) & (1 - cosine2 <= 10 * tolerance)).nonzero()
    order = cosine2[tuple(candidates.T)].argsort(descending=True, stable=True)
    for row, top, left in candidates[order][:PROBES].tolist():
        part = latent[row, :, top : top + height, left : left + width]
        if float(_mismatch(crop.flatten()[None], part.flatten()[None])) <= tolerance:
            return _first_equal(latent, row, top, left, part), top, left
    return None


def _first_equal(latent: torch.Tensor, row: int, top: int, left: int, part: torch.Tensor) -> int:
    height, width = part.shape[1:]
    parts = latent[: row + 1, :, top : top + height, left : left + width]
    return int((parts == part).flatten(1).all(1).nonzero()[0])


def _crop(latent: torch.Tensor, row: int, top: int, left: int, x: torch.Tensor) -> torch.Tensor | None:
    height, width = x.shape[2:]
    if row >= latent.shape[0] or top + height > latent.shape[2] or left + width > latent.shape[3]:
        return None
    return latent[row, :, top : top + height, left : left + width]


def _mismatch(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """1 - cos^2 of the angle between the rows of two (rows, n) matrices; 1 where they point to opposite sides."""
    product = (one * other).sum(1)
    cosine2 = product.square() / (one.square().sum(1) * other.square().sum(1)).clamp_min(1e-30)
    return torch.where(product > 0, 1 - cosine2, torch.ones_like(cosine2))


def _tolerance(x: torch.Tensor, latent: torch.Tensor) -> float:
    return max(MISMATCH.get(x.dtype, 1e-4), MISMATCH.get(latent.dtype, 1e-4))
