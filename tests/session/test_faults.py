"""Errors in the UNet, interrupts, and errors of our own: the host goes on, and nothing is left."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.report.pass_report import Reason
from tests import unets
from tests.driver import call, drifting, evaluate, expected_copy, run, scaled, session, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


def fail_once(block, error):
    def fail(*_):
        handle.remove()
        raise error

    handle = block.register_forward_pre_hook(fail)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()], ids=["oom", "interrupt"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_exception_at_any_evaluation(unet, error, at):
    """Afterwards the UNet is clean, at the latest at the next tick; a retry gives the full picture."""
    latent, cache = drifting(2), session(3)
    cache.attach(unet)
    for k in range(5):
        if k == at:
            fail_once(unet.output_blocks[-1], error)
            with pytest.raises(type(error)):
                evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            cache.attach(unet)
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        if k == at and isinstance(error, RuntimeError):
            assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k)))[0])
    cache.close()


def test_after_an_error_the_unet_is_clean_at_once(unet):
    cache, before = session(3), unets.traces(unet)
    cache.attach(unet)
    run(cache, unet, 2)
    kept = [
        weakref.ref(feature)
        for slot in cache.decisions._slots._slots.values()
        for those in slot.kept.values()
        for kept in those
        for feature in kept.features
    ]
    unet.out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(cache, unet, 1)
    unet.out._forward_pre_hooks.clear()
    assert unets.traces(unet) == before
    gc.collect()
    assert kept and all(ref() is None for ref in kept)


def test_without_always_call_the_next_tick_clears_up(unet, monkeypatch):
    """torch 2.0 does not call a forward hook when the forward raised."""
    plain = type(unet).register_forward_hook

    def as_in_torch_2_0(self, hook, *, with_kwargs=False):
        return plain(self, hook, with_kwargs=with_kwargs)

    monkeypatch.setattr(type(unet), "register_forward_hook", as_in_torch_2_0)
    latent, cache, feature = drifting(2), session(3), None
    cache.attach(unet)
    for k in range(5):
        if k == 1:
            fail_once(unet.output_blocks[-1], RuntimeError("provoked"))
            with pytest.raises(RuntimeError):
                evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            continue
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        now = call(x=scaled(latent(k), k))
        expected, feature = unets.by_hand(unet, 0, feature if k % 3 else None, **now)
        assert torch.equal(output, expected)
    cache.tick(lambda: latent(5), sigma(5))
    fail_once(unet.output_blocks[-1], RuntimeError("provoked"))
    with pytest.raises(RuntimeError):
        unet(**call(x=scaled(latent(5), 5)))
    assert set(vars(unet)) & {"input_blocks", "output_blocks"}  # still up: nobody has come by
    assert cache.close().cached_calls == 2


@pytest.mark.parametrize("at", [2, 3, 4])
def test_an_interrupt_that_is_caught_and_the_call_made_again(unet, at):
    """torch asks no hook after what is no `Exception`: the next call is not one inside the one broken off."""
    latent, cache = drifting(2), session(3)
    cache.attach(unet)
    for k in range(7):
        cache.tick(lambda k=k: latent(k), sigma(k))
        if k == at:
            fail_once(unet.output_blocks[-1], KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                unet(**call(x=scaled(latent(k), k)))
        output = unet(**call(x=scaled(latent(k), k)))
        if k == at:
            assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k)))[0])
            assert not set(vars(unet)) & {"input_blocks", "middle_block", "output_blocks"}
    report = cache.close()
    assert report.fraction == "4 of 7 full"


@pytest.mark.parametrize("at", [3, 4])
def test_where_torchs_calls_are_made_in_another_way_none_counts_as_broken_off(unet, monkeypatch, at):
    """Somebody whom the user trusts replaced them: a call inside another one is taken for that."""
    plain, asked, cache, latent = nn.Module._call_impl, [], session(3), drifting(2)
    monkeypatch.setattr(nn.Module, "_call_impl", lambda module, *args, **kwargs: plain(module, *args, **kwargs))
    cache.attach(unet)

    def ask(*_):
        handle.remove()
        asked.append(unet(**call(seed=7)))

    outputs = []
    for k in range(at + 1):
        handle = unet.input_blocks[0].register_forward_pre_hook(ask)
        outputs += evaluate(cache, unet, k, latent(k), {**call(), "x": latent(k)})
    assert all(map(torch.equal, outputs, expected_copy(unet, at + 1, 3, 0)))
    assert all(torch.equal(one, unets.by_hand(unet, 0, **call(seed=7))[0]) for one in asked)
    assert cache.close().misses == {}


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize(
    "names", [["_forward_hooks"], ["_forward_pre_hooks"], ["_forward_hooks", "_forward_pre_hooks"]]
)
def test_hooks_that_somebody_cleared(unet, names, at):
    """As those do who clear all hooks of all modules: the evaluation that nobody sees is full and not counted, none of
    its calls is cached, and the next one goes on.
    """
    latent, cache, before = drifting(2), session(3), unets.traces(unet)
    cache.attach(unet)
    for k in range(9):
        cache.attach(unet)
        cache.tick(lambda k=k: latent(k), sigma(k))
        if k == at:
            for name in names:
                vars(unet)[name].clear()
        for seed in (0, 1):
            now = call(seed=seed, x=scaled(latent(k), k))
            output = unet(**now)
            if k == at:
                assert torch.equal(output, unets.by_hand(unet, 0, **now)[0])
            assert not set(vars(unet)) & {"input_blocks", "middle_block", "output_blocks"}
    report = cache.close()
    assert (report.off, report.fraction, report.cached_calls) == ("", "3 of 8 full", 10)
    assert unets.traces(unet) == before


def test_an_error_of_ours_never_stops_the_host(unet, monkeypatch):
    cache, latent, logged = session(3), drifting(2), []
    cache.attach(unet)
    run(cache, unet, 1)
    monkeypatch.setattr(Copy, "estimate", lambda *_: 1 / 0)
    monkeypatch.setattr(logging.getLogger("deepcache"), "handle", logged.append)
    (output,) = evaluate(cache, unet, 1, latent(1), call(x=latent(1)))
    assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(1), 1)))[0])
    evaluate(cache, unet, 2, latent(2), call(x=latent(2)))
    report = cache.close()
    assert report.off == Reason.ERROR.value and report.fraction == "3 of 3 full"
    assert [record.exc_info[0] for record in logged] == [ZeroDivisionError]


def test_a_call_that_the_forward_refuses_is_not_ours(unet):
    """Somebody forgets the latent and catches what that raises."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(6):
        cache.tick(lambda k=k: latent(k), sigma(k))
        with pytest.raises((TypeError, AttributeError)):
            unet(timesteps=torch.zeros(2))
        unet(**call(x=scaled(latent(k), k)))
        cache.pause()
    report = cache.close()
    assert (report.fraction, report.misses, report.off) == ("2 of 6 full", {}, "")


@pytest.mark.parametrize("at", [0, 1])
def test_the_host_sees_its_own_exception_whoever_hooks_behind_us(unet, at):
    """torch goes through the hooks themselves when a forward raises, and does not bear one that goes away."""
    latent, cache, before = drifting(2), session(3), unets.traces(unet)
    cache.attach(unet)
    others = unet.register_forward_hook(lambda *_: None)
    for k in range(at):
        evaluate(cache, unet, k, latent(k), call(x=latent(k)))
    fail_once(unet.output_blocks[-1], ZeroDivisionError("out of memory"))
    with pytest.raises(ZeroDivisionError, match="out of memory"):
        evaluate(cache, unet, at, latent(at), call(x=latent(at)))
    assert not set(vars(unet)) & {"input_blocks", "middle_block", "output_blocks"}
    assert not len(cache.decisions._slots)
    plain = unets.by_hand(unet, 0, **call())[0]
    assert torch.equal(unet(**call()), plain)  # ours may still be there, and do nothing
    cache.attach(unet)
    (output,) = evaluate(cache, unet, at, latent(at), call(x=latent(at)))
    assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(at), at)))[0])
    assert len(unet._forward_hooks) == 2 and len(unet._forward_pre_hooks) == before[0] + 1
    fail_once(unet.output_blocks[-1], ZeroDivisionError("out of memory"))
    with pytest.raises(ZeroDivisionError, match="out of memory"):
        evaluate(cache, unet, at + 1, latent(at + 1), call(x=latent(at + 1)))
    cache.close()
    others.remove()
    assert unets.traces(unet) == before


def test_our_own_error_over_the_hosts_exception(unet, monkeypatch):
    cache = session(3)
    cache.attach(unet)
    others = unet.register_forward_hook(lambda *_: None)
    run(cache, unet, 1)
    monkeypatch.setattr(logging.getLogger("deepcache"), "handle", lambda _: None)
    monkeypatch.setattr(cache, "unhook", lambda real=cache.unhook: (real(), monkeypatch.undo(), 1 / 0))
    fail_once(unet.output_blocks[-1], KeyError("the host's"))
    with pytest.raises(KeyError, match="the host's"):
        evaluate(cache, unet, 1, drifting(2)(1), call())
    others.remove()
    assert cache.close().off == Reason.ERROR.value
