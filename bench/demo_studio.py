"""Pictures of the demo's checkpoint from the embedded host, with the very extension that users run."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from deepcache_ext.plan import cost
from demo.webui.boot import MODELS, REPOSITORY, Host, boot
from demo.webui.checkpoints import Checkpoint, available

FIRST_SEED = 1000
GUIDANCE = 5.0
"""Of classifier-free guidance: the stronger, the more an error of the network counts at each step."""

WORDS = ("a red car", "a blue house", "a green tree", "two cats")
"""For checkpoints that say no words of their own: with random weights any will do."""


class NotActive(RuntimeError):
    """DeepCache did not run as planned."""


@dataclass(frozen=True)
class Pair:
    """A prompt and the seed that goes with it."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Made:
    """Decoded pictures [B, 3, h, w] in 0..1, before rounding. `branches`: what each evaluation ran, None for the whole
    UNet; without DeepCache all whole.
    """

    pictures: torch.Tensor
    branches: tuple[int | None, ...]

    @property
    def speed_up(self) -> float:
        """Of SD1.5's UNet, by its FLOPs."""
        return cost.speed_up(self.branches, cost.USUAL_DEPTH)

    @property
    def kinds(self) -> list[str]:
        """As `preview.fraction` takes them."""
        shallowest = min((one for one in self.branches if one is not None), default=0)
        return ["full" if one is None else "medium" if one > shallowest else "cached" for one in self.branches]


def checkpoint_called(model: str) -> Checkpoint:
    """By its name, or by a short one as `boot` takes it."""
    return available()[MODELS.get(model, model)]


def pairs_for(checkpoint: Checkpoint, count: int) -> list[Pair]:
    """`count` prompts in the checkpoint's own words, each with its own seed; always the same ones."""
    prompts = list(checkpoint.trained.get("prompts") or WORDS)
    random.Random(0).shuffle(prompts)
    prompts = prompts[len(prompts) // 2 :]  # earlier rules were tuned on the first half
    return [Pair(prompts[i % len(prompts)], FIRST_SEED + i) for i in range(count)]


class DemoStudio:
    """A running host and one way of asking it; use it in a `with` statement."""

    def __init__(self, checkpoint: Checkpoint, size: int) -> None:
        self.checkpoint, self.size = checkpoint, size
        self._host: Host | None = None

    def __enter__(self) -> DemoStudio:
        self._host = boot(REPOSITORY, self.checkpoint.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._host is not None
        self._host.close()

    def make(self, sampler: str, steps: int, pairs: Sequence[Pair], args: Mapping[str, Any] | None = None) -> Made:
        """One generation of the pictures of `pairs`, whose seeds are consecutive; without `args` DeepCache is off."""
        assert self._host is not None and all(p.seed == pairs[0].seed + i for i, p in enumerate(pairs))
        request = {
            "prompt": [p.prompt for p in pairs],
            "seed": pairs[0].seed,
            "batch_size": len(pairs),
            "steps": steps,
            "sampler_name": sampler,
            "cfg_scale": GUIDANCE,
            "width": self.size,
            "height": self.size,
        }
        if args is not None:
            request["alwayson_scripts"] = {"DeepCache": {"args": [{"enabled": True, **args}]}}
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        model, decoded = self._host.module("shared").sd_model, []

        def keep(latent: torch.Tensor) -> torch.Tensor:
            decoded.append(type(model).decode_first_stage(model, latent))
            return decoded[-1]

        model.decode_first_stage = keep  # the host gives rounded pictures only
        handle = self._host.unet.register_forward_pre_hook(count)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Should have t")  # torchsde, about the last digit of a noise level
                self._host.txt2img(**request)
        finally:
            handle.remove()
            del model.decode_first_stage
        pictures = ((torch.cat(decoded) + 1) / 2).clamp(0, 1)
        if args is None:
            return Made(pictures, (None,) * calls)
        return Made(pictures, _branches(self._outcome(), calls))

    def _outcome(self) -> Any:
        """What the extension tells of the last run."""
        assert self._host is not None
        loaded = self._host.module("scripts").scripts_data
        return next(one.module.host for one in loaded if hasattr(one.module, "requests")).last_run


def _branches(outcome: Any, calls: int) -> tuple[int | None, ...]:
    """As `Made` has them: the plan of the first pass, if that is what was run. Raises `NotActive`."""
    passes = outcome.passes if outcome is not None else []
    if len(passes) != 1 or passes[0].report.off or passes[0].report.evaluations != calls:
        raise NotActive(f"the UNet was called {calls} times, in another way than planned")
    (one,) = passes
    if one.report.full_evaluations != one.planned.kinds.count("full"):
        raise NotActive(
            f"{one.report.full_evaluations} of {calls} steps were full; the plan was {one.planned.fraction}"
        )
    return tuple(one.planned.branches)
