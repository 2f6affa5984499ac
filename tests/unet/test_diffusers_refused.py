"""diffusers' UNets that have no ladder or have been changed: refused, each with its reason."""

import diffusers
import pytest
import torch
from torch import nn

from deepcache_ext.unet import compiled
from deepcache_ext.unet.diffusers import DiffusersLadder
from deepcache_ext.unet.ladder import Walks
from deepcache_ext.unet.support import UnknownLayout
from tests import diffusers_unets as unets

pytestmark = pytest.mark.usefixtures("no_grad")


def compiled_block():
    unet = unets.make("sd1")
    unet.down_blocks[0] = torch.compile(unet.down_blocks[0], backend="eager")
    return unet


def compiled_in_place():
    unet = unets.make("sd1")
    unet.compile(backend="eager")
    return unet


def offloaded_in_groups():
    unet = unets.make("sd1")
    diffusers.hooks.apply_group_offloading(unet, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    return unet


def latent_upscaler():
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D"),
        mid_block_type=None,
        norm_num_groups=4,
        up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D"),
        resnet_time_scale_shift="scale_shift",
    )


def score_sde():
    return unets.make("ddpm", down_block_types=("SkipDownBlock2D",) * 3, up_block_types=("SkipUpBlock2D",) * 3)


def one_skip_for_all():
    """A block whose second layer takes no skip connection."""
    unet = unets.make("sd1")
    unet.up_blocks[2].resnets[1] = unet.mid_block.resnets[0]
    return unet


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: None, "no UNet"),
        (lambda: nn.Linear(2, 2), "not a UNet"),
        (lambda: torch.jit.script(nn.Linear(2, 2)), "TorchScript"),
        (compiled_block, "blocks are compiled"),
        (offloaded_in_groups, "group offloading"),
        (latent_upscaler, "KDownsample2D are unknown"),
        (score_sde, "SkipDownBlock2D are unknown"),
        (one_skip_for_all, "skip connection"),
        (
            lambda: diffusers.DiTTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=4,
                num_layers=1,
                sample_size=8,
                num_embeds_ada_norm=10,
            ),
            "not a UNet",
        ),
    ],
    ids=[
        "none",
        "no-unet",
        "script",
        "compiled-block",
        "groups",
        "k",
        "skip",
        "one-skip",
        "dit",
    ],
)
def test_unknown_layouts_are_refused(broken, words):
    with pytest.raises(UnknownLayout, match=words):
        DiffusersLadder(broken())


@pytest.mark.parametrize("made", [lambda: torch.compile(unets.make("sd1"), backend="eager"), compiled_in_place])
def test_compiled_unets_need_a_newer_torch(made, monkeypatch):
    monkeypatch.setattr(compiled, "OLDEST", (99, 0))
    with pytest.raises(UnknownLayout, match="the UNet is compiled, and this torch is too old for that"):
        DiffusersLadder(made())


@pytest.mark.parametrize("where", ["", "up_blocks.2", "down_blocks.0"])
def test_replaced_forwards_are_refused(where):
    unet = unets.make("sd1")
    ladder = DiffusersLadder(unet)
    module = unet.get_submodule(where)
    own = module.forward
    module.forward = lambda *args, **kwargs: own(*args, **kwargs)
    for up in (lambda: ladder.up_full((1,), True), lambda: ladder.up_cached(1, [torch.zeros(1)], Walks())):
        with pytest.raises(UnknownLayout, match="replaced"):
            up()
