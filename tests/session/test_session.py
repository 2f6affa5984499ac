"""A session on a real UNet: what is cached, what is refused and why, and what is left behind."""

import gc
import threading
import weakref

import pytest
import torch
from ldm.modules import attention as ldm_attention
from ldm.modules.diffusionmodules import openaimodel

from deepcache_ext.plan.estimators import Copy, Forecast, Kept, Moment
from deepcache_ext.plan.plan import ListedPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from tests import unets
from tests.driver import LAYOUT, TRUSTED, call, drifting, evaluate, expected_copy, run, scaled, session, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("branch", [0, 2, 5])
def test_copy_follows_the_helpers_rule(unet, branch):
    cache = session(3, branch)
    cache.attach(unet)
    outputs = run(cache, unet, 8)
    report = cache.close()
    assert all(map(torch.equal, outputs, expected_copy(unet, 8, 3, branch)))
    assert (report.evaluations, report.full_evaluations, report.planned_full) == (8, 3, 3)
    assert (report.full_calls, report.cached_calls, report.misses) == (3, 5, {})
    assert report.fraction == "3 of 8 full"


@pytest.mark.parametrize("listed", [(0,), (0, 1, 4), (3, 5), (0, 2, 3, 4, 7), tuple(range(8))])
def test_a_listed_plan_is_followed(unet, listed):
    cache = Session(ListedPlan(listed, 1, 8), Forecast(), trusted=TRUSTED)
    cache.attach(unet)
    outputs = run(cache, unet, 8)
    report = cache.close()
    wanted = sorted({0, *listed})
    assert (report.full_evaluations, report.cached_calls) == (len(wanted), 8 - len(wanted))
    latent, arguments, kept = drifting(2), call(), []
    for k in range(8):
        now = {**arguments, "x": scaled(latent(k), k)}
        if k in wanted:
            output, feature = unets.by_hand(unet, 1, **now)
            kept = [*kept, Kept((feature,), Moment(k, sigma(k)))][-3:]
            Forecast().learn(kept)
        else:
            output, _ = unets.by_hand(unet, 1, Forecast().estimate(kept, Moment(k, sigma(k)))[0], **now)
        assert torch.equal(output, outputs[k])


def test_forecast_is_first_order_in_log_sigma(unet):
    cache = session(3, 0, estimator=Forecast())
    cache.attach(unet)
    outputs = run(cache, unet, 8)
    cache.close()
    latent, arguments, features = drifting(2), call(), {}
    for k in range(8):
        now = {**arguments, "x": scaled(latent(k), k)}
        full, features[k] = unets.by_hand(unet, 0, **now)
        if k % 3 == 0:
            assert torch.equal(outputs[k], full)
        elif k < 3:
            assert torch.equal(outputs[k], unets.by_hand(unet, 0, features[0], **now)[0])
        else:
            # log sigma falls evenly here, so the distance is counted in evaluations
            last = k - k % 3
            step = features[last] - features[last - 3]
            trust = 0.5
            if last == 6:  # the third full call: how far the step before it would have been right
                before = features[3] - features[0]
                trust = ((step * before).sum((2, 3), True) / before.square().sum((2, 3), True)).clamp(-1, 1)
            feature = features[last] + (k % 3) / 3 * trust * step
            torch.testing.assert_close(outputs[k], unets.by_hand(unet, 0, feature, **now)[0])
            assert not torch.equal(outputs[k], unets.by_hand(unet, 0, features[k - k % 3], **now)[0])


def test_interval_one_attaches_to_nothing_worth_keeping(unet):
    cache = session(1)
    cache.attach(unet)
    outputs = run(cache, unet, 4)
    report = cache.close()
    assert all(map(torch.equal, outputs, expected_copy(unet, 4, 1, 0)))
    assert (report.cached_calls, report.kept_bytes, report.full_evaluations) == (0, 0, 4)


def test_window(unet):
    cache = session(2, total=10, start=0.3, end=0.7)
    cache.attach(unet)
    ran_full = []
    latent, arguments = drifting(2), call()
    for k in range(10):
        before = cache.report.full_calls
        evaluate(cache, unet, k, latent(k), {**arguments, "x": latent(k)})
        ran_full.append(cache.report.full_calls > before)
    cache.close()
    assert ran_full == [True, True, True, True, False, True, False, True, True, True]


def test_a_wrong_total_changes_nothing(unet):
    cache = session(3, total=4)
    cache.attach(unet)
    outputs = run(cache, unet, 9)
    assert all(map(torch.equal, outputs, expected_copy(unet, 9, 3, 0)))
    assert cache.close().fraction == "3 of 9 full"


def test_calls_outside_an_evaluation_pass_through(unet):
    cache = session(2)
    cache.attach(unet)
    plain = unets.by_hand(unet, 0, **call())[0]
    assert torch.equal(unet(**call()), plain)
    run(cache, unet, 3)
    assert torch.equal(unet(**call()), plain)
    assert cache.close().misses == {Reason.OUTSIDE: 2}


def test_calls_of_unequal_shape_have_a_slot_each(unet):
    """A long prompt: cond with 231 tokens, then uncond with 77."""
    latent, contexts = drifting(2), [torch.randn(1, 231, 64), torch.randn(1, 77, 64)]
    cache, features = session(3), [None, None]
    cache.attach(unet)
    for k in range(6):
        calls = [call(rows=1, x=latent(k)[i : i + 1], context=contexts[i]) for i in range(2)]
        outputs = evaluate(cache, unet, k, latent(k), *calls)
        for i in range(2):
            now = {**calls[i], "x": scaled(calls[i]["x"], k)}
            output, features[i] = unets.by_hand(unet, 0, features[i] if k % 3 else None, **now)
            assert torch.equal(outputs[i], output)
    report = cache.close()
    assert (report.full_calls, report.cached_calls, report.misses) == (4, 8, {})


def test_equal_latents_with_other_conditioning_are_told_apart(unet):
    """batch_cond_uncond off: cond and uncond ask about the same latent, in the same shape, one after the other."""
    latent, contexts = drifting(1), [torch.randn(1, 77, 64) for _ in range(2)]
    cache, features = session(3), [None, None]
    cache.attach(unet)
    for k in range(6):
        both = latent(k).repeat(2, 1, 1, 1)
        calls = [call(rows=1, x=latent(k), context=c) for c in contexts]
        outputs = evaluate(cache, unet, k, both, *calls)
        for i in range(2):
            now = {**calls[i], "x": scaled(latent(k), k)}
            output, features[i] = unets.by_hand(unet, 0, features[i] if k % 3 else None, **now)
            assert torch.equal(outputs[i], output)
    assert cache.close().cached_calls == 8


def test_a_missing_call_is_not_mistaken_for_the_next(unet):
    """When cond drops out, uncond comes first; it must not get cond's feature."""
    latent, contexts = drifting(1), [torch.randn(1, 77, 64) for _ in range(2)]
    cache = session(3)
    cache.attach(unet)
    calls = [call(rows=1, x=latent(0), context=c) for c in contexts]
    evaluate(cache, unet, 0, latent(0).repeat(2, 1, 1, 1), *calls)
    (output,) = evaluate(cache, unet, 1, latent(1).repeat(2, 1, 1, 1), {**calls[1], "x": latent(1)})
    assert torch.equal(output, unets.by_hand(unet, 0, **{**calls[1], "x": scaled(latent(1), 1)})[0])
    assert cache.close().misses == {Reason.CONDITIONING: 1}


def test_an_age_for_each_slot(unet):
    """NGMS alternates batches of 2 and 1: what batch 2 kept at evaluation 0 is too old at evaluation 4."""
    latent, cache, ran = drifting(2), session(3), []
    cache.attach(unet)
    for k, rows in enumerate([2, 1, 2, 1, 2, 1, 2]):
        cached = cache.report.cached_calls
        evaluate(cache, unet, k, latent(k), call(rows=2, x=latent(k)) if rows == 2 else call(rows=1, x=latent(k)[:1]))
        ran.append("cached" if cache.report.cached_calls > cached else "full")
    report = cache.close()
    assert ran == ["full", "full", "cached", "full", "full", "cached", "full"]
    assert report.misses == {Reason.FIRST_SEEN: 1, Reason.NOT_REFRESHED: 1}


def test_tiles_have_a_slot_each_and_moved_windows_none(unet):
    cache, latent, arguments = session(3), drifting(2, size=(12, 16)), call()
    cache.attach(unet)
    tiles = [(0, 0), (4, 8), (4, 2)]
    for k in range(3):
        crops = [{**arguments, "x": latent(k)[:, :, y : y + 8, x : x + 8]} for y, x in tiles]
        outputs = evaluate(cache, unet, k, latent(k), *crops)
        if k == 0:
            features = [unets.by_hand(unet, 0, **{**c, "x": scaled(c["x"], 0)})[1] for c in crops]
        else:
            for crop, feature, output in zip(crops, features, outputs, strict=True):
                now = {**crop, "x": scaled(crop["x"], k)}
                assert torch.equal(output, unets.by_hand(unet, 0, feature, **now)[0])
    assert (cache.report.full_calls, cache.report.cached_calls) == (3, 6)
    evaluate(cache, unet, 3, latent(3), *[{**arguments, "x": latent(3)[:, :, :8, :8]}])
    evaluate(cache, unet, 4, latent(4), *[{**arguments, "x": latent(4)[:, :, 1:9, :8]}])
    report = cache.close()
    assert report.cached_calls == 6
    assert report.misses == {Reason.FIRST_SEEN: 1}


def test_a_latent_that_is_not_there_is_no_proof(unet):
    """SAG asks about a blurred latent; AnimateDiff's frames are alike but for their noise."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(3):
        blurred = latent(k)[:1] + 0.02 * torch.randn(1, 4, 8, 8)
        evaluate(cache, unet, k, latent(k), call(rows=1, x=blurred))
    report = cache.close()
    assert (report.cached_calls, report.kept_bytes) == (0, 0)
    assert report.misses == {Reason.UNPLACED: 2}


def test_a_lost_picture_is_called_that(unet):
    """Hosts go on with NaN, to a black picture: no tile was mismatched there."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(3):
        evaluate(cache, unet, k, latent(k) * float("nan"), call(x=latent(k) * float("nan")))
    report = cache.close()
    assert (report.cached_calls, report.misses) == (0, {Reason.NO_NUMBERS: 2})


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_picture_that_is_lost_in_mid_run(unet, lost):
    """Here the UNet is given the very latent that the clock knows, as diffusers' are."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(9):
        x = latent(k) * (lost if k >= 4 else 1)
        cache.tick(lambda x=x: x, sigma(k))
        unet(**call(x=x))
        cache.pause()
    assert cache.close().misses == {Reason.NO_NUMBERS: 4}


def test_a_further_call_of_the_whole_shape_must_be_of_the_latent(unet):
    """PAG asks a second time about the same latent; who asks about another one is not known from call to call."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(3):
        evaluate(cache, unet, k, latent(k), call(x=latent(k)), call(x=latent(k)), call(x=latent(k + 7).flip(-1)))
    report = cache.close()
    # The others of its evaluation run in full with it: guidance would amplify the difference.
    assert (report.full_calls, report.cached_calls) == (9, 0)
    assert report.misses == {Reason.UNPLACED: 2, Reason.TOGETHER: 4}
    assert report.fraction == "3 of 3 full"


def test_changed_conditioning_forces_a_full_run(unet):
    cache, latent, other = session(4), drifting(2), torch.randn(2, 77, 64)
    cache.attach(unet)
    for k in range(4):
        arguments = call(x=latent(k)) if k < 2 else call(x=latent(k), context=other)
        evaluate(cache, unet, k, latent(k), arguments)
    report = cache.close()
    assert (report.full_calls, report.cached_calls, report.misses) == (2, 2, {Reason.CONDITIONING: 1})


def test_unknown_arguments_are_never_confused(unet):
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(3):
        evaluate(cache, unet, k, latent(k), call(x=latent(k), patches={"weight": 1.0 + k}))
    assert cache.close().misses == {Reason.FIRST_SEEN: 2}


def test_weights_written_in_place_drop_everything(unet):
    """A refiner of the same configuration: the same object, other weights, no other sign."""
    cache, latent = session(4), drifting(2)
    cache.attach(unet)
    for k in range(4):
        if k == 2:
            unet.load_state_dict(unets.make(LAYOUT, seed=9).state_dict())
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        if k == 2:
            assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k)))[0])
    report = cache.close()
    assert (report.full_calls, report.cached_calls, report.misses) == (2, 2, {Reason.WEIGHTS: 1})


def test_weights_merged_lazily_within_a_call_are_no_change(unet):
    """A1111 merges a LoRA in the layers' forwards, at the first call."""

    merged = []

    def merge(layer, _):
        if not merged:
            merged.append(layer.weight.add_(0.01))

    handle = unet.middle_block[0].in_layers[2].register_forward_pre_hook(merge)
    cache = session(3)
    cache.attach(unet)
    run(cache, unet, 3)
    handle.remove()
    assert merged and cache.close().misses == {}


def test_another_unet_object(unet):
    other, cache, latent = unets.make(LAYOUT, seed=9), session(4), drifting(2)
    cache.attach(unet)
    for k in range(2):
        evaluate(cache, unet, k, latent(k), call(x=latent(k)))
    cache.attach(other)
    for k in (2, 3):
        (output,) = evaluate(cache, other, k, latent(k), call(x=latent(k)))
    assert len(unet._forward_hooks) == 0
    report = cache.close()
    assert (report.full_calls, report.cached_calls, report.misses) == (2, 2, {Reason.WEIGHTS: 1})
    _, feature = unets.by_hand(other, 0, **call(x=scaled(latent(2), 2)))
    assert torch.equal(output, unets.by_hand(other, 0, feature, **call(x=scaled(latent(3), 3)))[0])


def test_in_place_writers_cannot_spoil_a_kept_feature(unet, monkeypatch):
    """FreeU puts its own `cat` into the module of the UNet, and writes into the tensor it is given."""

    class FreeU:
        @staticmethod
        def cat(tensors, dim):
            tensors[0][:, : tensors[0].shape[1] // 2].mul_(1.4)
            return torch.cat(tensors, dim)

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(openaimodel, "th", FreeU())
    latent, cache, feature = drifting(2), session(4), None
    cache.attach(unet)
    for k in range(4):
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        now = call(x=scaled(latent(k), k))
        expected, kept = unets.by_hand(
            unet,
            0,
            None if feature is None else feature.clone(),
            **now,
            cat=lambda t, dim: FreeU.cat([t[0].clone(), t[1]], dim),
        )
        feature = kept if feature is None else feature
        assert torch.equal(output, expected)
    cache.close()


def test_nothing_is_left_after_a_pass(unet):
    before, cache = unets.traces(unet), session(3, estimator=Forecast())
    cache.attach(unet)
    run(cache, unet, 8)
    tensors = [
        weakref.ref(feature)
        for slot in cache.decisions._slots._slots.values()
        for those in slot.kept.values()
        for kept in those
        for feature in kept.features
    ]
    assert len(tensors) == 3
    report = cache.close()
    assert unets.traces(unet) == before
    gc.collect()
    assert all(ref() is None for ref in tensors)
    assert report.kept_bytes == 3 * 2 * 32 * 8 * 8 * 4  # three features of 2 x 32 x 8 x 8 floats
    unet_ref = weakref.ref(cache)
    del cache
    gc.collect()
    assert unet_ref() is None


def test_windows_that_move_do_not_pile_up(unet):
    latent, cache = drifting(8), session(3)
    cache.attach(unet)
    for k in range(30):
        first = k % 7
        evaluate(cache, unet, k, latent(k), call(x=latent(k)[first : first + 2]))
        assert len(cache.decisions._slots) <= 6
    cache.close()


def test_a_parked_session_that_ends_inside_anothers_call(unet):
    """Python's collector may end a crashed generation at any time: what is on the UNet by then is another's."""
    parked, cache = session(3), session(3)
    parked.attach(unet)
    run(parked, unet, 2)
    parked.unhook()
    cache.attach(unet)
    handle = unet.input_blocks[0].register_forward_hook(lambda *_: parked.close() and None)
    outputs = run(cache, unet, 6)
    handle.remove()
    assert all(map(torch.equal, outputs, expected_copy(unet, 6, 3, 0)))
    report = cache.close()
    assert (report.off, report.full_calls, report.cached_calls) == ("", 2, 4)


def test_a_nested_call_of_the_same_unet(unet):
    latent, cache, seen = drifting(2), session(3), []
    cache.attach(unet)

    def call_again(*_):
        handle.remove()
        seen.append(unet(**call()))

    for k in range(3):
        handle = unet.output_blocks[-1].register_forward_pre_hook(call_again)
        evaluate(cache, unet, k, latent(k), call(x=latent(k)))
    assert all(torch.equal(s, unets.by_hand(unet, 0, **call())[0]) for s in seen)
    report = cache.close()
    assert (report.full_calls, report.cached_calls) == (1, 2)


def test_another_thread_passes_through(unet):
    cache, out = session(3), []
    cache.attach(unet)
    run(cache, unet, 1)
    cache.tick(lambda: drifting(2)(1), sigma(1))

    def elsewhere():
        with torch.no_grad():
            out.append(unet(**call()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert torch.equal(out[0], unets.by_hand(unet, 0, **call())[0])
    assert cache.close().misses == {Reason.OUTSIDE: 1}


@pytest.mark.parametrize("estimator", [Copy(), Forecast()], ids=["copy", "forecast"])
def test_conditioning_that_changed_at_a_planned_full_call(unet, estimator):
    """What a slot goes by is renewed, and no forecast reaches back over the change."""
    cache, other = session(2, estimator=estimator), torch.randn(2, 77, 64)
    cache.attach(unet)
    latent, feature = drifting(2), None
    for k in range(4):
        arguments = {"x": latent(k), **({"context": other} if k >= 2 else {})}
        (output,) = evaluate(cache, unet, k, latent(k), call(**arguments))
        now = call(**{**arguments, "x": scaled(latent(k), k)})
        expected, feature = unets.by_hand(unet, 0, feature if k % 2 else None, **now)
        assert torch.equal(output, expected)
    assert cache.close().cached_calls == 2


def test_without_a_unet_no_call_is_missed(unet):
    """Where the plan caches nothing nobody attaches it, and who has turned it off detaches it."""
    cache, arguments = session(3), call()
    cache.tick(lambda: arguments["x"])
    assert cache.before(unet, (), arguments) is None
    cache.attach(unet)
    cache.turn_off("told so")
    assert cache.before(unet, (), arguments) is None
    assert cache.close().misses == {}


def test_a_branch_that_the_model_has_not(unet):
    cache = session(3, 6)
    cache.attach(unet)
    assert cache.report.off == "cache_branch_id = 6 is not allowed: this UNet has the branches 0 to 5"


@pytest.mark.sample
@pytest.mark.parametrize("size", [(8, 8), (9, 15), (7, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_odd_sizes_and_other_types(size, dtype, monkeypatch):
    """A1111 lets any size run by giving the UNet's module a `cat` that stretches, and casts the time embedding."""

    def cat(tensors, dim):
        h, skip = tensors
        if h.shape[-2:] != skip.shape[-2:]:
            h = torch.nn.functional.interpolate(h, skip.shape[-2:], mode="nearest")
        return torch.cat([h, skip], dim)

    class Stretching:
        def __getattr__(self, name):
            return cat if name == "cat" else getattr(torch, name)

    def embedding(*args, **kwargs):
        return timestep_embedding(*args, **kwargs).to(dtype)

    timestep_embedding = unets.timestep_embedding
    monkeypatch.setattr(openaimodel, "th", Stretching())
    monkeypatch.setattr(ldm_attention, "_ATTN_PRECISION", "fp16")
    monkeypatch.setattr(openaimodel, "timestep_embedding", embedding)
    monkeypatch.setattr(unets, "timestep_embedding", embedding)
    unet = unets.make(LAYOUT).to(dtype)
    unet.dtype = dtype
    for norm in unet.modules():
        if type(norm).__name__ == "GroupNorm32":  # ldm normalises in float32
            norm.float()
    arguments = {k: v.to(dtype) if v.is_floating_point() else v for k, v in unets.inputs(LAYOUT, size=size).items()}
    latent, cache, feature = drifting(2, size=size), session(2, 0), None
    cache.attach(unet)
    for k in range(4):
        x = latent(k).to(dtype)
        (output,) = evaluate(cache, unet, k, x, {**arguments, "x": x})
        now = {**arguments, "x": scaled(x, k)}
        expected, feature = unets.by_hand(unet, 0, feature if k % 2 else None, **now, cat=cat)
        assert torch.equal(output, expected)
    assert cache.close().cached_calls == 2


def test_moments():
    assert Moment(0, 0.0).log_sigma is None
    assert Moment(0).log_sigma is None
    assert Moment(3, 1.0).log_sigma == 0.0
