"""Walks a recording's events: calls hooks and callbacks with the recorded arguments, and a real U-Net.

Each pass has one latent that drifts slowly; the U-Net gets the part of it that the recorded call held.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn

from . import fakehost
from .models import Control, Kind, Models, forward_name, set_forward, strength
from .placement import Layout, lay_out
from .recording import CLASS_FORWARD, Event, Generation, noise


class Provoked(RuntimeError):
    """The recorded exception in the U-Net."""


class Interrupted(KeyboardInterrupt):
    """The same, of the kind that no `except Exception` sees."""


@dataclass(frozen=True)
class Made:
    """One call that was made: everything that a judge needs to say what it should have given.

    `key`: the generation's, and the call's number in it. `part`: which rows and crops it held, or None for a
    call outside any evaluation. `ran`: the blocks that ran, in order: input blocks "0", "1" ..., the middle
    block "m", output blocks "-12" ... "-1".
    """

    key: tuple[str, int]
    part: object
    conditioning: object
    weights: object
    forward: str
    arguments: dict[str, Any]
    control: Control | None
    unet: nn.Module
    output: torch.Tensor
    ran: list[str]


class Judge(Protocol):
    """Is told what happens, and may look at it."""

    def pass_begins(self, sampler: str, hires: bool) -> None: ...
    def evaluation_begins(self, announced: Event) -> None: ...
    def called(self, made: Made) -> None: ...
    def batch_ends(self, p: fakehost.Processing) -> None: ...
    def generation_ends(self, p: fakehost.Processing) -> None: ...
    def raised(self) -> None: ...
    def crashed(self) -> None: ...


@dataclass
class BlockWatch:
    """Sees which blocks of a U-Net run, through torch's own hooks, and can raise the recorded exception."""

    unet: nn.Module
    ran: list[str] = field(default_factory=list)
    fail: bool = False
    handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        unet: Any = self.unet
        named = [(str(i), block) for i, block in enumerate(unet.input_blocks)]
        named += [("m", unet.middle_block), ("out", unet.out)]
        named += [(f"-{len(unet.output_blocks) - i}", block) for i, block in enumerate(unet.output_blocks)]
        for name, block in named:
            # Some forwards do not call a block but go through its layers.
            called: Any = block if getattr(unet, "called", True) or name == "out" else block[0]
            self.handles.append(called.register_forward_pre_hook(self._sees(name)))

    def _sees(self, name: str) -> Callable[..., None]:
        def see(_block: nn.Module, _args: Any) -> None:
            # The recorded one came from the middle block; a cached call does not run it, and fails later.
            if self.fail and name in ("m", "out"):
                self.fail = False
                raise Provoked("provoked")
            if name != "out":
                self.ran.append(name)

        return see

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class Player:
    """Plays generations one after another on the same models; `judge` is told of everything."""

    def __init__(
        self,
        host: fakehost.Host,
        models: Models,
        judge: Judge,
        args: tuple[Any, ...],
        *,
        keep_p: bool = False,
    ) -> None:
        self.host, self.models, self.judge, self.args = host, models, judge, args
        self.keep_p = keep_p
        self.p: Any = None
        self._leaked: Any = None
        self._params: Any = None
        self._layout: Layout | None = None
        self._control = Control()
        self._watch: BlockWatch | None = None
        self._number = -1

    def play(self, generation: Generation) -> None:
        """One generation. A recorded exception ends it as it ended in the host: nothing more is called."""
        self._generation, events = generation, generation.events
        self._number, self._pass, self._hires_seen = -1, -1, False
        self._nth = 0
        self._start_model(generation)
        self.host.new_job()
        self.p = self._params = self._layout = None
        try:
            for place, event in enumerate(events):
                self._event(event, events[place + 1 :])
        except (Provoked, Interrupted):
            self._crashed(events[place + 1 :])
            self._params = self._layout = None
            self._leaked = self.p if self.keep_p else None
            self.p = None
            gc.collect()
            self.judge.crashed()
        finally:
            if self._watch is not None:
                self._watch.remove()
                self._watch = None
        if self.p is not None:
            self.judge.generation_ends(self.p)
            self.p = self._leaked = self._params = None

    def _start_model(self, generation: Generation) -> None:
        """The model that is there when the generation begins."""
        calls = generation.calls()
        if calls:
            self._use(calls[0])

    def _crashed(self, rest: list[Event]) -> None:
        """After a recorded exception nothing more was recorded of its generation."""
        named = [event["ev"] for event in rest]
        assert not {"hook", "callback", "unet"} & set(named), f"recorded after the exception: {named}"

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
        if self.p is None:
            self.p = fakehost.processing(self.host, event["p"]["class"])
        self.p.update(event["p"])
        name = event["name"]
        if name == "process":
            self._forward(next((later for later in rest if later["ev"] == "unet"), None))
        if name == "process_before_every_sampling":
            self._begin_pass(rest)
        if name == "postprocess_batch":
            self.judge.batch_ends(self.p)
            if forward_name(self.models.unet) == "foreign":
                set_forward(self.models.unet, CLASS_FORWARD, lambda: self._control)
        before = [SimpleNamespace(kind=given) for given in event["args"][:-2]]
        keywords = {key: _stand_for(value) for key, value in event["kw"].items()}
        self.host.hook(name, self.p, before, self.args, keywords)

    def _callback(self, event: Event, rest: list[Event]) -> None:
        name = event["name"]
        if name == "model_loaded":
            self._use_numbers(event["id"], event["weights"])
            self.host.call_back(name, self.host.shared.sd_model)
        elif name == "cfg_denoiser":
            self._begin_evaluation(event, rest)
        else:
            self.host.call_back(name, SimpleNamespace(**event))
        if name == "cfg_after_cfg":
            self._params = None

    def _begin_pass(self, rest: list[Event]) -> None:
        first = next((event for event in rest if event.get("name") == "cfg_denoiser"), None)
        name = self._generation.sampler(self.p.is_hr_pass)
        self._pass += 1
        self._index = -1
        denoiser = first["denoiser_class"] if first else "CFGDenoiserKDiffusion"
        self.p.sampler = fakehost.sampler(self.p, name, denoiser)
        self._latent: torch.Tensor | None = None
        self.judge.pass_begins(name, self.p.is_hr_pass)

    def _begin_evaluation(self, event: Event, rest: list[Event]) -> None:
        self._index += 1
        self._nth = 0
        calls = []
        for later in rest:
            if later["ev"] == "unet":
                calls.append(later)
            elif later["ev"] == "hook" or later.get("name") in ("cfg_denoiser", "cfg_after_cfg"):
                break
        layout = self._layout = self._lay_out(event, calls)
        sigma = event["sigma"][0]
        # Unscaled, as the sampler holds it: of variance sigma^2 + 1, which the call's factor takes back.
        self._scale = 1.0 if self._in_timesteps(event) else 1 / (sigma**2 + 1) ** 0.5
        self._drift(layout.images, event["x"][1], layout.size)
        assert self._latent is not None
        x = self._latent[[row.image for row in layout.rows]] / self._scale
        denoiser = self._denoiser()
        denoiser.step, denoiser.total_steps = event["denoiser_step"], event["denoiser_total_steps"]
        self.p.is_hr_pass = event.get("denoiser_p_is_hr_pass", self.p.is_hr_pass)
        self._progress = event["denoiser_step"] / max(1, event["denoiser_total_steps"])
        self._params = fakehost.CFGDenoiserParams(x, event, denoiser)
        self.judge.evaluation_begins(event)
        self.host.call_back("cfg_denoiser", self._params)

    def _lay_out(self, event: Event, calls: list[Event]) -> Layout:
        return lay_out(event, calls, self._index)

    def _denoiser(self) -> Any:
        return self.p.sampler.model_wrap_cfg

    @staticmethod
    def _in_timesteps(event: Event) -> bool:
        return event["denoiser_class"] == "CFGDenoiserTimesteps"

    def _drift(self, images: int, channels: int, size: tuple[int, int]) -> None:
        key = (self._generation.key, self._pass, images, channels, size)
        fresh = noise(("latent", key, self._index), images, channels, *size)
        self._latent = fresh if self._latent is None else self._latent * 0.95 + 0.1 * fresh

    # Calls -----------------------------------------------------------------------------

    def _call(self, event: Event, rest: list[Event]) -> None:
        self._use(event)
        self._forward(event)
        self._number += 1
        inside = self._params is not None and self._layout is not None
        placed = self._layout.calls[self._nth] if inside and self._layout is not None else None
        self._nth += 1
        labels = [piece.label.prompt for piece in placed.pieces] if placed else ["cond 0"] * event["x"][0]
        versions = [self._version(label) for label in labels]
        given: dict[str, Any] = {"x": self._x(event, placed), "timesteps": torch.tensor(event["t"])}
        for name in ("context", "y"):
            shape = event.get(name)
            given[name] = (
                None
                if not shape
                else torch.stack(
                    [
                        noise((name, label, version, shape[1:]), *shape[1:])
                        for label, version in zip(labels, versions, strict=True)
                    ]
                )
            )
        foreign = forward_name(self.models.unet) == "foreign"
        self._control = strength(event["t"][0], self._generation.request, self._progress if inside else 0.0)
        for later in rest:
            if later["ev"] != "unet_inner_forward":
                break
            still, moving = noise("reference", *later["x"]), noise(("reference", later["t"]), *later["x"])
            self._control.inner.append(
                {
                    "x": still + 0.1 * moving,
                    "timesteps": torch.tensor(later["t"]),
                    "context": noise(("reference context", later["context"]), *later["context"]),
                }
            )
        watch = self._watching()
        watch.ran.clear()
        watch.fail = "error" in event
        output = self._run(event, given)
        assert "error" not in event, "the exception was swallowed"
        self.judge.called(
            Made(
                key=(self._generation.key, self._number),
                part=placed.part if placed else None,
                conditioning=(tuple(versions), event["context"]),
                weights=self.models.version,
                forward="foreign" if foreign else "own",
                arguments=given,
                control=self._control if foreign else None,
                unet=self.models.unet,
                output=output,
                ran=list(watch.ran),
            )
        )

    def _run(self, event: Event, given: dict[str, Any]) -> torch.Tensor:
        """The call, with as many positional arguments as recorded."""
        order = ["x", "timesteps", "context", "y"]
        positional = [given[name] for name in order[: event["nargs"]]]
        return self.models.unet(*positional, **{name: given[name] for name in event["kwargs"]})

    def _x(self, event: Event, placed: Any) -> torch.Tensor:
        if placed is None:
            return noise(("outside", self._number), *event["x"])
        high, wide = placed.size
        x = self._params.x * self._scale
        rows = [x[q.row, :, q.top : q.top + high, q.left : q.left + wide] for q in placed.pieces]
        whole = torch.stack(rows)
        missing = event["x"][1] - whole.shape[1]
        if missing > 0:  # an inpainting model's mask and masked image
            more = noise("image conditioning", missing, high, wide)
            whole = torch.cat([whole, more.expand(len(rows), -1, -1, -1)], 1)
        return whole

    def _version(self, prompt: str) -> int:
        if self._params is None:
            return 0
        denoiser = self._params.denoiser
        return self._generation.prompt_version(prompt == "uncond", denoiser.step, denoiser.total_steps)

    # The model -----------------------------------------------------------------------------

    def _use(self, call: Event) -> None:
        self._kind = Kind.of(call)
        self._use_numbers(call["id"], call["weights"])

    def _use_numbers(self, unet: int, weights: int) -> None:
        before = self.models.current
        self.models.use(self._kind, unet, weights)
        if not self.host.has_model or before != unet:
            self.host.load_model(self.models.unet)

    def _forward(self, call: Event | None) -> None:
        recorded = call.get("instance_forward") if call else None
        set_forward(self.models.unet, recorded, lambda: self._control)

    def _watching(self) -> BlockWatch:
        if self._watch is None or self._watch.unet is not self.models.unet:
            if self._watch is not None:
                self._watch.remove()
            self._watch = BlockWatch(self.models.unet)
        return self._watch


def finished(generation: Generation) -> Generation:
    """A generation whose end was not recorded, with the hooks that the host calls at the end.

    An evaluation of which no call was recorded is left out.
    """
    events = list(generation.events)
    while events and events[-1]["ev"] == "callback":
        name = events.pop()["name"]
        if name == "cfg_after_cfg":
            events.append(generation.events[len(events)])
            break
    last = [event for event in generation.events if event["ev"] == "hook"][-1]
    names = {"post_sample": ["PostSampleArgs"], "postprocess_batch": [], "postprocess": ["Processed"]}
    end = [{**last, "name": name, "args": [*given, "bool", "int"], "kw": {}} for name, given in names.items()]
    return Generation(generation.key, generation.request, [*events, *end])


def _stand_for(value: Any) -> Any:
    """Something of the recorded shape, for a hook's keyword."""
    if isinstance(value, list) and value and all(isinstance(size, int) for size in value):
        return torch.zeros(value)
    return value
