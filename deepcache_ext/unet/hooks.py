"""Our torch hooks on a UNet: put up with `register_before` and `register_after`, and inert in every copy."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .tracing import is_compiling


class OwnHook:
    """A hook of ours. It belongs to the UNet on which it was put up: a copy of that UNet, and what is read back from a
    pickle or from `torch.save`, gets an `InertHook` in its place.
    """

    is_inert = False

    def __init__(self, target: Callable[..., Any]) -> None:
        self.target = target

    def __call__(self, *args: Any) -> Any:
        return self.target(*args)

    def __deepcopy__(self, _memo: Any) -> InertHook:
        return InertHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return InertHook, ()


@functools.cache
def _unseen() -> type[OwnHook]:
    """Hooks into which torch's compiler does not look. Made where they are needed, since it takes seconds to load."""

    class Unseen(OwnHook):
        __call__ = torch.compiler.disable(OwnHook.__call__)

    return Unseen


class InertHook:
    """What a copy of a hook of ours is: it does nothing, and goes away with its like when the copy is first called."""

    is_inert = True

    def __call__(self, module: nn.Module, *_: Any) -> None:
        # Before the forward only: after one that raised, torch is still going through the hooks that are there.
        if not is_compiling() and self in module._forward_pre_hooks.values():
            remove_inert(module)


def register_before(unet: nn.Module, hook: Callable[..., Any], compiled: bool = False) -> RemovableHandle:
    """Call `hook(unet, args, kwargs)` before each forward. `compiled`: of a UNet whose forward torch compiles."""
    own = _unseen()(hook) if compiled else OwnHook(hook)
    return unet.register_forward_pre_hook(own, with_kwargs=True)


def register_after(unet: nn.Module, hook: Callable[..., Any], compiled: bool = False) -> RemovableHandle:
    """Call `hook(unet, args, kwargs, output)` after each forward, and with None for the output when it raised."""
    own = _unseen()(hook) if compiled else OwnHook(hook)
    try:
        return unet.register_forward_hook(own, with_kwargs=True, always_call=True)
    except TypeError:  # torch 2.0 knows no always_call: the next call or tick clears up after an exception
        return unet.register_forward_hook(own, with_kwargs=True)


def is_hooked(unet: nn.Module) -> bool:
    """Whether hooks of ours are at work on this UNet."""
    return any(isinstance(hook, OwnHook) for hook in unet._forward_pre_hooks.values())


def comes_last(unet: nn.Module) -> bool:
    """Whether our hook before the forward sees what the forward is given: one behind it may still change that. From the
    next call on it does.
    """
    hooks: Any = unet._forward_pre_hooks  # an OrderedDict
    if not hooks or isinstance(hooks[next(reversed(hooks))], OwnHook):
        return True
    own = [key for key, hook in hooks.items() if isinstance(hook, OwnHook)]
    for key in own:
        hooks.move_to_end(key)
    return not own


def through_earlier(unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What others' hooks that torch asks before ours make of an `output` that they have not seen."""
    for key, hook in list(unet._forward_hooks.items()):
        if isinstance(hook, OwnHook):
            break
        given = (args, kwargs) if key in unet._forward_hooks_with_kwargs else (args,)
        told: Any = hook(unet, *given, output)
        output = output if told is None else told
    return output


def remove_inert(unet: nn.Module) -> None:
    """Take off what a copy of a hooked UNet has brought along: hooks, and where it was made inside a call the names of
    shadows, which hold the real blocks there.
    """
    for hooks, marks in (
        (unet._forward_pre_hooks, ("_forward_pre_hooks_with_kwargs",)),
        (unet._forward_hooks, ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")),
    ):
        for key in [key for key, hook in hooks.items() if isinstance(hook, InertHook)]:
            del hooks[key]
            for name in marks:
                getattr(unet, name, {}).pop(key, None)  # torch 2.0 has no `_forward_hooks_always_called`
    for module in unet.modules():
        own, children = module.__dict__, module._modules
        for name in [name for name in own.keys() & children.keys() if own[name] is children[name]]:
            del own[name]


def calls_under_way(unet: nn.Module, thread: int) -> int:
    """How many calls of a UNet are on a thread's stack, one inside the other."""
    frame, count = sys._current_frames().get(thread), 0
    while frame is not None:
        count += frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self") is unet
        frame = frame.f_back
    return count
