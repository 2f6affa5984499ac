"""Forge's and reForge's recordings: what their calls hold, how they are called, and what each should have given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests import forge_unets

from . import fakehost
from .models import Kind, Models
from .placement import Layout, Piece, Placed, Row, _tiles
from .player import Player
from .recording import CLASS_FORWARD, Event, Generation
from .reference import Answer


class ForgeHost(fakehost.Host):
    """The family's host: its model holds the UNet in a patcher, and at first there is no model but a placeholder."""

    packages = ("modules_forge",)

    def __init__(self) -> None:
        super().__init__()
        self.put_placeholder()

    @property
    def has_model(self) -> bool:
        return hasattr(self.shared.sd_model, "forge_objects")

    def put_placeholder(self) -> None:
        self.shared.sd_model = SimpleNamespace()

    def load_model(self, unet: nn.Module) -> None:
        patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet))
        self.shared.sd_model = SimpleNamespace(
            forge_objects=SimpleNamespace(unet=patcher), alphas_cumprod=fakehost.ALPHAS
        )


class ForgeModels(Models):
    """UNets that are called by one of the family's protocols."""

    def __init__(self, protocol: str) -> None:
        super().__init__(lambda kind, seed: self._unet(protocol, kind, seed))

    @staticmethod
    def _unet(protocol: str, kind: Kind, seed: int) -> nn.Module:
        return forge_unets.make(protocol, seed, kind.channels, kind.context)


class ForgePlayer(Player):
    """The same events; the sampler's x holds each image once, and a call says which prompts it asks about."""

    host: ForgeHost

    def _start_model(self, generation: Generation) -> None:
        """A recording that begins before any model is there loads it when its events say so."""
        super()._start_model(generation)
        names = [event.get("name") for event in generation.events if event.get("name") in ("model_loaded", "process")]
        if names[:1] == ["model_loaded"]:
            self.host.put_placeholder()

    def _lay_out(self, event: Event, calls: list[Event]) -> Layout:
        return lay_out(event, calls)

    def _denoiser(self, event: Event, p: fakehost.Processing) -> Any:
        """Its innermost model is the one that is about to run, whatever `p` says."""
        denoiser = super()._denoiser(event, p)
        denoiser.inner_model = SimpleNamespace(inner_model=self.host.shared.sd_model)
        denoiser.classic_ddim_eps_estimation = event["denoiser_class"] == "CFGDenoiserTimesteps"
        return denoiser

    def _forward(self, call: Event | None) -> None:
        if call and call.get("instance_forward") not in (None, CLASS_FORWARD):
            self._cannot("unet.instance_forward")  # what stands in for one elsewhere knows no options
            call = None
        super()._forward(call)

    def _run(self, event: Event, given: dict[str, Any]) -> torch.Tensor:
        if event.get("y"):
            self._cannot("unet.y")  # the UNets here are SD 1.x
        recorded, x = event["transformer_options"], given["x"]
        marks = recorded["cond_or_uncond"]
        rows = [mark for mark in marks for _ in range(len(x) // len(marks))]
        made: dict[str, Any] = {
            "cond_or_uncond": list(marks),
            "sigmas": torch.tensor(recorded["sigmas"]),
            "sample_sigmas": torch.tensor(recorded["sigmas"]),
            "uuids": [object()],
            "cond_mark": torch.tensor(rows),
            "cond_indices": [i for i, mark in enumerate(rows) if mark == 0],
            "uncond_indices": [i for i, mark in enumerate(rows) if mark == 1],
            # What an earlier call left in the same options.
            "block": ("last", 0),
            "block_index": 0,
            "transformer_index": 11,
            "original_shape": [1, 4, 1, 1],
            "activations_shape": [1, 4, 1, 1],
            "n_heads": 2,
            "dim_head": 16,
        }
        for name in recorded["keys"]:
            if name not in made:
                self._cannot(f"unet.transformer_options.{name}")
        given["control"] = None
        given["transformer_options"] = {name: made[name] for name in recorded["keys"] if name in made}
        return super()._run(event, given)

    def _distinguishing(self, given: dict[str, Any]) -> object:
        options = given["transformer_options"]
        return super()._distinguishing(given), tuple(options.get("cond_or_uncond", ()))


def lay_out(announced: Event, calls: Sequence[Event]) -> Layout:
    """From the `cfg_denoiser` event and the calls after it: each call has all images once for each of its prompts."""
    images, _, height, width = announced["x"]
    layout = Layout([Row(image, "image") for image in range(images)], (height, width))
    tiled = iter(_tiled(layout, [call for call in calls if tuple(call["x"][2:]) != layout.size]))
    conds: Counter[str] = Counter()
    for call in calls:
        if tuple(call["x"][2:]) != layout.size:
            layout.calls.append(next(tiled))
            continue
        asked = [Row(i, prompt) for prompt in _prompts(call, conds) for i in range(images)]
        placed = Placed(tuple(Piece(row.image, row) for row in asked), layout.size)
        layout.calls.append(placed if len(asked) == call["x"][0] else None)
    return layout


def _tiled(layout: Layout, calls: Sequence[Event]) -> Sequence[Placed | None]:
    """What calls of parts of the latent hold, each with all prompts of the first one."""
    if not calls:
        return []
    asked = [Row(i, prompt) for prompt in _prompts(calls[0], Counter()) for i in range(layout.images)]
    try:
        grid = _tiles(Layout(asked, layout.size), [(call["x"][0], tuple(call["x"][2:])) for call in calls])
    except ValueError:
        return [None] * len(calls)
    return [
        Placed(tuple(Piece(q.label.image, q.label, q.top, q.left) for q in placed.pieces), placed.size)
        for placed in grid
    ]


def _prompts(call: Event, conds: Counter[str]) -> list[str]:
    """The prompts of a call; `conds` counts those of the evaluation."""
    names = []
    for mark in call["transformer_options"]["cond_or_uncond"]:
        names.append("uncond" if mark else f"cond {conds['cond']}")
        conds["cond"] += not mark
    return names


def answer(
    unet: Any,
    arguments: dict[str, Any],
    *,
    control: Any,
    branches: Iterable[int] = (),
    branch: int = -1,
    features: Sequence[torch.Tensor] | None = None,
) -> Answer:
    """A call in full, or the outer blocks of `branch` alone on a feature; every place looked up, none counted."""
    kept: dict[int, torch.Tensor] = {}
    if features is not None:
        output, _ = forge_unets.by_hand(unet, branch, features[0], features=kept, **arguments)
    else:
        output, _ = forge_unets.by_hand(unet, max(branches), features=kept, **arguments)
    return Answer(output, [{one: kept[one] for one in branches if one in kept}])
