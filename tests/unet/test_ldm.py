"""The shadowed ladder on real UNets: what a forward sees, and what everybody else sees."""

import copy
import pickle

import pytest
import torch
from torch import nn

from deepcache_ext.unet.ladder import Walks
from deepcache_ext.unet.ldm import Ladder
from deepcache_ext.unet.shadows import Blocks
from deepcache_ext.unet.support import UnknownLayout, own_forward
from tests import unets

pytestmark = pytest.mark.usefixtures("no_grad")


def branches():
    for layout in unets.LAYOUTS:
        depth = len(unets.shared_unet(layout).output_blocks)
        for branch in range(depth):
            yield pytest.param(layout, branch, id=f"{layout}-{branch}")


@pytest.mark.sample
@pytest.mark.parametrize(("layout", "branch"), branches())
def test_bit_identical_to_the_rule_by_hand(layout, branch):
    """Promise: the same floating point operations as a hand-written forward of the live blocks."""
    unet, ladder = unets.shared_unet(layout), Ladder(unets.shared_unet(layout))
    now, later = unets.inputs(layout, size=(8, 8)), unets.inputs(layout, size=(8, 8), seed=1)
    before = unets.traces(unet)
    expected, feature = unets.by_hand(unet, branch, **now)
    expected_cached, _ = unets.by_hand(unet, branch, feature, **later)
    for full_length in (False, True):
        walks = ladder.up_full((branch,), full_length)
        output = unet(**now)
        ladder.take_down()
        assert torch.equal(output, expected)
        assert torch.equal(walks.features[branch][0], feature)

        cached = ladder.up_cached(branch, [feature], walks, full_length)
        output = unet(**later)
        ladder.take_down()
        assert torch.equal(output, expected_cached)
        assert cached.supplied == 1
        assert unets.traces(unet) == before


@pytest.mark.sample("False-sd1", "True-three-levels", "False-sdxl")
@pytest.mark.parametrize("layout", unets.LAYOUTS)
@pytest.mark.parametrize("full_length", [False, True])
def test_a_deeper_call_renews_the_shallower_feature(layout, full_length):
    unet, ladder = unets.shared_unet(layout), Ladder(unets.shared_unet(layout))
    full, then, last = (unets.inputs(layout, size=(8, 8), seed=seed) for seed in range(3))
    before = unets.traces(unet)
    for shallow, deeper in ((0, ladder.depth // 2), (1, ladder.depth - 1), (0, 1)):
        whole, renewed = {}, {}
        unets.by_hand(unet, deeper, kept=whole, **full)
        expected, _ = unets.by_hand(unet, deeper, whole[deeper], kept=renewed, **then)

        walks = ladder.up_full((shallow, deeper), full_length)
        unet(**full)
        ladder.take_down()
        assert {branch: len(kept) for branch, kept in walks.features.items()} == {shallow: 1, deeper: 1}
        assert all(torch.equal(kept[0], whole[branch]) for branch, kept in walks.features.items())

        second = ladder.up_cached(deeper, walks.features[deeper], walks, full_length, (shallow,))
        assert torch.equal(unet(**then), expected)
        ladder.take_down()
        assert list(second.features) == [shallow] and torch.equal(second.features[shallow][0], renewed[shallow])
        assert not torch.equal(renewed[shallow], whole[shallow])
        assert not second.is_astray and second.supplied == 1

        ladder.up_cached(shallow, second.features[shallow], walks, full_length)
        assert torch.equal(unet(**last), unets.by_hand(unet, shallow, renewed[shallow], **last)[0])
        ladder.take_down()
        assert unets.traces(unet) == before


def test_cached_call_uses_its_feature():
    """The check above would hold for any feature if deep features did not matter."""
    unet = unets.shared_unet("sd1")
    call = unets.inputs("sd1")
    output, feature = unets.by_hand(unet, 0, **call)
    other, _ = unets.by_hand(unet, 0, torch.zeros_like(feature), **call)
    assert (output - other).abs().mean() > 0.05 * output.abs().mean()


@pytest.mark.parametrize("full_length", [False, True])
def test_skipped_blocks_are_never_called(full_length):
    """--lowvram moves a block to the GPU whenever it is called."""
    unet = unets.make("sd1")
    ladder = Ladder(unet)
    walks = ladder.up_full((0,), full_length)
    unet(**unets.inputs("sd1"))
    ladder.take_down()
    called = []
    for name, block in (
        [(f"in{i}", b) for i, b in enumerate(unet.input_blocks)]
        + [("mid", unet.middle_block)]
        + [(f"out{i}", b) for i, b in enumerate(unet.output_blocks)]
    ):
        block.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    ladder.up_cached(0, walks.features[0], walks, full_length)
    unet(**unets.inputs("sd1"))
    ladder.take_down()
    assert called == ["in0", "out11"]


def test_others_see_the_real_modules():
    unet = unets.shared_unet("sd1")
    ladder = Ladder(unet)
    names, state = [n for n, _ in unet.named_modules()], list(unet.state_dict())
    ladder.up_cached(2, [torch.zeros(1)], Walks())
    try:
        assert isinstance(unet.input_blocks, Blocks) and len(unet.input_blocks) == 3
        assert [n for n, _ in unet.named_modules()] == names
        assert list(unet.state_dict()) == state
        assert getattr(unet.input_blocks, "0") is unet._modules["input_blocks"][0]
        assert unet.middle_block.training is False
        assert list(unet.output_blocks.parameters())
        with pytest.raises(AttributeError):
            unet.input_blocks.no_such_thing  # noqa: B018
    finally:
        ladder.take_down()


def through_pickle(unet):
    return pickle.loads(pickle.dumps(unet))


def test_blocks_that_a_cached_call_leaves_out_are_there_for_who_asks():
    """A hook on a live block that looks at a deeper one, by its number."""
    unet, found = unets.make("three-levels"), []
    ladder, last = Ladder(unet), len(unet.output_blocks) - 1

    def look(*_):
        found.extend([unet.input_blocks[last], unet.output_blocks[last], unet.output_blocks[-last]])
        with pytest.raises(IndexError):
            unet.output_blocks[last + 1]

    arguments = unets.inputs("three-levels")
    _, feature = unets.by_hand(unet, 0, **arguments)
    unet.input_blocks[0].register_forward_hook(look)
    ladder.up_cached(0, [feature], Walks())
    with torch.no_grad():
        unet(**arguments)
    ladder.take_down()
    real = unet.input_blocks[last], unet.output_blocks[last], unet.output_blocks[-last]
    assert all(one is other for one, other in zip(found, real, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_copy_made_in_mid_call_is_whole(duplicate):
    unet = unets.make("three-levels")
    ladder = Ladder(unet)
    call = unets.inputs("three-levels")
    expected = unet(**call)
    ladder.up_cached(0, [torch.zeros(1)], Walks())
    twin = duplicate(unet)
    ladder.take_down()
    assert torch.equal(twin(**call), expected)
    Ladder(twin).take_down()


def test_layers_can_be_iterated_as_reforge_does():
    """reForge does not call a block but goes through its layers."""
    unet = unets.shared_unet("sd1")
    ladder = Ladder(unet)
    walks = ladder.up_full((0,), False)
    layers = list(unet.output_blocks[10])
    ladder.take_down()
    assert layers[:-1] == list(unet.output_blocks[10])
    h = torch.randn(1, 2)
    assert layers[-1](h) is h
    assert torch.equal(walks.features[0][0], h)
    ladder.up_cached(0, [h], Walks())
    passing, layer = list(unet.middle_block)
    assert passing(h) is h
    assert layer(None) is h
    ladder.take_down()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (nn.Linear(2, 2), "not a UNet"),
        (torch.jit.script(nn.Linear(2, 2)), "TorchScript"),
        (None, "no UNet"),
        (torch.compile(nn.Linear(2, 2)), "compiled"),
    ],
    ids=["dit", "script", "none", "compiled"],
)
def test_unknown_layouts_are_refused(broken, words):
    with pytest.raises(UnknownLayout, match=words):
        Ladder(broken)


def test_unequal_sides_are_refused():
    unet = unets.make("three-levels")
    del unet.output_blocks[0]
    with pytest.raises(UnknownLayout, match="6 input and 5 output"):
        Ladder(unet)


def test_own_forward():
    unet = unets.make("three-levels")
    assert own_forward(unet) is None
    unet.forward = unet.forward  # what ControlNet leaves behind
    assert own_forward(unet) is None
    unet.forward = lambda *args, **kwargs: None
    assert own_forward(unet) is unet.__dict__["forward"]


def test_failing_to_keep_does_not_end_the_call():
    walks = Walks()
    walks.keep(0)("not a tensor")
    assert isinstance(walks.failed, AttributeError) and not walks.features[0]


def test_a_stand_is_asked_like_the_block():
    """ControlNet's hook looks at `input_blocks[0][0].in_channels` before it runs its network."""
    unet = unets.shared_unet("sd1")
    ladder = Ladder(unet)
    for put_up in (lambda: ladder.up_full((3,), True), lambda: ladder.up_cached(3, [torch.zeros(1)], Walks())):
        put_up()
        middle = unet.middle_block
        ladder.take_down()
        assert middle is not unet.middle_block
        assert middle[0] is unet.middle_block[0]
        assert len(middle) == len(unet.middle_block)
        assert middle
