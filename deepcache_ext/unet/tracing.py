"""Forwards that are recorded, compiled, transformed or differentiated rather than run on numbers.

Facts of torch (seen with 2.13): of what is told here only `torch.jit.is_tracing` and `torch.compiler.is_compiling` are
public. Modes that record (`make_fx`) and those for tensors without numbers (`FakeTensorMode`, functionalization) are
known by their classes' names, so that nothing is imported for them; a fake tensor may also be used outside its mode.
Transforms of `torch.func` lie on a stack; before `get_interpreter_stack` the innermost alone could be asked for.
Inside `grad` and `jvp` tensors have numbers. While a CUDA graph is captured nothing runs: to read a number then raises,
and ends the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import overrides
from torch.autograd import forward_ad
from torch.utils import _python_dispatch as dispatch

RECORDING = frozenset(
    {"ProxyTorchDispatchMode", "PreDispatchTorchFunctionMode", "FakeTensorMode", "FunctionalTensorMode"}
)
NO_NUMBERS = frozenset({"FakeTensor", "FunctionalTensor"})
PLAIN = frozenset({torch.Tensor, dict, bool, type(None)})
DIFFERENTIATING = frozenset({"Grad", "Jvp"})

_transforms: Any = getattr(torch._C, "_functorch", None)


_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def is_compiling() -> bool:
    """Whether a forward that runs now is being compiled rather than run."""
    return _is_compiling()


def is_traced(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward that begins now, with these arguments, is recorded, compiled or transformed rather than run.
    Asked at each call: 1 microsecond where it is not.
    """
    if torch.jit.is_tracing() or is_compiling():  # type: ignore[attr-defined]
        return True
    if is_captured(args, kwargs):
        return True
    on, transformed, given = modes(), transforms(), {*map(type, args), *map(type, kwargs.values())}
    return (
        (bool(on) and any(type(mode).__name__ in RECORDING for mode in on))
        or (bool(transformed) and not DIFFERENTIATING.issuperset(transformed))
        or (not PLAIN.issuperset(given) and any(kind.__name__ in NO_NUMBERS for kind in given))
    )


def is_captured(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a CUDA graph is made of what these arguments' device is given now."""
    is_on_cuda = any(isinstance(one, torch.Tensor) and one.is_cuda for one in (*args, *kwargs.values()))
    return is_on_cuda and torch.cuda.is_current_stream_capturing()


def has_tangents() -> bool:
    """Whether tangents may go along with a forward that runs now: `forward_ad.dual_level`, `torch.func.jvp`."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def modes() -> list[Any]:
    """Torch's modes that are on: each is given every function that is called, a few of torch's own ("default device")
    too. 0.2 microseconds where there are none.
    """
    on: list[Any] = overrides._get_current_function_mode_stack() if torch._C._len_torch_function_stack() else []
    return on + (dispatch._get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else [])


def transforms() -> list[str]:
    """The names of `torch.func`'s transforms that are under way, as torch has them: "Vmap", "Grad"."""
    innermost = _transforms.peek_interpreter_stack() if _transforms is not None else None
    if innermost is None:
        return []
    return [one.key().name for one in getattr(_transforms, "get_interpreter_stack", lambda: [innermost])()]
