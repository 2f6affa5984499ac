"""The shadowed ladder on real diffusers UNets of every class, branch by branch."""

import copy
from types import SimpleNamespace

import diffusers
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook, remove_hook_from_module
from DeepCache import DeepCacheSDHelper as PublishedHelper
from diffusers.loaders import IPAdapterMixin

from deepcache_ext import DeepCache
from deepcache_ext.python.sdhelper import helpers_branch
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.unet.diffusers import DiffusersLadder
from deepcache_ext.unet.ladder import Walks
from deepcache_ext.unet.shadows import Blocks
from deepcache_ext.unet.support import own_forward
from tests import diffusers_unets as unets

pytestmark = pytest.mark.usefixtures("no_grad")


def branches():
    for layout in unets.LAYOUTS:
        depth = sum(len(block.resnets) for block in unets.shared_unet(layout).up_blocks)
        for branch in range(depth):
            yield pytest.param(layout, branch, id=f"{layout}-{branch}")


def cached_call(ladder, unet, branch, features, call):
    """One cached call as a session makes it."""
    args, kwargs = ladder.arguments(branch, (), call)
    walks = ladder.up_cached(branch, features, Walks())
    try:
        return unet(*args, **kwargs)[0], walks
    finally:
        ladder.take_down()


def full_call(ladder, unet, branch, call):
    walks = ladder.up_full((branch,), False)
    try:
        return unet(**call)[0], walks.features[branch]
    finally:
        ladder.take_down()


@pytest.mark.sample("one-layer", "ddpm")
@pytest.mark.parametrize("layout", unets.LAYOUTS)
def test_a_deeper_call_renews_the_shallower_feature(layout):
    unet = unets.shared_unet(layout)
    ladder = DiffusersLadder(unet)
    full, then, last = (unets.inputs(layout, seed=seed) for seed in range(3))
    before = unets.traces(unet)
    for shallow in range(ladder.depth):
        for deeper in range(shallow + 1, ladder.depth):
            whole, renewed = {}, {}
            unets.by_hand(unet, deeper, features=whole, **full)
            expected, _ = unets.by_hand(unet, deeper, whole[deeper], features=renewed, **then)

            walks = ladder.up_full((shallow, deeper), False)
            unet(**full)
            ladder.take_down()
            assert all(torch.equal(walks.features[branch][0], whole[branch]) for branch in (shallow, deeper))

            args, kwargs = ladder.arguments(deeper, (), then)
            second = ladder.up_cached(deeper, walks.features[deeper], walks, False, (shallow,))
            assert torch.equal(unet(*args, **kwargs)[0], expected)
            ladder.take_down()
            assert list(second.features) == [shallow]
            assert torch.equal(second.features[shallow][0], renewed[shallow])

            output, _ = cached_call(ladder, unet, shallow, second.features[shallow], last)
            assert torch.equal(output, unets.by_hand(unet, shallow, renewed[shallow], **last)[0])
    assert unets.traces(unet) == before


@pytest.mark.sample
@pytest.mark.parametrize(("layout", "branch"), branches())
def test_bit_identical_to_the_rule_by_hand(layout, branch):
    """Promise: the same floating point operations as a hand-written forward of the live layers."""
    unet = unets.shared_unet(layout)
    ladder = DiffusersLadder(unet)
    now, later = unets.inputs(layout), unets.inputs(layout, seed=1)
    before = unets.traces(unet)
    expected, feature = unets.by_hand(unet, branch, **now)
    expected_cached, _ = unets.by_hand(unet, branch, feature, **later)
    output, kept = full_call(ladder, unet, branch, now)
    assert torch.equal(output, unet(**now)[0])
    assert torch.equal(output, expected)
    assert torch.equal(kept[0], feature)
    output, walks = cached_call(ladder, unet, branch, kept, later)
    assert torch.equal(output, expected_cached)
    assert walks.supplied == 1
    assert unets.traces(unet) == before
    other, _ = cached_call(ladder, unet, branch, [torch.zeros_like(feature)], later)
    assert (output - other).abs().mean() > 0.01 * output.abs().mean()  # the feature matters


def published(unet, branch, *calls):
    """What DeepCache 0.1.1 gives for these calls of one pass, the first of them full."""
    timesteps = torch.tensor([call["timestep"] for call in calls])
    helper = PublishedHelper(SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps)))
    helper.set_params(cache_interval=len(calls), cache_branch_id=branch)
    helper.enable()
    try:
        calls = [dict(call) for call in calls]
        return [unet(call.pop("sample"), call.pop("timestep"), **call)[0] for call in calls]
    finally:
        helper.disable()
        for module in unet.modules():
            module.__dict__.pop("forward", None)


@pytest.mark.sample("sd1", "one-layer", "sdxl")
@pytest.mark.parametrize("layout", [layout for layout in unets.LAYOUTS if layout != "no-middle"])
def test_every_branch_is_the_published_helpers(layout):
    """Its branches are block b // 3, layer b % 3 for any number of layers; without a middle block it does not run."""
    unet = unets.shared_unet(layout)
    ladder, now, later = DiffusersLadder(unet), unets.inputs(layout), unets.inputs(layout, seed=1)
    for branch in range(3 * len(unet.up_blocks)):
        expected = published(unet, branch, now, later)
        ours = helpers_branch(unet, branch)
        if layout in unets.HELPER_RUNS:
            assert ours == branch
        output, kept = full_call(ladder, unet, ours, now)
        assert torch.equal(output, expected[0])
        output, _ = cached_call(ladder, unet, ours, kept, later)
        assert torch.equal(output, expected[1]), branch


# Residuals of control networks ------------------------------------------------------------------------------


def skips_of(unet, call):
    """The shapes of all skip connections, and of what the middle block gives."""
    shapes = []
    hooks = [unet.conv_in.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))]
    hooks += [
        block.register_forward_hook(lambda _m, _i, out: shapes.extend(skip.shape for skip in out[1]))
        for block in unet.down_blocks
    ]
    unet(**call)
    for hook in hooks:
        hook.remove()
    return shapes


def noise(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.sample("sd1", "sdxl")
@pytest.mark.parametrize("layout", ["sd1", "sdxl", "motion", "3d"])
def test_controlnet(layout):
    """Skipped blocks' residuals are left out; the middle's is in the kept feature and not added to it again."""
    unet = unets.shared_unet(layout)
    ladder, now, later = DiffusersLadder(unet), unets.inputs(layout), unets.inputs(layout, seed=1)
    shapes = skips_of(unet, now)
    for branch in range(ladder.depth):
        hand, real = [], []
        for call, seed in ((now, 2), (later, 3)):
            control, (middle,) = noise(shapes, seed), noise(shapes[-1:], seed + 10)
            hand.append({**call, "control": control, "middle": middle})
            real.append(
                {
                    **call,
                    "down_block_additional_residuals": tuple(control),
                    "mid_block_additional_residual": middle,
                }
            )
        expected, feature = unets.by_hand(unet, branch, **hand[0])
        expected_cached, _ = unets.by_hand(unet, branch, feature, **hand[1])
        output, kept = full_call(ladder, unet, branch, real[0])
        assert torch.equal(output, expected)
        assert torch.equal(kept[0], feature)
        given = dict(real[1])
        output, _ = cached_call(ladder, unet, branch, kept, given)
        assert torch.equal(output, expected_cached)
        assert given == real[1]
        assert ladder.call((), given).kind == ladder.call((), real[0]).kind != ladder.call((), now).kind


@pytest.mark.sample("sd1-down_intrablock_additional_residuals")
@pytest.mark.parametrize("name", ["down_intrablock_additional_residuals", "down_block_additional_residuals"])
@pytest.mark.parametrize("layout", ["sd1", "sdxl", "refiner"])
def test_t2i_adapter(layout, name, recwarn):
    """Given by either name (the second is deprecated); the UNet empties the list it gets."""
    unet = unets.shared_unet(layout)
    ladder, now, later = DiffusersLadder(unet), unets.inputs(layout), unets.inputs(layout, seed=1)
    shapes, ends = skips_of(unet, now), []
    place = 0
    for block in unet.down_blocks:
        place += len(block.resnets) + (block.downsamplers is not None)
        attends = getattr(block, "has_cross_attention", False) and block.downsamplers is not None
        ends.append(shapes[place - attends])
    for branch in range(ladder.depth):
        residuals = [noise(ends, seed) for seed in (2, 3)]
        expected, feature = unets.by_hand(unet, branch, **now, adapter=residuals[0])
        expected_cached, _ = unets.by_hand(unet, branch, feature, **later, adapter=residuals[1])
        output, kept = full_call(ladder, unet, branch, {**now, name: [r.clone() for r in residuals[0]]})
        assert torch.equal(output, expected)
        given = [r.clone() for r in residuals[1]]
        output, _ = cached_call(ladder, unet, branch, kept, {**later, name: given})
        assert torch.equal(output, expected_cached), branch
        assert len(given) == len(ends)  # another run, in full, would need them


def test_arguments_by_position():
    unet = unets.shared_unet("sd1")
    ladder, call = DiffusersLadder(unet), unets.inputs("sd1")
    args = (call["sample"], call["timestep"], call["encoder_hidden_states"])
    assert ladder.arguments(0, args, {}) == (args, {})
    by_place = ladder.call((*args, None, None), {"return_dict": False})
    assert by_place.kind == ladder.call((), {**call, "return_dict": False}).kind
    residuals = (*args, None, None, None, None, None, (1, 2, 3), 4)
    trimmed, _ = ladder.arguments(1, residuals, {})
    assert trimmed[8:] == ((1, 2), 0) and trimmed[:3] == args


@pytest.mark.sample
@pytest.mark.parametrize("given", ["control", "control alone", "adapter"])
@pytest.mark.parametrize("strengths", [(1, 0), (0, 1), (0, 0), (1, 1)])
def test_control_that_starts_or_ends_in_mid_run(given, strengths):
    """Outside of its guidance range a ControlNet's residuals are zeros, not None."""
    unet, call = unets.shared_unet("sd1"), unets.inputs("sd1")
    shapes = skips_of(unet, call)
    timesteps = torch.arange(1000, 0, -100)

    def controlled(place, strength):
        residuals = [strength * tensor for tensor in noise(shapes, 2)]
        names = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": residuals[-1]}
        if given != "control":
            del names["mid_block_additional_residual"]
        if given == "adapter":
            names = {"down_intrablock_additional_residuals": [residuals[2], residuals[5], residuals[8]]}
        else:  # for "control alone": with a list for adapters, the first is taken for a ControlNet's
            names |= {"down_intrablock_additional_residuals": []} if given == "control alone" else {}
        return unet(**{**call, "timestep": timesteps[place], **names}).sample

    with DeepCache(unet, cache_interval=3, estimator="copy") as cache:
        controlled(0, strengths[0])
        output = controlled(1, strengths[1])
    changes = strengths[0] != strengths[1]
    assert torch.equal(output, controlled(1, strengths[1])) is changes
    assert cache.report().passes[0].misses == ({Reason.CONDITIONING: 1} if changes else {})


# Sizes, FreeU, hooks ----------------------------------------------------------------------------------------


@pytest.mark.sample("sd1")
@pytest.mark.parametrize("layout", ["sd1", "svd", "motion"])
def test_sizes_that_do_not_halve(layout):
    unet = unets.shared_unet(layout)
    ladder = DiffusersLadder(unet)
    now, later = (unets.inputs(layout, size=(10, 14), seed=seed) for seed in (0, 1))
    for branch in range(ladder.depth):
        expected, feature = unets.by_hand(unet, branch, **now)
        expected_cached, _ = unets.by_hand(unet, branch, feature, **later)
        output, kept = full_call(ladder, unet, branch, now)
        assert torch.equal(output, expected)
        assert torch.equal(cached_call(ladder, unet, branch, kept, later)[0], expected_cached)


def test_freeu():
    """It writes into what enters a layer: what is kept must be from before, and must not change in use."""
    unet = unets.make("sd1")
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    ladder, now, later = DiffusersLadder(unet), unets.inputs("sd1"), unets.inputs("sd1", seed=1)
    for branch in range(ladder.depth):
        expected, feature = unets.by_hand(unet, branch, **now)
        expected_cached, _ = unets.by_hand(unet, branch, feature, **later)
        output, kept = full_call(ladder, unet, branch, now)
        assert torch.equal(output, expected)
        assert torch.equal(kept[0], feature)
        # The estimator hands out a new tensor each time.
        assert torch.equal(cached_call(ladder, unet, branch, [feature.clone()], later)[0], expected_cached)


def with_ip_adapter():
    """A UNet with an IP-Adapter, and what its calls get besides."""
    unet = unets.make("sd1")
    cross = [name for name in unet.attn_processors if "attn2" in name]
    wide = [dict(unet.named_modules())[name.removesuffix(".processor")].to_k.out_features for name in cross]
    unet._load_ip_adapter_weights(
        [
            {
                "image_proj": {
                    "proj.weight": torch.randn(64, 16),
                    "proj.bias": torch.randn(64),
                    "norm.weight": torch.ones(16),
                    "norm.bias": torch.zeros(16),
                },
                "ip_adapter": {
                    f"{2 * i + 1}.{part}.weight": torch.randn(width, 16)
                    for i, width in enumerate(wide)
                    for part in ("to_k_ip", "to_v_ip")
                },
            }
        ]
    )
    return unet, {"added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 16)]}}


def test_ip_adapter():
    unet, embeds = with_ip_adapter()
    ladder, now, later = DiffusersLadder(unet), unets.inputs("sd1") | embeds, unets.inputs("sd1", seed=1) | embeds
    for branch in (0, 2, 5):
        expected, feature = unets.by_hand(unet, branch, **now)
        output, kept = full_call(ladder, unet, branch, now)
        assert torch.equal(output, expected)
        assert torch.equal(
            cached_call(ladder, unet, branch, kept, later)[0],
            unets.by_hand(unet, branch, feature, **later)[0],
        )


def test_ip_adapter_scales_are_part_of_a_call():
    """As `set_ip_adapter_scale` writes them, and as its cutoff callback does in mid-run."""
    unet, embeds = with_ip_adapter()
    pipe = SimpleNamespace(unet=unet)
    ladder, call = DiffusersLadder(unet), unets.inputs("sd1") | embeds
    states = []
    for scale in (1.0, 0.0, 0.5, {"down": {"block_1": 0.3}}):
        IPAdapterMixin.set_ip_adapter_scale(pipe, scale)
        assert ladder.call((), call).state == ladder.call((), call).state
        states.append(ladder.call((), call).state)
    unet.set_default_attn_processor()
    states.append(ladder.call((), call).state)
    assert not any(one == other for i, one in enumerate(states) for other in states[:i])


def test_an_ip_adapter_that_ends_in_mid_run():
    unet, embeds = with_ip_adapter()
    call = unets.inputs("sd1") | embeds
    timesteps = torch.arange(1000, 0, -100)
    for ends in (True, False):
        IPAdapterMixin.set_ip_adapter_scale(SimpleNamespace(unet=unet), 1.0 if ends else 0.0)
        with DeepCache(unet, cache_interval=3, estimator="copy") as cache:
            unet(**{**call, "timestep": timesteps[0]})
            IPAdapterMixin.set_ip_adapter_scale(SimpleNamespace(unet=unet), 0.0)
            output = unet(**{**call, "timestep": timesteps[1]}).sample
        plain = unet(**{**call, "timestep": timesteps[1]}).sample
        assert torch.equal(output, plain) is ends
        assert cache.report().passes[0].misses == ({Reason.STATE: 1} if ends else {})


def offload_sequentially(unet):
    attach_align_device_hook(unet, execution_device=torch.device("cpu"), offload=True)


def offload_model(unet):
    add_hook_to_module(unet, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def hook_every_block(unet):
    """SD.Next's balanced offload."""
    for module in [unet, *unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))


def hook_twice(unet):
    offload_model(unet)
    add_hook_to_module(unet, AlignDevicesHook(execution_device="cpu"), append=True)


def cast_layerwise(unet):
    diffusers.hooks.apply_layerwise_casting(unet, torch.float32, torch.float32, skip_modules_pattern=())


@pytest.mark.parametrize(
    "hook",
    [offload_sequentially, offload_model, hook_every_block, hook_twice, cast_layerwise],
    ids=lambda hook: hook.__name__,
)
def test_hooks_that_move_weights(hook):
    """accelerate's and diffusers' hooks replace forwards, but run what was there: they are no foreign forwards."""
    unet, twin = unets.make("sd1"), unets.shared_unet("sd1")
    hook(unet)
    assert any("forward" in module.__dict__ for module in unet.modules())
    assert all(own_forward(module) is None for module in unet.modules())
    ladder, now, later = DiffusersLadder(unet), unets.inputs("sd1"), unets.inputs("sd1", seed=1)
    for branch in (0, 1, 3):
        expected, feature = unets.by_hand(twin, branch, **now)
        output, kept = full_call(ladder, unet, branch, now)
        assert torch.equal(output, expected)
        assert torch.equal(
            cached_call(ladder, unet, branch, kept, later)[0],
            unets.by_hand(twin, branch, feature, **later)[0],
        )
    remove_hook_from_module(unet, recurse=True)


def test_skipped_blocks_are_never_called():
    unet = unets.make("sd1")
    ladder, called = DiffusersLadder(unet), []
    _, kept = full_call(ladder, unet, 1, unets.inputs("sd1"))
    for name, module in unet.named_modules():
        if name.count(".") in (1, 3) and any(part in name for part in ("resnets", "attentions", "samplers")):
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    cached_call(ladder, unet, 1, kept, unets.inputs("sd1"))
    assert called == [
        f"{block}.{layer}"
        for block, layer in [
            ("down_blocks.0", "resnets.0"),
            ("down_blocks.0", "attentions.0"),
            ("up_blocks.2", "resnets.1"),
            ("up_blocks.2", "attentions.1"),
            ("up_blocks.2", "resnets.2"),
            ("up_blocks.2", "attentions.2"),
        ]
    ]


def test_others_see_the_real_modules():
    unet = unets.make("sd1")
    ladder, call = DiffusersLadder(unet), unets.inputs("sd1")
    names, expected = [name for name, _ in unet.named_modules()], unet(**call)[0]
    ladder.up_cached(1, [torch.zeros(1)], Walks())
    assert isinstance(unet.down_blocks, Blocks) and len(unet.down_blocks) == 1
    assert [name for name, _ in unet.named_modules()] == names
    twin = copy.deepcopy(unet)
    nested = ladder.take_down()
    assert torch.equal(unet(**call)[0], expected)
    ladder.put_back(nested)
    assert len(unet.up_blocks) == 1 and len(unet.up_blocks[0].resnets) == 2 and not unet.down_blocks[0].downsamplers
    ladder.take_down()
    assert torch.equal(unet(**call)[0], expected)
    assert torch.equal(twin(**call)[0], expected)  # a copy made in mid-call is whole


def test_compiled_inner_modules_work():
    """Regional compilation: diffusers compiles the transformer blocks alone."""
    unet, twin = unets.make("sd1"), unets.shared_unet("sd1")
    for module in unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.compile(backend="eager")
    ladder, now, later = DiffusersLadder(unet), unets.inputs("sd1"), unets.inputs("sd1", seed=1)
    _, kept = full_call(ladder, unet, 1, now)
    _, feature = unets.by_hand(twin, 1, **now)
    assert torch.equal(kept[0], feature)
    output, _ = cached_call(ladder, unet, 1, kept, later)
    assert torch.equal(output, unets.by_hand(twin, 1, feature, **later)[0])
