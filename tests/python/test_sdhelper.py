"""Equal settings give the published helper's picture: our engine on a WebUI's UNet against DeepCacheSDHelper 0.1.1 on
the UNet of diffusers with the same weights, over a whole loop of a sampler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from DeepCache import DeepCacheSDHelper as PublishedHelper
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.session.session import Session
from tests import unets

STEPS = 10
TOLERANCE = 2e-6
"""Of the largest value: the two UNets add in another order, in single precision."""

COMMON = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
TWINS: dict[str, dict[str, Any]] = {
    "sd1": COMMON
    | {
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": 4,
        "cross_attention_dim": 64,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "sdxl": COMMON
    | {
        "block_out_channels": (32, 64, 128),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": 128,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96,
    },
}
TWINS["sd2"] = TWINS["sd1"] | {"attention_head_dim": (2, 4, 8, 8), "use_linear_projection": True}


pytestmark = pytest.mark.usefixtures("quiet")


class Both:
    """A UNet of ldm or sgm and its twin, and what a sampler gives them: two rows, cond and uncond."""

    def __init__(self, layout: str) -> None:
        self.unet = unets.make(layout)
        weights = {f"model.diffusion_model.{name}": value for name, value in self.unet.state_dict().items()}
        self.twin = diffusers.UNet2DConditionModel(**TWINS[layout]).eval().requires_grad_(False)
        converted = convert_ldm_unet_checkpoint(weights, config=self.twin.config)
        self.twin.load_state_dict(converted)  # strict: every weight of both has its place
        given = unets.inputs(layout)
        self.x, self.context, self.y = given["x"][:1], given["context"], None
        self.added: dict[str, torch.Tensor] | None = None
        if "y" in given:
            ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
            self.added = {"text_embeds": given["y"][:, :48], "time_ids": ids}
            self.y = torch.cat([given["y"][:, :48], self.twin.add_time_proj(ids.flatten()).reshape(2, -1)], dim=1)

    def sample(self, call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], scheduler: Any) -> torch.Tensor:
        x = self.x
        for timestep in scheduler.timesteps:
            uncond, cond = call(torch.cat([x, x]), timestep).chunk(2)
            x = scheduler.step(uncond + 2 * (cond - uncond), timestep, x).prev_sample
        return x

    def webui(self, sampler: str, session: Session | None = None) -> torch.Tensor:
        """The WebUI's UNet; its host's clock ticks at every evaluation."""
        scheduler = made(sampler)
        if session is not None:
            session.attach(self.unet)

        def call(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            if session is not None:
                session.tick(lambda: x, float(timestep))
            rest = {} if self.y is None else {"y": self.y}
            return self.unet(x, timesteps=timestep.expand(2).float(), context=self.context, **rest)

        return self.sample(call, scheduler)

    @functools.cache  # noqa: B019 - lives as long as the tests
    def diffusers(self, sampler: str, interval: int = 0, branch: int = 0) -> torch.Tensor:
        """The twin, with the published helper where there is an interval."""
        scheduler = made(sampler)
        helper = PublishedHelper(pipe=SimpleNamespace(unet=self.twin, scheduler=scheduler))

        def call(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            rest = {} if self.added is None else {"added_cond_kwargs": self.added}
            return self.twin(x, timestep, encoder_hidden_states=self.context, return_dict=False, **rest)[0]

        if not interval:
            return self.sample(call, scheduler)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        try:
            return self.sample(call, scheduler)
        finally:
            helper.disable()
            for module in self.twin.modules():
                module.__dict__.pop("forward", None)  # it leaves them


both = functools.cache(Both)


def made(sampler: str) -> Any:
    kind = getattr(diffusers, f"{sampler}Scheduler")
    options = {"clip_sample": False} if sampler == "DDIM" else {}
    scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options)
    scheduler.set_timesteps(STEPS)
    return scheduler


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.sample("DDIM-sdxl-1-3", "DPMSolverMultistep-sd1-0-2")
@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize(
    ("sampler", "layout"),
    [*(("DDIM", layout) for layout in TWINS), ("DPMSolverMultistep", "sd1")],
)
def test_the_helpers_picture(sampler: str, layout: str, branch: int, interval: int) -> None:
    pair = both(layout)
    session = Session(UniformPlan(interval, branch, STEPS), Copy())
    ours = pair.webui(sampler, session)
    report = session.close()
    assert (report.full_calls, report.cached_calls) == (-(-STEPS // interval), STEPS - -(-STEPS // interval))
    theirs = pair.diffusers(sampler, interval, branch)
    assert apart(ours, theirs) < TOLERANCE
    # The tolerance tells these settings from all others next to them.
    assert apart(theirs, pair.diffusers(sampler)) > 20 * TOLERANCE
    assert apart(theirs, pair.diffusers(sampler, interval, branch + 1)) > 20 * TOLERANCE
    assert apart(theirs, pair.diffusers(sampler, interval + 1, branch)) > 20 * TOLERANCE


@pytest.mark.parametrize("layout", TWINS)
def test_the_twins_are_twins(layout: str) -> None:
    assert apart(both(layout).webui("DDIM"), both(layout).diffusers("DDIM")) < TOLERANCE
