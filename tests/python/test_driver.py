"""The driver of UNets whose host announces nothing: nested and broken calls, loops that end early, copies.

The same of SD.Next's adapter is in tests/hosts/test_sdnext.py.
"""

import contextlib
import copy
import logging
import threading

import pytest
import torch

from deepcache_ext import DeepCache
from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.python import driver as driver_module
from deepcache_ext.python.driver import Driver, Here
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from deepcache_ext.unet.diffusers import DiffusersLadder
from tests import diffusers_unets as unets
from tests.diffusers_pipelines import run, shared
from tests.python.loops import THIRD, XL, alive, call, picture, same

pytestmark = pytest.mark.usefixtures("quiet")


class CtrlC(BaseException):
    """As KeyboardInterrupt is: torch calls no hook after it."""


# Calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_call_inside_a_call_changes_nothing(unet, at):
    """In the deepest block of a full call, in a live one of a cached call; it runs in full, the outer one goes on."""
    plain = call(unet, 0, 500.0, seed=7)
    with DeepCache(unet, **THIRD):
        expected = picture(unet)
    seen, found = [], []

    def nest(*_):
        seen.append(1)
        if len(seen) == at + 1:
            found.append(call(unet, 0, 500.0, seed=7))

    handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(nest)
    with DeepCache(unet, **THIRD) as cache:
        got = picture(unet)
    handle.remove()
    assert same(got, expected) and torch.equal(found[0], plain)
    (report,) = cache.report().passes
    assert (report.evaluations, report.cached_calls) == (7, 4)


@pytest.mark.parametrize("other", [False, True], ids=["same thread", "other thread"])
@pytest.mark.parametrize("at", [0, 1], ids=["full", "cached"])
def test_a_call_that_no_hook_sees_the_end_of(unet, at, other):
    """Ctrl-C and its like. The next call, whoever's, clears up after it; nobody waits for it."""
    with DeepCache(unet, **THIRD):
        expected = picture(unet)
    held, seen = [], []  # else the end of the loop shows, and all is cleared up at once
    is_over, go = threading.Event(), threading.Event()

    def stop(*_):
        seen.append(1)
        if len(seen) == at + 1:
            raise CtrlC

    def broken_off():
        with pytest.raises(CtrlC), torch.no_grad():
            picture(unet, held=held)
        is_over.set()
        if other:
            go.wait(60)

    handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(stop)
    thread = threading.Thread(target=broken_off)
    with DeepCache(unet, **THIRD) as cache:
        (thread.start if other else broken_off)()
        assert is_over.wait(60)
        handle.remove()
        assert {"down_blocks", "mid_block", "up_blocks"} & set(vars(unet))
        assert same(picture(unet), expected)
        assert sorted(p.evaluations for p in cache.report().passes) == [at, 7]
        go.set()
    if other:
        thread.join(60)


def test_without_always_call_an_exception_is_cleared_up_by_the_next_call(unet, monkeypatch):
    """torch 2.0 calls no hook after any exception."""
    with DeepCache(unet, **THIRD):
        expected = picture(unet)
    plain = torch.nn.Module.register_forward_hook
    as_in_torch_2_0 = lambda self, hook, *, with_kwargs=False: plain(self, hook, with_kwargs=with_kwargs)  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", as_in_torch_2_0)
    with DeepCache(unet, **THIRD) as cache:
        handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            picture(unet)
        handle.remove()
        assert same(picture(unet), expected)
        assert [p.evaluations for p in cache.report().passes] == [0, 7]


def test_calls_are_counted_anew_in_each_pass(unet):
    """A pass of one evaluation with two calls, after one with a single call in each: it has both."""
    with DeepCache(unet, **THIRD) as cache:
        picture(unet, calls=1)
        picture(unet, calls=2, start=6)
        picture(unet, calls=2)
        picture(unet, calls=1)
    assert [(p.evaluations, p.full_calls, p.cached_calls) for p in cache.report().passes] == [
        (7, 3, 4),
        (1, 2, 0),
        (7, 6, 8),
        (7, 3, 4),
    ]


def test_calls_whose_number_varies(unet):
    """Guidance that pauses at one evaluation: the last one's second call belongs to the pass all the same."""
    with DeepCache(unet, **THIRD) as cache:
        for k, t in enumerate(torch.arange(900, 300, -100)):
            for text in range(1 if k == 4 else 2):
                call(unet, k, t, text=text)
    (report,) = cache.report().passes
    assert (report.full_calls, report.cached_calls) == (4, 7)
    assert (report.evaluations, report.mixed_evaluations) == (6, 0)


def test_a_pass_that_caches_nothing_has_no_misses(unet):
    """Its calls are full, as planned."""
    plain = picture(unet)
    with DeepCache(unet, cache_interval=1, estimator="copy") as cache:
        assert same(picture(unet), plain)
        (report,) = cache.report().passes
        assert (report.full_calls, report.full_evaluations, dict(report.misses)) == (7, 7, {})
    with DeepCache(unet, **THIRD) as cache:
        own, unet.forward = unet.forward, lambda *args, **kwargs: type(unet).forward(unet, *args, **kwargs)
        try:
            assert same(picture(unet), plain)
        finally:
            del unet.forward
        (report,) = cache.report().passes
    assert own.__self__ is unet and "replaced" in report.off
    # Whether a forward that nobody knows runs the whole UNet is not known either: nothing is called full.
    assert (report.full_calls, report.evaluations, dict(report.misses)) == (0, 0, {})


# Loops that end before their list ------------------------------------------------------------------------------


def test_the_list_is_shared_with_a_refiner():
    """`denoising_end`: the pipeline leaves the end of the scheduler's list to another one."""
    pipe = shared(XL)
    before, held, decode = unets.traces(pipe.unet), [], pipe.vae.decode

    def look(*args, **kwargs):
        held.append(alive("Kept", "Slot"))
        return decode(*args, **kwargs)

    with DeepCache(pipe, **THIRD) as cache:
        run(pipe, XL, steps=10, denoising_end=0.6)
        assert alive("Kept", "Slot") == [] and not cache._driver.sessions
        pipe.vae.decode = look
        try:
            run(pipe, XL, steps=10, denoising_end=0.6, output_type="np")
        finally:
            del pipe.vae.decode
    assert held == [[]]
    assert [p.evaluations for p in cache.report().passes] == [6, 6]
    assert unets.traces(pipe.unet) == before


def broken_off(unet, how):
    def stop(*_):
        if how == "ctrl-c":
            raise CtrlC

    for k, t in enumerate(torch.arange(900, 200, -100)):
        handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(stop) if k == 4 else None
        try:
            call(unet, k, t)
        finally:
            if handle is not None:
                handle.remove()
        if k == 4 and how == "break":
            break
        if k == 4:
            raise ArithmeticError


@pytest.mark.parametrize("how", ["break", "raise", "ctrl-c"])
def test_a_loop_that_is_broken_off_leaves_nothing(unet, how):
    with DeepCache(unet, **THIRD) as cache:
        with contextlib.suppress(ArithmeticError, CtrlC):
            broken_off(unet, how)
        assert alive("Kept", "Slot") == []
        assert [p.evaluations for p in cache.report().passes] == [4 if how == "ctrl-c" else 5]  # in its call, or after


def test_elements_that_are_made_one_by_one(unet):
    """An element that goes is then no end."""
    timesteps = torch.arange(900, 200, -100)
    with DeepCache(unet, **THIRD):
        expected = picture(unet)
    with DeepCache(unet, **THIRD) as cache:
        assert same([call(unet, k, timesteps[k]) for k in range(7)], expected)
    assert [p.evaluations for p in cache.report().passes] == [7]


def test_elements_that_somebody_holds_for_a_while(unet):
    """The end of a loop is then seen where there is none: it costs one pass, and is not believed again."""
    timesteps, last = torch.arange(900, -100, -100), []
    with DeepCache(unet, **THIRD) as cache:
        for _ in range(2):
            for k in range(10):
                t = timesteps[k]
                call(unet, k, t)
                last[:] = [*last[-1:], t]
                del t
            last.clear()
        assert [p.evaluations for p in cache.report().passes] == [3, 7, 10]


# Copies -----------------------------------------------------------------------------------------------------


def test_a_copy_is_plain_and_can_be_enabled(unet):
    plain = picture(unet)
    with DeepCache(unet, **THIRD):
        expected = picture(unet)
        twins = [copy.deepcopy(unet) for _ in range(2)]
    assert same(picture(twins[0]), plain)
    for twin in twins:
        with DeepCache(twin, **THIRD):
            assert len(twin._forward_pre_hooks) == 1  # no inert one
            assert same(picture(twin), expected)
        assert not twin._forward_pre_hooks and not twin._forward_hooks


@pytest.mark.parametrize("branch", [0, 1, 4])
def test_a_copy_made_inside_a_call_is_plain(unet, branch):
    """In a full call and in a cached one, which may end within a block."""
    plain, twins, before = picture(unet), [], unets.traces(unet)
    handle = unet.conv_out.register_forward_pre_hook(lambda *_: twins.append(copy.deepcopy(unet)))
    with DeepCache(unet, **{**THIRD, "cache_branch_id": branch}):
        picture(unet)
    handle.remove()
    for twin in twins[:2]:
        twin.conv_out._forward_pre_hooks.clear()
        assert same(picture(twin), plain) and unets.traces(twin) == before


# Errors of our own ------------------------------------------------------------------------------------------


def driven(unet, **changes):
    """A driver of uniform sessions, and what its user was told."""
    told = []

    def begin(here, clock):
        told.append("begin")
        return Session(UniformPlan(3, 1, 7), Copy(), ladder=DiffusersLadder)

    given = {"here": Here, "begin": begin, "end": lambda session: told.append(session.close()), "say": told.append}
    return Driver(unet, failed=lambda: told.append("failed"), **{**given, **changes}), told


@pytest.mark.parametrize("where", ["here", "begin", "end", "clock"])
def test_an_error_of_ours_leaves_the_pictures_alone(unet, monkeypatch, where):
    plain = picture(unet)
    if where == "clock":
        monkeypatch.setattr(driver_module.Clock, "look", lambda *_: 1 / 0)
        driver, told = driven(unet)
    else:
        driver, told = driven(unet, **{where: lambda *_: 1 / 0})
    got = picture(unet)
    driver.release()
    assert "failed" in told and not alive("Kept", "Slot")
    if where != "end":
        assert same(got, plain)


def test_deepcache_says_an_error_of_its_own_once(unet, monkeypatch, caplog):
    plain = picture(unet)
    monkeypatch.setattr(driver_module.Clock, "look", lambda *_: 1 / 0)
    with DeepCache(unet, **THIRD), caplog.at_level(logging.ERROR, "deepcache"):
        assert same(picture(unet), plain)
    assert [record.message.partition(";")[0] for record in caplog.records] == ["error inside DeepCache"]
    monkeypatch.undo()
    with DeepCache(unet, **THIRD) as cache:
        picture(unet)
    assert cache.report().passes[0].cached_calls == 4


def test_no_call_is_a_real_one_while_it_is_compiled():
    """Nothing is looked at then, nothing is cached, and nothing waits."""

    class Doubling(torch.nn.Module):
        def forward(self, sample, timestep):
            return 2 * sample

    unet, x, t = Doubling(), torch.ones(1, 1), torch.arange(9, 0, -1)[0]
    driver, told = driven(unet)
    unet.compile(backend="eager", fullgraph=True)
    assert torch.equal(unet(x, t), 2 * x) and told == []
    unet._compiled_call_impl = None
    assert torch.equal(unet(x, t), 2 * x) and told[0] == "begin"
    driver.release()
    assert not unet._forward_pre_hooks


def test_somebody_above_who_leaves_calls_out(unet):
    """A forecaster in the pipeline's loop: both would act at once, and what is not seen is not told as full."""
    with DeepCache(unet, **THIRD) as cache:
        for k, t in enumerate(torch.arange(900, 0, -100)):
            if k < 3 or k % 2 == 0:
                call(unet, k, t)
    (told,) = cache.report().passes
    assert told.off == Reason.NO_CALL.value and told.fraction == "1 of 3 full"


def test_calls_of_the_class_that_somebody_replaced(unet, monkeypatch):
    monkeypatch.setattr(type(unet), "__call__", lambda self, *a, **k: torch.nn.Module.__call__(self, *a, **k), False)
    with DeepCache(unet, **THIRD) as cache:
        outputs = picture(unet)
    (told,) = cache.report().passes
    assert "replaced the calls of the UNet's class" in told.off and told.cached_calls == 0
    assert same(outputs, picture(unet))


def test_another_key_is_another_pass(unet):
    keys = iter("aaabbbb")
    driver, told = driven(unet, here=lambda: Here(key=next(keys)))
    picture(unet)
    driver.release()
    reports = [one for one in told if not isinstance(one, str)]
    assert [r.evaluations for r in reports] == [3, 4] and reports[1].misses == {}


def test_calls_that_are_not_ours_run_untouched(unet):
    plain = picture(unet)
    driver, told = driven(unet, here=lambda: None)
    assert same(picture(unet), plain) and told == []
    driver.release()


def test_what_cannot_be_cached_is_said(unet):
    too_deep = Session(UniformPlan(3, 20, 7), Copy(), ladder=DiffusersLadder)
    driver, told = driven(unet, begin=lambda here, clock: too_deep)
    picture(unet)
    driver.release()
    assert told[0].startswith("not active: cache_branch_id = 20") and len(told) == 2
    assert too_deep.report.off and too_deep.report.full_calls == 7 and not too_deep.report.misses


@pytest.mark.parametrize("begins_anew", [False, True])
@pytest.mark.parametrize(
    ("branch", "where"),
    [
        (1, "conv_in"),
        (1, "down_blocks.0.resnets.0"),
        (1, "down_blocks.0.attentions.0"),
        (2, "down_blocks.0.resnets.0"),
        (3, "down_blocks.0.downsamplers.0"),
        (4, "down_blocks.0.resnets.1"),
        (4, "down_blocks.1.attentions.0"),
        (1, "up_blocks.2.resnets.1"),
    ],
)
def test_taking_it_off_in_the_middle_of_a_cached_call(unet, branch, where, begins_anew):
    """On the way down the call becomes a full one; on the way up it ends as it began."""
    plain, seen = picture(unet), []
    cache = DeepCache(unet, cache_interval=3, cache_branch_id=branch, estimator="copy").enable()
    expected = picture(unet)

    def off(*_):
        seen.append(1)
        if len(seen) == 2:
            cache.new_run() if begins_anew else cache.disable()

    cache.new_run()
    handle = unet.get_submodule(where).register_forward_pre_hook(off)
    got = picture(unet)
    handle.remove()
    cache.disable()
    full = [1, 2, 5] if begins_anew else range(1, 7)
    assert [torch.equal(a, b) for a, b in zip(got, plain, strict=True)] == [
        k == 0 or (k in full and not (k == 1 and where.startswith("up"))) for k in range(7)
    ]
    assert not where.startswith("up") or torch.equal(got[1], expected[1])
    assert same(picture(unet), plain)


def test_taking_it_off_in_mid_call(unet):
    plain, seen = picture(unet), []
    cache = DeepCache(unet, **THIRD).enable()
    handle = unet.conv_out.register_forward_pre_hook(lambda *_: (seen.append(1), len(seen) == 3 and cache.disable())[0])
    picture(unet)
    handle.remove()
    assert [p.evaluations for p in cache.report().passes] == [2]  # nobody saw the third one end
    with cache:  # and on again
        picture(unet)
    assert same(picture(unet), plain)
