"""SD.Next's recordings: one pipeline after another on a real diffusers UNet, no callback for an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from tests import diffusers_unets

from . import fakehost
from .models import Kind, Models
from .player import BlockWatch, Made, Player, Provoked, _stand_for
from .recording import Event, Generation, noise
from .reference import Answer, noise_level


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
        times = 6 * diffusers_unets.SDXL["addition_time_embed_dim"]
        changes["projection_class_embeddings_input_dim"] = kind.vector + times
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet(**{**options, **changes})
        for parameter in unet.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return unet.eval().requires_grad_(False)


def kind_of(call: Event) -> Kind:
    vector = call["y"]["text_embeds"][-1] if call["y"] else 0
    return Kind(call["x"][1], call["context"][-1], vector)


class LayerWatch(BlockWatch):
    """Sees which layers run; the recorded exception came from the middle block."""

    def __post_init__(self) -> None:
        unet: Any = self.unet
        named = [(str(i), layer) for i, layer in enumerate(unet.input_blocks)]
        named += [("m", unet.mid_block), ("out", unet.conv_out)]
        count = len(unet.output_blocks)
        named += [(f"-{count - i}", layer) for i, layer in enumerate(unet.output_blocks)]
        for name, layer in named:
            self.handles.append(layer.register_forward_pre_hook(self._sees(name)))


class SDNextPlayer(Player):
    """The host goes on after an exception or an interrupt; each pass has a pipeline and a list of timesteps."""

    host: SDNextHost

    def play(self, generation: Generation) -> None:
        self._started = False
        super().play(generation)
        if self.host.has_model:  # what the last pass left with its pipeline
            self.host.load_model(self.models.unet)
        self._scheduler = self._scheduled = self._latent = None

    def _start_model(self, generation: Generation) -> None:
        calls = generation.calls()
        if calls:
            self._kind = kind_of(calls[0])
            self._use_numbers(calls[0]["id"], calls[0]["weights"])

    def _hook(self, event: Event, rest: list[Event]) -> None:
        if self.p is None:
            self.p = fakehost.processing(self.host, event["p"]["class"])
        self.p.update(event["p"])
        name = event["name"]
        if name == "process_batch":
            self._started = False
        if name == "process_images":  # the host puts its offloading up after `process_batch`
            first = next((later for later in rest if later["ev"] == "unet"), {})
            if "instance_forward" in first:
                remove_hook_from_module(self.models.unet, recurse=True)
                add_hook_to_module(self.models.unet, ModelHook())
        before = [SimpleNamespace(kind=given) for given in event["args"][:-2]]
        keywords = {key: _stand_for(value) for key, value in event["kw"].items()}
        self.host.hook(name, self.p, before, self.args, keywords)
        if name == "postprocess_batch":
            self.judge.batch_ends(self.p)

    def _callback(self, event: Event, rest: list[Event]) -> None:
        name = event["name"]
        if name in ("before_process", "after_process"):
            if self.p is None:
                self.p = fakehost.processing(self.host, event["args"][0])
            self.host.call_back(name, self.p)
        elif name == "model_loaded":
            self.host.call_back(name, self.host.shared.sd_model)
        if name == "after_process" and "_hf_hook" in self.models.unet.__dict__:
            remove_hook_from_module(self.models.unet, recurse=True)

    # Calls -----------------------------------------------------------------------------

    def _call(self, event: Event, rest: list[Event]) -> None:
        self.p.update(event["p"])
        here = bool(event["p"]["is_hr_pass"])
        if not self._started or here != self._hires_seen:
            self._started, self._hires_seen = True, here
            self._pipeline(event, rest)
        self._number += 1
        self._index += 1
        t = self._scheduled[self._index]
        self._scheduler.step_index = self._index + self._first
        rows, channels, *size = event["x"]
        self._drift(self.p.batch_size, channels, (size[0], size[1]))
        assert self._latent is not None
        given: dict[str, Any] = {
            "sample": torch.cat([self._latent] * (rows // len(self._latent))),
            "timestep": t,
            "encoder_hidden_states": noise(("context", event["context"]), *event["context"]),
            "added_cond_kwargs": {name: noise((name, shape), *shape) for name, shape in event["y"].items()}
            if event["y"]
            else None,
        }
        self.judge.evaluation_begins({"denoiser_class": "CFGDenoiserTimesteps", "sigma": event["t"]})
        watch = self._watching()
        watch.ran.clear()
        watch.fail = "error" in event
        try:
            output = self._run(event, given)
        except Provoked:
            assert "error" in event
            self.judge.raised()
            return
        assert "error" not in event, "the exception was swallowed"
        self.judge.called(
            Made(
                key=(self._generation.key, self._number),
                part=("rows", rows),
                conditioning=tuple(event["context"]),
                weights=self.models.version,
                forward="own",
                arguments=given,
                control=None,
                unet=self.models.unet,
                output=output,
                ran=list(watch.ran),
            )
        )

    def _run(self, event: Event, given: dict[str, Any]) -> torch.Tensor:
        left_out: dict[str, Any] = dict.fromkeys(event["kwargs"])
        named = {name: given.get(name) for name in left_out} | {"return_dict": False}
        return self.models.unet(given["sample"], given["timestep"], **named)[0]

    def _pipeline(self, event: Event, rest: list[Event]) -> None:
        """Another pipeline object on the same UNet; its list of timesteps holds the recorded ones at its end."""
        times = [event["t"][0]]
        for later in rest:
            if later["ev"] == "hook" or (later["ev"] == "unet" and later["pipe"] != event["pipe"]):
                break
            if later["ev"] == "unet":
                times.append(later["t"][0])
        length = event["scheduler_timesteps"]
        whole = event["pipe"] in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
        self._first = 0 if whole else length - length // 2
        ahead = [999.0] * self._first
        missing = length - self._first - len(times)  # an interrupt or an exception came before them
        times = [*ahead, *times, *(times[-1] * (1 - (k + 1) / (missing + 1)) for k in range(missing))]
        assert len(times) == length, "more calls than timesteps"
        timesteps = torch.tensor(times)
        sigmas = torch.tensor([*(noise_level(time, True) for time in times), 0.0], dtype=torch.float64)
        config = SimpleNamespace()
        self._scheduler = type(event["scheduler"], (SimpleNamespace,), {})(
            timesteps=timesteps, sigmas=sigmas, step_index=None, config=config
        )
        self._scheduled = list(timesteps[self._first :])
        model = SimpleNamespace(unet=self.models.unet, scheduler=self._scheduler)
        self.host.shared.sd_model = type(event["pipe"], (SimpleNamespace,), {})(**vars(model))
        self._pass += 1
        self._index, self._latent = -1, None
        self.judge.pass_begins(event["scheduler"], self._hires_seen)

    def _watching(self) -> BlockWatch:
        if self._watch is None or self._watch.unet is not self.models.unet:
            if self._watch is not None:
                self._watch.remove()
            self._watch = LayerWatch(self.models.unet)
        return self._watch


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
