"""Walks a recording's events: calls hooks and callbacks with the recorded arguments, and a real UNet.

Each pass has one latent that drifts slowly; the UNet gets the part of it that the recorded call held.
"""

from __future__ import annotations

import gc
import itertools
import math
from types import SimpleNamespace
from typing import Any

import torch

from . import fakehost
from .caller import Caller, noticed
from .forms import shape
from .judge import Judge, Key
from .models import Models, set_forward, strength
from .placement import Layout, Placed, lay_out
from .recording import CLASS_FORWARD, Event, Generation, in_timesteps, noise
from .reference import noise_level
from .watch import Interrupted, Provoked

BEGINNINGS = ("process_batch", "before_hr", "process_before_every_sampling")
"""Hooks after which the next evaluation is the first of a pass."""

ENDS = ("post_sample", "postprocess_batch", "postprocess")
"""Hooks that end it."""


class Player(Caller):
    """Plays generations one after another: what a host of A1111's kind calls, in the recorded order."""

    def __init__(
        self,
        host: fakehost.Host,
        models: Models,
        judge: Judge,
        args: tuple[Any, ...],
        *,
        keep_p: bool = False,
        left_out: set[Key] | None = None,
    ) -> None:
        super().__init__(host, models, judge, left_out)
        self.args, self.keep_p = args, keep_p
        self.p: Any = None
        self._leaked: Any = None
        self._params: Any = None
        self._layout: Layout | None = None
        self._latent: torch.Tensor | None = None

    def play(self, generation: Generation) -> None:
        """One generation. A recorded exception ends it, unless more was recorded after it.

        Raises `LetThrough`.
        """
        self._generation, events = generation, generation.events
        self._number, self._pass = -1, -1
        self._nth = 0
        self._start_model(generation)
        self.host.new_job()
        self.p = None
        self._end_pass()
        try:
            for place, event in enumerate(events):
                try:
                    self._event(event, events[place + 1 :])
                except (Provoked, Interrupted):
                    if self._goes_on(events[place + 1 :]):
                        if self._inside and (generation.key, self._number) not in self.left_out:
                            self.judge.raised()
                        continue
                    self._end_pass()
                    self._leaked = self.p if self.keep_p else None
                    self.p = None
                    gc.collect()
                    self.judge.crashed()
                    break
        finally:
            self._stop_watching()
        if self.p is not None:
            self.judge.generation_ends(self.p)
            self.p = self._leaked = self._params = None

    def _goes_on(self, rest: list[Event]) -> bool:
        """Whether the host goes on after an exception: then more of its generation is recorded."""
        return any(event["ev"] in ("hook", "callback", "unet") for event in rest)

    @property
    def _inside(self) -> bool:
        """Whether a call would belong to an evaluation."""
        return self._layout is not None

    # Events -----------------------------------------------------------------------------

    def _event(self, event: Event, rest: list[Event]) -> None:
        kind = event["ev"]
        if kind == "hook":
            self._hook(event, rest)
        elif kind == "callback":
            self._callback(event, rest)
        elif kind == "unet":
            self._call(event, rest)

    def _hook(self, event: Event, rest: list[Event]) -> None:
        self._meet(event["p"])
        name = event["name"]
        self._before_hook(name, rest)
        before = [SimpleNamespace(kind=given) for given in event["args"][:-2]]
        keywords = {key: _stand_for(value) for key, value in event["kw"].items()}
        with noticed(f"the hook {name}"):
            self.host.hook(name, self.p, before, self.args, keywords)
        self._after_hook(name)

    def _meet(self, recorded: dict[str, Any]) -> None:
        if self.p is None:
            self.p = fakehost.processing(self.host, recorded.get("class", "StableDiffusionProcessing"))
        self.p.update(recorded)

    def _before_hook(self, name: str, rest: list[Event]) -> None:
        if name == "before_process" and self._pass >= 0:  # a generation within this one
            self._end_pass()
            self.judge.forgets()
        if name in BEGINNINGS:
            self._end_pass()
            self._ready = True
        self._prepare(name, rest)

    def _prepare(self, name: str, rest: list[Event]) -> None:
        """What the host does before a hook."""
        if name == "process":
            self._forward(next((later for later in rest if later["ev"] == "unet"), None))
        if name == "postprocess_batch":
            if not self._sampling:
                self.judge.batch_ends(self.p)
            if self._is_foreign:
                set_forward(self.models.unet, CLASS_FORWARD, lambda: self._control)

    def _after_hook(self, name: str) -> None:
        if name == "postprocess_batch" and self._sampling:  # no hook came before it to end the pass
            self.judge.batch_ends(self.p)
        if name in ENDS:
            self._end_pass()

    def _end_pass(self) -> None:
        self._ready = self._sampling = False
        self._params = self._layout = self._latent = None

    def _callback(self, event: Event, rest: list[Event]) -> None:
        name = event["name"]
        if name == "cfg_denoiser":
            self._begin_evaluation(event, rest)
            return
        given: Any = SimpleNamespace(**event)
        if name == "model_loaded":
            if event["id"] in self._kinds:  # else no call will tell of what kind it is
                self._use_numbers(event["id"], event["weights"])
            given = self.host.shared.sd_model
        self._call_back(name, given)
        if name == "cfg_after_cfg":
            self._params = None

    def _call_back(self, name: str, *args: Any) -> None:
        with noticed(f"the callback {name}"):
            self.host.call_back(name, *args)

    # Evaluations -----------------------------------------------------------------------------

    def _begin_evaluation(self, event: Event, rest: list[Event]) -> None:
        self._nth = 0
        if not (self._ready or self._sampling):
            self._begin_foreign(event)
            return
        hires = event.get("denoiser_p_is_hr_pass")
        self.p.is_hr_pass = self.p.is_hr_pass if hires is None else hires
        if self._ready:
            self._begin_pass()
        self._index += 1
        layout = self._layout = self._lay_out(event, _calls_of(rest))
        if None in layout.calls:
            self._cannot("unet.x")
        sigma, timesteps = event["sigma"][0], in_timesteps(event)
        if noise_level(sigma, timesteps) is None:
            self._cannot("cfg_denoiser.sigma")
        # Unscaled, as the sampler holds it: of variance sigma^2 + 1, which the call's factor takes back.
        self._scale = 1.0 if timesteps else 1 / math.sqrt(sigma**2 + 1)
        latent = self._drift(layout.images, event["x"][1], layout.size)
        x = latent[[row.image for row in layout.rows]] / self._scale
        self._progress = event["denoiser_step"] / max(1, event["denoiser_total_steps"])
        self._params = fakehost.CFGDenoiserParams(x, event, self._denoiser(event, self.p))
        self.judge.evaluation_begins(event)
        self._call_back("cfg_denoiser", self._params)

    def _begin_pass(self) -> None:
        self._ready, self._sampling = False, True
        self._pass += 1
        self._index = -1
        self.p.sampler = None
        self.judge.pass_begins(self._generation.sampler(self.p.is_hr_pass), self.p.is_hr_pass)

    def _begin_foreign(self, event: Event) -> None:
        """An evaluation of a `p` of which no hook told, as of an extension's generation in between."""
        self._params = self._layout = None
        p = fakehost.processing(self.host, "StableDiffusionProcessing")
        x = noise("foreign", *event["x"])
        self._call_back("cfg_denoiser", fakehost.CFGDenoiserParams(x, event, self._denoiser(event, p)))

    def _lay_out(self, event: Event, calls: list[Event]) -> Layout:
        return lay_out(event, calls, self._index)

    def _denoiser(self, event: Event, p: fakehost.Processing) -> Any:
        made = p.sampler
        if made is None or type(made.model_wrap_cfg).__name__ != event["denoiser_class"]:
            name = self._generation.sampler(p.is_hr_pass)
            made = p.sampler = fakehost.sampler(p, name, event["denoiser_class"])
        denoiser = made.model_wrap_cfg
        denoiser.step, denoiser.total_steps = event["denoiser_step"], event["denoiser_total_steps"]
        return denoiser

    def _drift(self, images: int, channels: int, size: tuple[int, int]) -> torch.Tensor:
        key = (self._generation.key, self._pass, images, channels, size)
        fresh = noise(("latent", key, self._index), images, channels, *size)
        last = self._latent
        self._latent = last * 0.95 + 0.1 * fresh if last is not None and last.shape == fresh.shape else fresh
        return self._latent

    # Calls -----------------------------------------------------------------------------

    def _call(self, event: Event, rest: list[Event]) -> None:
        self._use_numbers(event["id"], event["weights"])
        self._forward(event)
        self._number += 1
        inside, placed = self._inside, self._place(event)
        self._nth += 1
        labels = [piece.label.prompt for piece in placed.pieces] if placed else ["cond 0"] * event["x"][0]
        versions = [self._version(label) for label in labels]
        given = self._given(event, placed, list(zip(labels, versions, strict=True)))
        self._control = strength(event["t"][0], self._generation.request, self._progress if inside else 0.0)
        self._control.inner = _walks_inside(rest)
        if self._control.inner and not self._is_foreign:
            self._cannot("unet_inner_forward")
        key = (self._generation.key, self._number)
        output = self._output(key, event, given)
        if output is not None:
            # Where nothing says which part it held, no other call held the same.
            part = placed.part if placed else ("unknown", key)
            self._tell(key, given, part if inside else None, tuple(versions), output)

    def _place(self, event: Event) -> Placed | None:
        """Which part of the latent this call holds, where that can be told."""
        if self._layout is None or self._params is None or event["x"][1] < self._params.x.shape[1]:
            return None
        return self._layout.calls[self._nth] if self._nth < len(self._layout.calls) else None

    def _given(self, event: Event, placed: Placed | None, asked: list[tuple[str, int]]) -> dict[str, Any]:
        """The call's arguments. `asked`: the prompt of each row, and which version of it."""
        outside = ("outside", self._number)
        x = _part(self._params.x * self._scale, placed, event["x"][1]) if placed else noise(outside, *event["x"])
        given: dict[str, Any] = {"x": x, "timesteps": torch.tensor(event["t"])}
        for name in ("context", "y"):
            shape = event.get(name)
            if shape and shape[0] != len(asked):
                self._cannot(f"unet.{name}")
            rows = [noise((name, label, version, shape[1:]), *shape[1:]) for label, version in asked] if shape else []
            given[name] = torch.stack(rows) if rows else None
        return given

    def _version(self, prompt: str) -> int:
        if self._params is None:
            return 0
        denoiser = self._params.denoiser
        return self._generation.prompt_version(prompt == "uncond", denoiser.step, denoiser.total_steps)


def _calls_of(rest: list[Event]) -> list[Event]:
    """The calls of the evaluation that was just announced."""
    calls = []
    for later in rest:
        if later["ev"] == "unet":
            calls.append(later)
        elif later.get("name") in (*BEGINNINGS, *ENDS, "cfg_denoiser", "cfg_after_cfg"):
            break
    return calls


def _part(x: torch.Tensor, placed: Placed, channels: int) -> torch.Tensor:
    """A call's rows and crops of x, with so many channels."""
    high, wide = placed.size
    rows = [x[q.row, :, q.top : q.top + high, q.left : q.left + wide] for q in placed.pieces]
    whole = torch.stack(rows)
    missing = channels - whole.shape[1]
    if missing > 0:  # an inpainting model's mask and masked image
        more = noise("image conditioning", missing, high, wide)
        whole = torch.cat([whole, more.expand(len(rows), -1, -1, -1)], 1)
    return whole


def _walks_inside(rest: list[Event]) -> list[dict[str, torch.Tensor]]:
    """What the class's forward gets where another one runs it inside the call."""
    inner = []
    for later in itertools.takewhile(lambda event: event["ev"] == "unet_inner_forward", rest):
        still, moving = noise("reference", *later["x"]), noise(("reference", later["t"]), *later["x"])
        context = noise(("reference context", later["context"]), *later["context"])
        inner.append({"x": still + 0.1 * moving, "timesteps": torch.tensor(later["t"]), "context": context})
    return inner


def _stand_for(value: Any) -> Any:
    """Something of the recorded shape, for a hook's keyword."""
    return torch.zeros(value) if isinstance(value, list) and value and shape(len(value))(value) else value
