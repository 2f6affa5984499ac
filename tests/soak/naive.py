"""DeepCache written naively, on the forward of the UNets' classes: whole pictures to compare the extension's with.

Shares no code with the engine. It relies on what the scenes here keep to: every evaluation asks for the same parts in
the same order, so a call's place in its evaluation and its shapes say which part it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from tests.controlnet import Hook
from tests.replay.models import MIDDLE
from tests.replay.reference import noise_level, walk


@dataclass
class Residuals:
    """What ControlNet's units add in one call, by position, with every network run whole."""

    controls: list[Any]

    def residual(self, position: int, count: int, h: torch.Tensor) -> Any:
        return self.controls[count if position == MIDDLE else position]


@dataclass
class Kept:
    index: int
    sigma: float
    made_of: tuple[Any, ...]
    context: torch.Tensor
    feature: torch.Tensor


@dataclass
class Naive:
    """The rule for one generation. `settings`: the script's named values, none before `strategy` left out.
    `control`: units that act."""

    settings: dict[str, Any]
    control: Hook | None = None
    full: int = 0
    cached: int = 0
    _denoiser: Any = None
    _index: int = -1
    _nth: int = 0
    _inside: bool = False
    _kept: dict[Any, dict[int, list[Kept]]] = field(default_factory=dict)

    def begin_evaluation(self, params: Any) -> None:
        """`on_cfg_denoiser`. A pass has a denoiser of its own, or (img2img) the one of the batch before, begun anew."""
        if params.denoiser is not self._denoiser or params.denoiser.step == 0:
            self._denoiser, self._index = params.denoiser, -1
            self._kept.clear()
            hires = bool(getattr(params.denoiser.p, "is_hr_pass", False))
            own = self.settings
            self._covered = own["passes"] == "both" or own["passes"] == ("hires only" if hires else "first only")
            interval, branch = own["hires_cache_interval"], own["hires_cache_branch_id"]
            self._interval = interval if hires and interval else own["cache_interval"]
            self._branch = branch if hires and branch >= 0 else own["cache_branch_id"]
            self._total = params.denoiser.total_steps
        self._index += 1
        self._nth, self._inside = 0, True
        timesteps = type(params.denoiser).__name__ == "CFGDenoiserTimesteps"
        self._sigma = noise_level(float(params.sigma[0]), timesteps)

    def end_evaluation(self, _: Any) -> None:
        self._inside = False

    def model_loaded(self, _: Any) -> None:
        self._kept.clear()

    @property
    def _branches(self) -> tuple[int, ...]:
        listed = self.settings.get("strategy") == "custom" and "/" in self.settings["full_evaluations"]
        deeper = max(self._kinds.values()) if listed else self.settings.get("deeper_branch_id", 0)
        return (self._branch, deeper) if deeper > self._branch else (self._branch,)

    def _ran(self, k: int) -> int | None:
        """The branch of evaluation k; None for the whole UNet."""
        start, end = self.settings["start"] * self._total, self.settings["end"] * self._total
        first = math.ceil(round(start, 6))
        if k < first or (self.settings["end"] < 1.0 and k >= math.ceil(round(end, 6))):
            return None
        if self.settings.get("strategy") == "custom":
            if k >= self._total:
                return self._beyond(k)
            renewals = self._typed
        else:
            renewals = list(range(first, k + 1, self._interval))
        if k not in renewals:
            return self._branch
        if self.settings.get("strategy") == "custom" and "/" in self.settings["full_evaluations"]:
            own = self._kinds.get(k, 0) if k else 0
            return own if own > self._branch else None
        return self._branches[1] if renewals.index(k) % len(self._branches) else None

    @property
    def _typed(self) -> list[int]:
        return sorted({0} | {one for one in self._kinds if one < self._total})

    @property
    def _kinds(self) -> dict[int, int]:
        """Typed evaluations, each with its branch; 0 for the whole UNet."""
        typed = (one.partition("/") for one in self.settings["full_evaluations"].split(","))
        return {int(k): int(branch or 0) for k, _, branch in typed}

    def _beyond(self, k: int) -> int | None:
        """Of more evaluations than were announced, full ones as far apart as what renews was on the mean."""
        start = self.settings["start"] * self._total
        known = {j for j in range(self._total) if j < math.ceil(round(start, 6))} | set(self._typed)
        return self._branch if (k - self._total) % math.ceil(self._total / len(known)) else None

    def _source(self, k: int) -> int:
        """The last evaluation before k that ran more than k does."""
        depth = [math.inf if branch is None else branch for branch in map(self._ran, range(k + 1))]
        return max(j for j in range(k) if depth[j] > depth[k])

    def forward(self, unet: Any, x: Any, timesteps: Any = None, context: Any = None, y: Any = None) -> torch.Tensor:
        """In place of a UNet class's forward."""
        control = self._residuals(x, timesteps, context, y)
        arguments = (unet, x, timesteps, context, y)
        never = self.settings.get("strategy", "uniform") == "uniform" and self._interval == 1
        if not self._inside or not self._covered or never:
            return walk(*arguments, control=control).output
        key = (self._nth, x.shape, context.shape)
        self._nth += 1
        units = self.control.control_params if self.control else []
        made_of = (id(unet), *(unit.guidance_stopped for unit in units))
        kept = self._kept.get(key, {})
        last = next(iter(kept.values()))[-1] if kept else None
        same = last is not None and last.made_of == made_of and torch.equal(last.context, context)
        branch = self._ran(self._index)
        if branch is not None and same and kept[branch][-1].index >= self._source(self._index):
            self.cached += 1
            shallower = [one for one in self._branches if one < branch]
            feature = self._feature(kept[branch])
            walked = walk(*arguments, control=control, branches=shallower, branch=branch, feature=feature)
        else:
            self.full += 1
            kept = self._kept[key] = kept if same else {}
            walked = walk(*arguments, control=control, branches=self._branches)
        for one, feature in walked.features.items():
            now = Kept(self._index, self._sigma, made_of, context, feature)
            kept[one] = [*kept.get(one, []), now][-3:]
        return walked.output

    def _feature(self, kept: list[Kept]) -> torch.Tensor:
        last = kept[-1]
        if self.settings["estimator"] == "copy" or len(kept) < 2:
            return last.feature
        span = math.log(last.sigma / kept[-2].sigma)
        if abs(span) < 1e-6:
            return last.feature
        r = min(max(math.log(self._sigma / last.sigma) / span, -1.0), 2.0)
        return last.feature + (r * self._trust(kept) if r > 0 else r) * (last.feature - kept[-2].feature)

    @staticmethod
    def _trust(kept: list[Kept]) -> torch.Tensor | float:
        """How far the same forecast of the last feature, made before it, would have been right."""
        if len(kept) < 3:
            return 0.5
        first, second, third = kept[-3:]
        span = math.log(second.sigma / first.sigma)
        r = min(max(math.log(third.sigma / second.sigma) / span, -1.0), 2.0) if abs(span) >= 1e-6 else 0.0
        if r <= 0:
            return 0.5
        step = r * (second.feature - first.feature)
        right = ((third.feature - second.feature) * step).sum((2, 3), keepdim=True)
        return (right / step.square().sum((2, 3), keepdim=True)).clamp(-1, 1)

    def _residuals(self, x: Any, timesteps: Any, context: Any, y: Any) -> Any:
        if self.control is None:
            return None
        controls: list[Any] = []
        for unit in self.control.control_params:
            if unit.guidance_stopped or unit.control_model is None:
                continue
            given = unit.control_model(x=x, hint=unit.hint, timesteps=timesteps, context=context, y=y)
            given = [unit.weight * residual for residual in given]
            controls = [a + b for a, b in zip(given, controls, strict=True)] if controls else given
        return Residuals(controls) if controls else None


@contextlib.contextmanager
def on(host: Any, naive: Naive) -> Iterator[None]:
    """For the time of a generation the host's UNets run the naive rule."""
    callbacks = host.module("script_callbacks")
    callbacks.on_cfg_denoiser(naive.begin_evaluation)
    callbacks.on_cfg_after_cfg(naive.end_evaluation)
    callbacks.on_model_loaded(naive.model_loaded)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                mock.patch.object(
                    type(host.unet), "forward", lambda self, *args, **kwargs: naive.forward(self, *args, **kwargs)
                )
            )
            yield
    finally:
        for callback in (naive.begin_evaluation, naive.end_evaluation, naive.model_loaded):
            callbacks.remove_callbacks_for_function(callback)
