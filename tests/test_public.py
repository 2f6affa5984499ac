"""What other extensions ask, on a real UNet."""

import gc
import threading
import weakref

import pytest
import torch

from deepcache_ext import public
from deepcache_ext.report.pass_report import Reason
from tests import unets
from tests.driver import LAYOUT, call, drifting, evaluate, run, scaled, session, sigma


@pytest.fixture(scope="module")
def unet():
    return unets.make(LAYOUT)


def told(unet, cache, evaluations):
    """`is_cached` as seen from a block in each call."""
    seen = []
    handle = unet.out.register_forward_hook(lambda *_: seen.append(public.is_cached()))
    try:
        run(cache, unet, evaluations)
    finally:
        handle.remove()
    return seen


@torch.no_grad()
def test_is_cached_says_what_each_call_is(unet):
    cache = session(interval=3)
    cache.attach(unet)
    assert told(unet, cache, 6) == [False, True, True, False, True, True]
    assert not public.is_cached()
    cache.close()
    assert told(unet, session(interval=3), 2) == [False, False]  # never attached


@torch.no_grad()
def test_force_full_holds_for_one_evaluation(unet):
    cache, latent = session(interval=3), drifting(2)
    cache.attach(unet)
    for k in range(6):
        if k == 1:
            # As a callback does between the tick and the call.
            cache.tick(lambda: latent(1), sigma(1))
            public.force_full()
            arguments = {**call(), "x": scaled(latent(1), 1)}
            ours = unet(**arguments)
            cache.pause()
            plain = unet(**arguments)
            assert torch.equal(ours, plain)
        else:
            evaluate(cache, unet, k, latent(k), call() | {"x": latent(k)})
    report = cache.close()
    assert report.misses == {Reason.ASKED: 1, Reason.OUTSIDE: 1}  # the plain call above
    assert (report.full_calls, report.cached_calls) == (3, 3)


@torch.no_grad()
def test_it_holds_nothing_and_does_nothing_when_off(unet):
    public.force_full()
    assert not public.is_cached()
    cache = session(interval=3)
    cache.attach(unet)
    cache.tick(lambda: None)
    alive = weakref.ref(cache)
    cache.detach()
    del cache
    gc.collect()
    assert alive() is None
    assert not public.is_cached()


@torch.no_grad()
def test_a_parked_pass_does_not_end_the_one_above_it(unet):
    below, above = session(), session()
    below.attach(unet)
    below.tick(lambda: None)
    below.unhook()
    above.attach(unet)
    above.tick(lambda: None)
    below.pause()
    assert public._sessions() == [above]
    above.close()


@torch.no_grad()
def test_two_unets_in_turns(unet):
    """Each with two calls an evaluation; the other one is full when it is cached."""
    both, seen = {unet: session(interval=2), unets.make(LAYOUT, seed=1): session(interval=1)}, []
    latent = drifting(1)
    handles = [one.out.register_forward_hook(lambda *_: seen.append(public.is_cached())) for one in both]
    for one, cache in both.items():
        cache.attach(one)
    for k in range(4):
        for cache in both.values():
            cache.tick(lambda k=k: latent(k), sigma(k))
        for seed in (0, 1):
            for one in both:
                one(**call(rows=1, seed=seed, x=scaled(latent(k), k)))
    for handle in handles:
        handle.remove()
    assert seen == ([False] * 4 + [True, False] * 2) * 2
    assert [cache.close().cached_calls for cache in both.values()] == [4, 0]
    assert not public._under_way


@torch.no_grad()
def test_all_of_several_unets_are_asked_for_full(unet):
    """Who is meant cannot be known."""
    both, latent = {unet: session(), unets.make(LAYOUT, seed=1): session()}, drifting(1)
    for one, cache in both.items():
        cache.attach(one)
    for k in range(3):
        for cache in both.values():
            cache.tick(lambda k=k: latent(k), sigma(k))
        for seed in (0, 1):
            if (k, seed) == (1, 1):
                public.force_full()
            for one in both:
                one(**call(rows=1, seed=seed, x=scaled(latent(k), k)))
    for cache in both.values():
        assert cache.close().misses == {Reason.ASKED: 1, Reason.TOGETHER: 2}


@torch.no_grad()
def test_it_speaks_of_the_inner_call_and_of_its_own_thread(unet):
    inner, latent, seen = unets.make(LAYOUT, seed=1), drifting(1), []
    outer_cache, inner_cache = session(interval=2), session(interval=1)

    def ask(*_):
        seen.append(public.is_cached())

    def nest(*_):
        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        inner(**call(rows=1, x=scaled(latent(1), 1)))
        ask()

    handles = [unet.out.register_forward_pre_hook(nest), inner.out.register_forward_pre_hook(ask)]
    for one, cache in ((unet, outer_cache), (inner, inner_cache)):
        cache.attach(one)
    for k in range(2):
        inner_cache.tick(lambda: latent(1), sigma(1))
        evaluate(outer_cache, unet, k, latent(k), call(rows=1, x=latent(k)))
    for handle in handles:
        handle.remove()
    outer_cache.close(), inner_cache.close()
    assert seen == [False] * 4 + [True, False, False, True]
