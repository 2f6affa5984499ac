"""Forwards that another extension put on the UNet: by position, twice, or without running a block."""

import contextlib

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel
from torch import nn

from deepcache_ext.report.pass_report import Reason
from tests import unets
from tests.driver import call, drifting, evaluate, run, scaled, session

pytestmark = pytest.mark.usefixtures("no_grad")


def test_a_replaced_forward_that_runs_no_block(unet):
    """TensorRT and its like."""
    unet.forward = lambda x, **_: x * 2
    cache = session(3)
    cache.attach(unet)
    run(cache, unet, 4)
    del unet.forward
    report = cache.close()
    assert report.off == Reason.NO_EFFECT.value
    assert report.fraction == "4 of 4 full"


def by_position(unet, controls):
    """A foreign forward that adds a residual to every block by its position, as ControlNet's does."""

    def forward(x, timesteps, context):
        emb = unet.time_embed(unets.timestep_embedding(timesteps, unet.model_channels, repeat_only=False))
        h, skips, residuals = x, [], list(controls)
        for block in unet.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = unet.middle_block(h, emb, context)
        h += residuals.pop()
        for block in unet.output_blocks:
            h = block(torch.cat([h, skips.pop() + residuals.pop()], dim=1), emb, context)
        return unet.out(h)

    return forward


@pytest.mark.parametrize("branch", [0, 3, 5])
def test_foreign_forward_keeps_its_positions(unet, branch):
    latent, cache = drifting(2), session(3, branch)
    controls = [0.1 * (i + 1) for i in range(len(unet.input_blocks) + 1)]
    unet.forward = by_position(unet, controls)
    cache.attach(unet)
    outputs = run(cache, unet, 3)
    del unet.forward
    assert cache.close().cached_calls == 2

    # By hand: the live blocks get the residuals that belong to their positions. What the first live output block was
    # given at the full call is the kept feature (with the middle's residual, where the middle is the boundary).
    first_live = len(unet.output_blocks) - 1 - branch
    given = []
    probe = unet.output_blocks[first_live].register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    now = [call(x=scaled(latent(k), k)) for k in range(3)]
    expected = [by_position(unet, controls)(**now[0])]
    probe.remove()
    emb = unet.time_embed(unets.timestep_embedding(now[0]["timesteps"], unet.model_channels, repeat_only=False))
    for k in (1, 2):
        h, skips = now[k]["x"], []
        for block in list(unet.input_blocks)[: branch + 1]:
            h = block(h, emb, now[k]["context"])
            skips.append(h)
        h = given[0][:, : given[0].shape[1] - skips[-1].shape[1]]
        for i, block in enumerate(list(unet.output_blocks)[first_live:]):
            h = block(torch.cat([h, skips.pop() + controls[branch - i]], dim=1), emb, now[k]["context"])
        expected.append(unet.out(h))
    assert all(map(torch.equal, outputs, expected))


def twice(unet, other, weight=0.1):
    """A foreign forward that first runs the class's own forward on another latent: ControlNet's reference_only."""

    def forward(x, timesteps, context):
        reference = type(unet).forward(unet, other, timesteps, context)
        return type(unet).forward(unet, x, timesteps, context) + weight * reference

    return forward


def test_two_walks_in_one_call_have_a_feature_each(unet):
    latent, other, cache = drifting(2), torch.randn(2, 4, 8, 8), session(3)
    unet.forward = twice(unet, other)
    cache.attach(unet)
    outputs = run(cache, unet, 3)
    del unet.forward
    assert cache.close().cached_calls == 2
    for k, output in enumerate(outputs):
        now, aside = call(x=scaled(latent(k), k)), call(x=other)
        if k == 0:
            (main, kept), (side, kept_aside) = unets.by_hand(unet, 0, **now), unets.by_hand(unet, 0, **aside)
        else:
            main, _ = unets.by_hand(unet, 0, kept, **now)
            side, _ = unets.by_hand(unet, 0, kept_aside, **aside)
        assert torch.equal(output, main + 0.1 * side)


def test_another_number_of_walks_is_run_again_in_full(unet):
    """A reference unit that stops in mid-run leaves the call with one walk, and the first feature is not its own."""
    latent, other, cache = drifting(2), torch.randn(2, 4, 8, 8), session(4)
    double = twice(unet, other)
    active = True
    unet.forward = lambda **kw: double(**kw) if active else type(unet).forward(unet, **kw)
    cache.attach(unet)
    run(cache, unet, 2)
    active = False
    (output,) = evaluate(cache, unet, 2, latent(2), call(x=latent(2)))
    assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(2), 2)))[0])
    del unet.forward
    report = cache.close()
    assert report.misses == {Reason.WALKS: 1}
    assert (report.full_calls, report.cached_calls, report.full_evaluations) == (2, 1, 2)
    assert (len(report.full_seconds), len(report.cached_seconds)) == (2, 1)  # the other walk is in neither


@pytest.mark.parametrize("walks", [2, 3])
def test_walks_of_fewer_rows_that_begin_in_mid_run(unet, walks):
    """FABRIC asks about one feedback picture after the other before it goes through the call's own rows."""
    latent, cache, others = drifting(2), session(4), [torch.randn(1, 4, 8, 8) for _ in range(walks - 1)]
    active = False

    def forward(x, timesteps, context):
        aside = [type(unet).forward(unet, one, timesteps[:1], context[:1]) for one in others if active]
        return type(unet).forward(unet, x, timesteps, context) + 0.1 * sum(aside)

    unet.forward = forward
    cache.attach(unet)
    run(cache, unet, 2)
    active = True
    now = call(x=scaled(latent(2), 2))
    with torch.no_grad():
        expected = forward(**now)
    (output,) = evaluate(cache, unet, 2, latent(2), call(x=latent(2)))
    del unet.forward
    assert torch.equal(output, expected)
    report = cache.close()
    assert (report.full_calls, report.cached_calls) == (2, 1) and not report.off


@pytest.mark.parametrize("with_kwargs", [False, True])
def test_what_is_run_again_goes_through_the_hooks_before_ours_and_after(unet, with_kwargs):
    latent, other, cache = drifting(2), torch.randn(2, 4, 8, 8), session(4)
    double = twice(unet, other)
    active = True
    unet.forward = lambda **kw: double(**kw) if active else type(unet).forward(unet, **kw)
    handles = [unet.register_forward_hook(lambda *given: given[-1] + 1, with_kwargs=with_kwargs)]
    cache.attach(unet)
    handles.append(unet.register_forward_hook(lambda *given: given[-1] * 2, with_kwargs=with_kwargs))
    run(cache, unet, 2)
    active = False
    (output,) = evaluate(cache, unet, 2, latent(2), call(x=latent(2)))
    del unet.forward
    for handle in handles:
        handle.remove()
    assert cache.close().misses == {Reason.WALKS: 1}
    assert torch.equal(output, (unets.by_hand(unet, 0, **call(x=scaled(latent(2), 2)))[0] + 1) * 2)


def test_an_error_when_it_is_run_again(unet):
    """It is the host's own, and the UNet is clean as after any other."""
    latent, other, cache, before = drifting(2), torch.randn(2, 4, 8, 8), session(4), len(unet._forward_hooks)
    double, single = twice(unet, other), []

    def forward(**kw):
        if not single:
            return double(**kw)
        if single.pop():
            single.append(False)  # the cached call has one walk; run again, it has no memory left
            return type(unet).forward(unet, **kw)
        raise ZeroDivisionError("out of memory")

    unet.forward = forward
    cache.attach(unet)
    run(cache, unet, 2)
    single.append(True)
    with pytest.raises(ZeroDivisionError, match="out of memory"):
        evaluate(cache, unet, 2, latent(2), call(x=latent(2)))
    del unet.forward
    assert len(unet._forward_hooks) == before and not len(cache.decisions._slots)
    assert cache.close().misses[Reason.WALKS] == 1


def test_an_extension_that_comes_or_goes_in_mid_run(unet):
    latent, cache = drifting(2), session(5)
    cache.attach(unet)
    for k in range(4):
        if k == 2:
            unet.forward = twice(unet, torch.zeros(2, 4, 8, 8))
        evaluate(cache, unet, k, latent(k), call(x=latent(k)))
    del unet.forward
    report = cache.close()
    assert report.misses == {Reason.FORWARD: 1} and report.cached_calls == 2


class Scaler(nn.Module):
    """Runs a block on a smaller or larger input, as the tricks do that draw large pictures in two sizes."""

    def __init__(self, scale, block):
        super().__init__()
        self.scale, self.block = scale, block

    def forward(self, x, *others):
        return self.block(nn.functional.interpolate(x, scale_factor=self.scale, mode="nearest"), *others)


@contextlib.contextmanager
def scaled_down(unet):
    below, above = unet.input_blocks[2], unet.output_blocks[-3]
    unet.input_blocks[2], unet.output_blocks[-3] = pair = Scaler(0.5, below), Scaler(2.0, above)
    yield pair
    unet.input_blocks[2], unet.output_blocks[-3] = below, above


@pytest.mark.parametrize("branch", [0, 2, 3, 5])
@pytest.mark.parametrize("come", [True, False])
def test_blocks_exchanged_in_mid_run(unet, branch, come):
    latent, cache, feature = drifting(2), session(5, branch), None
    cache.attach(unet)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as then:
        for k in range(4):
            if k == 0 and not come:
                first.enter_context(scaled_down(unet))
            if k == 2:
                then.enter_context(scaled_down(unet)) if come else first.close()
                ladder = cache._at.ladder
            (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            if k >= 2:
                kept = feature if k == 3 else None  # the third is full, though the plan caches it
                expected, feature = unets.by_hand(unet, branch, kept, **call(x=scaled(latent(k), k)))
                assert torch.equal(output, expected)
        assert cache._at.ladder is not ladder
    report = cache.close()
    assert report.misses == {Reason.BLOCKS: 1} and report.cached_calls == 2


def test_a_block_exchanged_and_put_back(unet):
    """What was kept on the other blocks is gone; nothing is held on to."""
    latent, cache = drifting(2), session(9)
    cache.attach(unet)
    for k in range(6):
        with scaled_down(unet) if k == 2 else contextlib.nullcontext():
            (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
    assert Reason.BLOCKS in cache.report.misses
    assert (cache.report.full_calls, cache.report.cached_calls) == (3, 3)
    _, feature = unets.by_hand(unet, 0, **call(x=scaled(latent(3), 3)))
    assert torch.equal(output, unets.by_hand(unet, 0, feature, **call(x=scaled(latent(5), 5)))[0])
    assert cache.close().misses == {Reason.BLOCKS: 2}
    assert cache._at is None


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("branch", [2, 3, 5])
def test_a_block_that_changes_its_size_in_mid_run(unet, branch, foreign):
    """The same blocks, another scale: the kept feature has no place, and the host's forward must not fail on it."""
    latent, cache = drifting(2), session(5, branch)
    if foreign:
        unet.forward = lambda **kw: type(unet).forward(unet, **kw)
    with scaled_down(unet) as pair:
        cache.attach(unet)
        for k in range(4):
            if k == 2:
                pair[0].scale = pair[1].scale = 1.0
            (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            if k == 2:
                assert torch.equal(output, unets.by_hand(unet, branch, **call(x=scaled(latent(k), k)))[0])
        unet.__dict__.pop("forward", None)
    report = cache.close()
    assert report.misses == {Reason.SIZES: 2} and report.cached_calls == 1


def test_a_latent_of_an_odd_size_keeps_its_feature(unet, monkeypatch):
    """A1111's UNet stretches what comes up to the size of the skip connection; that is no change of size."""

    def cat(tensors, dim):
        h, skip = tensors
        return torch.cat([nn.functional.interpolate(h, skip.shape[-2:]), skip], dim)

    class Stretching:
        def __getattr__(self, name):
            return cat if name == "cat" else getattr(torch, name)

    monkeypatch.setattr(openaimodel, "th", Stretching())
    for branch in range(6):
        latent, cache = drifting(2, size=(9, 15)), session(3, branch)
        cache.attach(unet)
        for k in range(3):
            evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        assert cache.close().cached_calls == 2
