"""A session, and what torch itself makes of a call: derivatives, tracing, replicas and copies, autocast."""

import copy
import warnings

import pytest
import torch
from torch.autograd import forward_ad

from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.report.pass_report import Reason
from tests import unets
from tests.driver import call, drifting, evaluate, expected_copy, run, scaled, session, sigma
from tests.tracing import TRACING

pytestmark = pytest.mark.usefixtures("no_grad")


def test_gradients_are_not_cut_off(unet):
    cache, latent = session(2), drifting(2)
    cache.attach(unet)
    run(cache, unet, 1)
    x = latent(1).clone().requires_grad_()
    with torch.enable_grad():
        cache.tick(lambda: latent(1), sigma(1))
        unet(**call(x=x)).sum().backward()
    with torch.enable_grad():
        y = latent(1).clone().requires_grad_()
        unets.by_hand(unet, 0, **call(x=y))[0].sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert cache.close().misses == {Reason.GRADIENT: 1}


def test_gradients_of_deep_parameters_are_not_lost(unet):
    """A training loop asks for none of x: here all is frozen but one layer that a cached call would skip."""
    cache, deep = session(2), unet.middle_block[0].in_layers[2].weight
    unet.requires_grad_(False)
    cache.attach(unet)
    for asked in (True, False):
        deep.requires_grad_(asked)
        with torch.enable_grad():
            for k in (0, 1):
                (output,) = evaluate(cache, unet, k, drifting(2)(k), call(x=drifting(2)(k)))
        assert output.requires_grad is asked
    report = cache.close()
    assert (report.cached_calls, report.misses) == (1, {Reason.GRADIENT: 1})


def test_gradients_of_what_a_hook_adds_are_not_lost(unet):
    """Somebody trains what it adds to a live block; the UNet is frozen, and no argument asks for gradients."""
    cache, latent, added = session(2), drifting(2), torch.zeros(32, 1, 1, requires_grad=True)
    handle = unet.input_blocks[0].register_forward_hook(lambda _, args, h: h + added)

    def gradient(k):
        return torch.autograd.grad(unet(**call(x=scaled(latent(k), k))).sum(), added)[0]

    with torch.enable_grad():
        expected = [gradient(k) for k in range(4)]
        cache.attach(unet)
        for k in range(4):
            cache.tick(lambda k=k: latent(k), sigma(k))
            assert torch.equal(gradient(k), expected[k])
    handle.remove()
    report = cache.close()
    assert (report.fraction, report.misses) == ("4 of 4 full", {Reason.GRADIENT: 2})


def dual(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x))).tangent.clone()


@pytest.mark.parametrize("way", [dual, lambda f, x: torch.func.jvp(f, (x,), (x,))[1]], ids=["dual", "jvp"])
def test_tangents_are_not_cut_off(unet, way):
    """Forward-mode derivatives, which no_grad leaves on."""
    cache, latent, arguments = session(2), drifting(2), call()
    for k in range(3):
        cache.attach(unet)
        cache.tick(lambda k=k: latent(k), sigma(k))
        tangent = way(lambda x: unet(**{**arguments, "x": x}), scaled(latent(k), k))
        cache.unhook()
        assert torch.equal(tangent, way(lambda x: unet(**{**arguments, "x": x}), scaled(latent(k), k)))
    report = cache.close()
    assert (report.fraction, report.misses) == ("3 of 3 full", {Reason.GRADIENT: 1})


def test_tracing_and_replicas_pass_through(unet):
    cache, latent = session(2), drifting(2)
    cache.attach(unet)
    run(cache, unet, 1)
    replica = unet._replicate_for_data_parallel()
    cache.tick(lambda: latent(1), sigma(1))
    arguments = call(x=latent(1))
    assert torch.equal(replica(**arguments), unets.by_hand(unet, 0, **arguments)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.trace(unet, tuple(arguments.values()), check_trace=False)
    report = cache.close()
    assert report.cached_calls == 0
    assert report.misses[Reason.REPLICA] == 1 and report.misses[Reason.TRACED] == 1


@pytest.mark.parametrize("at", [3, 4], ids=["full", "cached"])
@pytest.mark.parametrize("way", ["make_fx", "fake", "vmap", "functionalize"])
def test_a_call_without_numbers_in_mid_run(unet, way, at):
    """As a sampler's call that is recorded or transformed: it is full, and nothing else is lost."""
    cache, latent, arguments = session(3), drifting(2), call()
    cache.attach(unet)
    for k in range(7):
        if k != at:
            evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            continue
        cache.tick(lambda: latent(at), sigma(at))
        TRACING[way](lambda x: unet(**{**arguments, "x": x}), scaled(latent(at), at))
        cache.pause()
    report = cache.close()
    assert (report.off, report.evaluations, report.cached_calls) == ("", 7, 3 if at == 3 else 2)
    assert report.misses == ({Reason.TOGETHER: 1} if at == 3 else {Reason.TRACED: 1, Reason.TOGETHER: 1})


def test_a_copy_of_the_unet_made_in_mid_pass_is_left_alone(unet):
    latent, cache = drifting(2), session(3)
    cache.attach(unet)
    evaluate(cache, unet, 0, latent(0), call(x=latent(0)))
    cache.tick(lambda: latent(1), sigma(1))
    twin = copy.deepcopy(unet)
    assert all(hook.is_inert for hook in (*twin._forward_pre_hooks.values(), *twin._forward_hooks.values()))
    now = call(x=scaled(latent(1), 1))
    _, feature = unets.by_hand(unet, 0, **call(x=scaled(latent(0), 0)))
    assert torch.equal(twin(**now), unets.by_hand(unet, 0, **now)[0])
    assert torch.equal(unet(**now), unets.by_hand(unet, 0, feature, **now)[0])
    report = cache.close()
    assert (report.full_calls, report.cached_calls, report.misses) == (1, 1, {})
    assert torch.equal(twin(**now), unets.by_hand(unet, 0, **now)[0])


@pytest.mark.parametrize("at", [0, 1], ids=["full", "cached"])
def test_a_copy_of_the_unet_made_inside_a_call_is_a_plain_one(unet, at):
    """By an extension in a live block. Nothing of ours is left on it, and it can be cached itself."""
    cache, twins = session(3, 2), []
    handle = unet.out.register_forward_pre_hook(lambda *_: twins.append(copy.deepcopy(unet)))
    cache.attach(unet)
    run(cache, unet, at + 1)
    cache.close()
    handle.remove()
    twin = twins[at]
    twin.out._forward_pre_hooks.clear()
    own = session(3, 2)
    own.attach(twin)
    assert all(map(torch.equal, run(own, twin, 4), expected_copy(unet, 4, 3, 2)))
    assert own.close().fraction == "2 of 4 full" and unets.traces(twin) == unets.traces(unet)


def test_autocast(unet):
    latent, cache, feature = drifting(2), session(2), None
    cache.attach(unet)
    with torch.autocast("cpu", torch.bfloat16):
        for k in range(4):
            (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            now = call(x=scaled(latent(k), k))
            expected, feature = unets.by_hand(unet, 0, feature if k % 2 else None, **now)
            assert torch.equal(output, expected)
    assert cache.close().cached_calls == 2


@pytest.mark.parametrize("estimator", [Copy(), Forecast()], ids=["copy", "forecast"])
@pytest.mark.parametrize("on", [lambda k: k >= 4, lambda k: k < 4], ids=["begins", "ends"])
def test_autocast_that_begins_or_ends_in_mid_run(unet, on, estimator):
    """What was kept in one mode is not used in the other."""
    latent, cache = drifting(2), session(3, estimator=estimator)
    cache.attach(unet)
    for k in range(7):
        with torch.autocast("cpu", torch.bfloat16, enabled=on(k)):
            (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            if k == 4:
                assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k)))[0])
    report = cache.close()
    assert (report.fraction, report.misses, report.off) == ("4 of 7 full", {Reason.FIRST_SEEN: 1}, "")
