"""SD.Next's recordings: one pipeline after another on a real diffusers UNet, no callback for an evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import diffusers
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from tests import diffusers_unets

from . import fakehost
from .models import Kind, Models
from .player import ENDS, Player
from .recording import Event, Generation, noise
from .reference import Answer, noise_level

OFFLOADED = "UNet2DConditionModel.forward"
"""The instance's `forward` where accelerate has put its hook."""


class UNet(diffusers.UNet2DConditionModel):
    """diffusers' own, with its layers counted as the judge counts blocks."""

    @property
    def input_blocks(self) -> list[nn.Module]:
        """What gives a skip connection, in order."""
        found = [self.conv_in]
        for block in self.down_blocks:
            found += [*block.resnets, *(block.downsamplers or ())]
        return found

    @property
    def output_blocks(self) -> list[nn.Module]:
        """What takes one, in order."""
        return [layer for block in self.up_blocks for layer in block.resnets]


class SDNextHost(fakehost.Host):
    """Its model is a pipeline; `modules.scripts` holds the Control tab's list, `sd_models_compile` its own cache."""

    packages = ()  # `sd_models_compile` tells it
    unknown_callbacks = ()

    def __init__(self) -> None:
        super().__init__()
        self.control_extensions: list[str] = ["NudeNet"]
        self.compile = ModuleType("modules.sd_models_compile")
        self.compile.deepcache_worker = None  # type: ignore[attr-defined]
        self.shared.sd_refiner = None

    def modules(self) -> Iterable[ModuleType]:
        return [self.compile]

    def load_model(self, unet: nn.Module) -> None:
        self.shared.sd_model = SimpleNamespace(unet=unet, scheduler=None)


class SDNextModels(Models):
    def __init__(self) -> None:
        super().__init__(make)


def make(kind: Kind, seed: int) -> nn.Module:
    options = diffusers_unets.SDXL if kind.vector else diffusers_unets.SD
    changes: dict[str, Any] = {"cross_attention_dim": kind.context, "in_channels": kind.channels}
    if kind.vector:
        times = kind.ids * diffusers_unets.SDXL["addition_time_embed_dim"]
        changes["projection_class_embeddings_input_dim"] = kind.vector + times
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet(**{**options, **changes})
        for parameter in unet.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return unet.eval().requires_grad_(False)


class SDNextPlayer(Player):
    """The host goes on after an exception or an interrupt; each pass has a pipeline and a list of timesteps."""

    host: SDNextHost

    order = ("sample", "timestep", "encoder_hidden_states")
    constants: ClassVar[dict[str, Any]] = {"timestep_cond": None, "cross_attention_kwargs": None, "return_dict": False}

    def play(self, generation: Generation) -> None:
        super().play(generation)
        if self.host.has_model:  # what the last pass left with its pipeline
            self.host.load_model(self.models.unet)
        self._scheduler = self._scheduled = self._latent = None

    @staticmethod
    def _kind_of(call: Event) -> Kind:
        added = call.get("y") or {"text_embeds": [0], "time_ids": [6]}
        return Kind(call["x"][1], call["context"][-1], added["text_embeds"][-1], added["time_ids"][-1])

    def _goes_on(self, rest: list[Event]) -> bool:
        return True

    @property
    def _inside(self) -> bool:
        return self._where is not None

    @property
    def _is_foreign(self) -> bool:
        return False  # accelerate's runs the class's own

    def _prepare(self, name: str, rest: list[Event]) -> None:
        if name == "process_images":  # the host puts its offloading up after `process_batch`
            first = next((later for later in rest if later["ev"] == "unet"), {})
            if first.get("instance_forward") is not None:
                remove_hook_from_module(self.models.unet, recurse=True)
                add_hook_to_module(self.models.unet, ModelHook())
                if first["instance_forward"] != OFFLOADED:
                    self._cannot("unet.instance_forward")

    def _after_hook(self, name: str) -> None:
        if name == "postprocess_batch":
            self.judge.batch_ends(self.p)
        if name in ENDS:
            self._end_pass()

    def _end_pass(self) -> None:
        super()._end_pass()
        self._where: object = None

    def _callback(self, event: Event, rest: list[Event]) -> None:
        name = event["name"]
        if name in ("before_process", "after_process"):
            self._meet({"class": event["args"][0]})
            self._call_back(name, self.p)
        elif name == "model_loaded":
            super()._callback(event, rest)
        if name == "after_process":
            self._end_pass()
            if "_hf_hook" in self.models.unet.__dict__:
                remove_hook_from_module(self.models.unet, recurse=True)

    # Calls -----------------------------------------------------------------------------

    def _call(self, event: Event, rest: list[Event]) -> None:
        self._meet(event["p"])
        self._number += 1
        if not self._is_ours(event):
            self._cannot("unet.id")
            return
        self._use_numbers(event["id"], event["weights"])
        rows, channels, *size = event["x"]
        if self._ready:
            where = _where(event, self.p)
            if where != self._where:
                self._where = where
                self._pipeline(event, rest)
            self._index += 1
            self._scheduler.step_index = self._index + self._first
            latent = self._drift(getattr(self.p, "batch_size", None) or 1, channels, (size[0], size[1]))
            sample, t = latent[[row % len(latent) for row in range(rows)]], self._scheduled[self._index]
        else:
            sample, t = noise(("outside", self._number), *event["x"]), torch.tensor(event["t"][0])
        context, added = event["context"], event.get("y")
        given: dict[str, Any] = {
            "sample": sample,
            "timestep": t,
            "encoder_hidden_states": noise(("context", context), *context),
            "added_cond_kwargs": added and {name: noise((name, shape), *shape) for name, shape in added.items()},
        }
        key = (self._generation.key, self._number)
        if self._ready and key not in self.left_out:
            levels = self._levels[self._first + self._index :]
            total, sigma = len(self._scheduled) - self._index, levels[:1] or [0.0]
            told = {"denoiser_class": "", "sigma": sigma, "denoiser_total_steps": total, "levels": levels}
            self.judge.evaluation_begins(told)
        output = self._output(key, event, given)
        if output is not None:
            part = ("rows", rows, "return_dict" in event["kwargs"]) if self._ready else None
            self._tell(key, given, part, (), output)

    def _run(self, event: Event, given: dict[str, Any]) -> torch.Tensor:
        return super()._run(event, given)[0]

    def _pipeline(self, event: Event, rest: list[Event]) -> None:
        """Another pipeline object on the same UNet; its list of timesteps holds the recorded ones at its end."""
        times = [event["t"][0], *(later["t"][0] for later in self._same_pass(event, rest))]
        missing = max(0, event["num_timesteps"] - len(times))  # an interrupt or an exception came before them
        times += [times[-1] * (1 - (k + 1) / (missing + 1)) for k in range(missing)]
        self._first = max(0, event["scheduler_timesteps"] - len(times))
        if self._first + len(times) > event["scheduler_timesteps"]:
            self._cannot("unet.scheduler_timesteps")
        times = [*([999.0] * self._first), *times]
        timesteps = torch.tensor(times)
        self._levels = levels_of(event["scheduler"], times)
        given: dict[str, Any] = {"timesteps": timesteps, "step_index": None, "config": SimpleNamespace()}
        if self._levels:
            given["sigmas"] = torch.tensor([*self._levels, 0.0], dtype=torch.float64)
        else:
            self._cannot("unet.t")
        self._scheduler = type(event["scheduler"], (SimpleNamespace,), {})(**given)
        self._scheduled = list(timesteps[self._first :])
        model = SimpleNamespace(unet=self.models.unet, scheduler=self._scheduler)
        self.host.shared.sd_model = type(event["pipe"], (SimpleNamespace,), {})(**vars(model))
        self._pass += 1
        self._index, self._latent = -1, None
        self.judge.pass_begins(event["scheduler"], bool(self.p.is_hr_pass))

    def _is_ours(self, call: Event) -> bool:
        """Whether it is the model's own; not a refiner's or a detailer's, of which the pipeline here knows nothing."""
        return call["id"] == self.models.current and not call["p"].get("is_refiner_pass")

    def _same_pass(self, event: Event, rest: list[Event]) -> list[Event]:
        """The calls that follow in the same pass."""
        until = itertools.takewhile(lambda one: one["ev"] != "hook" and one.get("name") != "model_loaded", rest)
        calls = [later for later in until if later["ev"] == "unet" and self._is_ours(later)]
        here = _where(event, self.p)
        return list(itertools.takewhile(lambda call: _where(call, self.p) == here, calls))


def _where(call: Event, p: fakehost.Processing) -> object:
    """The pass of a call: its pipeline and whether it is the hires one; `p` tells what the call does not."""
    return call["pipe"], bool(call["p"].get("is_hr_pass", p.is_hr_pass))


def levels_of(scheduler: str, times: Sequence[float]) -> list[float]:
    """The noise level of each timestep, as k-diffusion counts it; empty where one is beyond the schedule.

    SD.Next's Runge-Kutta schedulers make their timesteps of 1000 times the level.
    """
    if scheduler.startswith("RungeKutta"):
        return [time / 1000 for time in times]
    levels = [noise_level(time, True) for time in times]
    return [level for level in levels if level is not None] if None not in levels else []


def answer(
    unet: Any,
    arguments: dict[str, Any],
    *,
    control: Any,
    branches: Iterable[int] = (),
    branch: int = -1,
    features: Sequence[torch.Tensor] | None = None,
) -> Answer:
    """A call in full, or the outer layers of `branch` alone on a feature."""
    assert control is None
    kept: dict[int, torch.Tensor] = {}
    if features is not None:
        output, _ = diffusers_unets.by_hand(unet, branch, features[0], features=kept, **arguments)
    else:
        output, _ = diffusers_unets.by_hand(unet, max(branches), features=kept, **arguments)
    return Answer(output, [{one: kept[one] for one in branches if one in kept}])
