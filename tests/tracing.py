"""Ways of torch to call a function of one tensor that are no plain run of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

Way = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], Any]


def _in_mode(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        f(mode.from_tensor(x))


def _exported(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return f(x)

    torch.export.export(Module(), (x,), strict=False)


TRACING: dict[str, Way] = {
    "jit": lambda f, x: torch.jit.trace(f, (x,), check_trace=False),
    "compile": lambda f, x: torch.compile(f, backend="eager")(x),
    "export": _exported,
    "make_fx": lambda f, x: make_fx(f)(x),
    "make_fx, early": lambda f, x: make_fx(f, pre_dispatch=True)(x),
    "fake": _in_mode,
    "fake, outside of its mode": lambda f, x: f(FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x)),
    "vmap": lambda f, x: torch.vmap(f)(x[None]),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(x[None]),
    "grad of vmap": lambda f, x: torch.func.grad(lambda x: torch.vmap(f)(x).sum())(x[None]),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}
"""It is recorded, compiled or transformed, and the tensors in it may have no numbers."""
