"""T-GATE (arXiv 2404.02747): after a gate, what the texts add stays as it is, and guidance ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from . import spent
from .net import Net, Rival

CROSS, SELF = "attn2", "attn1"


class TGate(Rival):
    """The first `gate` evaluations have guidance. At the last of them what each cross-attention layer adds is kept, the
    mean of with the texts and without. The others run once, without the texts, on what was kept.

    `keeps_self`: the published code's default, which from the third evaluation to the gate also keeps what
    self-attention adds, but at every fifth. On SDXL the published code gives the second half the negative prompt's
    vector; so it is here. The layers do run here, and their results are left: what is kept is not counted.
    """

    def __init__(self, net: Net, steps: int, gate: int, keeps_self: bool = False) -> None:
        super().__init__(net, steps)
        self.gate, self.keeps_self = gate, keeps_self
        self.kept: dict[str, torch.Tensor] = {}

    def noise(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        shares = spent.of(self.net.depth)
        if self.k >= self.gate:
            self.spent += (1 - shares.cross_attention) / 2
            with self.hooked(CROSS, self.give):
                return self.net.unguided(self.net.alone(x, t), x, sigma)
        with ExitStack() as hooks:
            saved = 0.0
            if self.keeps_self and 2 <= self.k < self.gate - 1:
                again = self.k > 2 and self.k % 5 != 0
                hooks.enter_context(self.hooked(SELF, self.give if again else self.keep))
                saved = shares.self_attention if again else 0.0
            if self.k == self.gate - 1:
                hooks.enter_context(self.hooked(CROSS, self.keep_mean))
            said = self.net.last(self.net.hidden(self.net.call(x, t)))
        self.spent += 1 - saved
        return self.net.noise(said, x, sigma)

    @contextmanager
    def hooked(self, kind: str, hook: Any) -> Iterator[None]:
        """Every layer of that kind passes through the hook, which is told its name first."""
        layers = [(name, layer) for name, layer in self.net.unet.named_modules() if name.endswith(f".{kind}")]
        handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def keep(self, name: str, layer: nn.Module, given: Any, added: torch.Tensor) -> None:
        self.kept[name] = added

    def keep_mean(self, name: str, layer: nn.Module, given: Any, added: torch.Tensor) -> None:
        self.kept[name] = sum(added.chunk(2)) / 2  # type: ignore[assignment]

    def give(self, name: str, layer: nn.Module, given: Any, added: torch.Tensor) -> torch.Tensor:
        return self.kept[name]
