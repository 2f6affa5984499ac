"""The shadowed ladder on real diffusers UNets of every class, branch by branch."""

import pytest
import torch

from deepcache_ext.diffusers_ladder import DiffusersLadder
from tests import diffusers_unets as unets


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def branches():
    for layout in unets.LAYOUTS:
        depth = sum(len(block.resnets) for block in unets.shared_unet(layout).up_blocks)
        for branch in range(depth):
            yield pytest.param(layout, branch, id=f"{layout}-{branch}")


def cached_call(ladder, unet, branch, features, call):
    """One cached call as a session makes it."""
    args, kwargs = ladder.arguments(branch, (), call)
    walks = ladder.up_cached(branch, features, None)
    try:
        return unet(*args, **kwargs)[0], walks
    finally:
        ladder.take_down()


def full_call(ladder, unet, branch, call):
    walks = ladder.up_full(branch, False)
    try:
        return unet(**call)[0], walks
    finally:
        ladder.take_down()


@pytest.mark.parametrize(("layout", "branch"), branches())
def test_bit_identical_to_the_rule_by_hand(layout, branch):
    """Promise: the same floating point operations as a hand-written forward of the live layers."""
    unet = unets.shared_unet(layout)
    ladder = DiffusersLadder(unet)
    now, later = unets.inputs(layout), unets.inputs(layout, seed=1)
    before = unets.traces(unet)
    expected, feature = unets.by_hand(unet, branch, **now)
    expected_cached, _ = unets.by_hand(unet, branch, feature, **later)
    output, walks = full_call(ladder, unet, branch, now)
    assert torch.equal(output, unet(**now)[0])
    assert torch.equal(output, expected)
    assert torch.equal(walks.features[0], feature)
    output, walks = cached_call(ladder, unet, branch, walks.features, later)
    assert torch.equal(output, expected_cached)
    assert walks.supplied == 1
    assert unets.traces(unet) == before
    other, _ = cached_call(ladder, unet, branch, [torch.zeros_like(feature)], later)
    assert (output - other).abs().mean() > 0.01 * output.abs().mean()  # the feature matters
