"""The driver of UNets whose host announces nothing: nested and broken calls, threads, loops that end early, copies.

The same of SD.Next's adapter is in tests/hosts/test_sdnext.py.
"""

import contextlib
import copy
import gc
import logging
import threading
import warnings

import pytest
import torch

from deepcache_ext import DeepCache
from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.python import driver as driver_module
from deepcache_ext.python.driver import Driver, Here
from deepcache_ext.python.turn import Turn
from deepcache_ext.session.session import Session
from deepcache_ext.unet.diffusers import DiffusersLadder
from tests import diffusers_unets as unets
from tests.diffusers_pipelines import build, run, shared

SD, XL = "StableDiffusion", "StableDiffusionXL"
THIRD = {"cache_interval": 3, "cache_branch_id": 1, "estimator": "copy"}


@pytest.fixture(autouse=True)
def quiet():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def made():
    return unets.make("sd1")


@pytest.fixture
def unet(made):
    """A UNet that must look untouched when the test is over."""
    before = unets.traces(made)
    yield made
    assert unets.traces(made) == before


def latent(k, seed=0):
    """x of a picture's evaluation k: it drifts."""
    base, drift = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return base * 0.97**k + 0.05 * k * drift


CONTEXT = unets.inputs("sd1")["encoder_hidden_states"]


def call(unet, k, timestep, seed=0, text=0):
    return unet(latent(k, seed), timestep, encoder_hidden_states=CONTEXT[text : text + 1]).sample


def picture(unet, seed=0, calls=1, start=0, held=None):
    """All outputs of a loop over a tensor of timesteps; its elements are put into the list `held`."""
    timesteps = torch.arange(900, 200, -100)[start:]
    if held is not None:
        held[:] = timesteps = list(timesteps)
    return [call(unet, k, t, seed, text) for k, t in enumerate(timesteps) for text in range(calls)]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def alive(*names):
    """Of our classes: torch's compiler has a Slot, too."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return [k.__name__ for k in kinds if k.__name__ in names and str(k.__module__).startswith("deepcache_ext.")]


def in_thread(task):
    """What `task()` gave in a thread of its own."""
    got = []
    thread = threading.Thread(target=lambda: got.append(torch.no_grad()(task)()))
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    return got[0]


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
    """Its calls are full, as planned; so they are once caching is off."""
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
    assert (report.full_calls, report.evaluations, dict(report.misses)) == (7, 0, {})


# Threads ----------------------------------------------------------------------------------------------------


def test_threads_have_passes_of_their_own(unet):
    """Two pictures at a time, evaluation by evaluation in turns."""
    with DeepCache(unet, **THIRD):
        expected = [picture(unet, seed=seed) for seed in (0, 1)]
    turns, got = [threading.Semaphore(1), threading.Semaphore(0)], {0: [], 1: []}

    @torch.no_grad()
    def work(seed):
        timesteps = torch.arange(900, 200, -100)
        for k, t in enumerate(timesteps):
            turns[seed].acquire(timeout=60)
            got[seed].append(call(unet, k, t, seed))
            turns[1 - seed].release()

    with DeepCache(unet, **THIRD) as cache:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [(p.evaluations, p.cached_calls) for p in cache.report().passes] == [(7, 4), (7, 4)]
    assert same(got[0], expected[0]) and same(got[1], expected[1])


@pytest.mark.parametrize("then", ["call", "disable"])
def test_nobody_meets_another_threads_shadows(unet, then):
    """A call, and who takes DeepCache off, wait for the call that is under way."""
    plain = call(unet, 0, 500.0, seed=7)
    with DeepCache(unet, **THIRD):
        expected = picture(unet)
    inside, go_on, seen, order = threading.Event(), threading.Event(), [], []

    def hold(*_):
        seen.append(1)
        if len(seen) == 2:  # the first cached call
            inside.set()
            go_on.wait(60)

    handle = unet.conv_out.register_forward_pre_hook(hold)
    cache, got = DeepCache(unet, **THIRD).enable(), []
    first = threading.Thread(target=lambda: got.append(torch.no_grad()(picture)(unet)))

    @torch.no_grad()
    def come_second():
        order.append("comes")
        if then == "call":
            got.append(call(unet, 0, 500.0, seed=7))
        else:
            cache.disable()
        order.append("done")

    second = threading.Thread(target=come_second)
    first.start()
    assert inside.wait(60)
    second.start()
    while not order:
        pass
    second.join(0.5)
    assert order == ["comes"] and second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(60)
        assert not thread.is_alive()
    handle.remove()
    cache.disable()
    if then == "call":
        assert torch.equal(got[0] if torch.is_tensor(got[0]) else got[1], plain)
        assert same(next(one for one in got if not torch.is_tensor(one)), expected)
    else:
        assert same(got[0][:2], expected[:2])


def test_a_thread_that_is_gone_leaves_nothing(unet):
    with DeepCache(unet, **THIRD) as cache:

        def half():
            t = torch.arange(900, 0, -100)
            for k in range(4):  # elements that are made when their turn comes: the loop's end does not show
                call(unet, k, t[k])

        in_thread(half)
        assert alive("Slot")
        call(unet, 0, torch.arange(900, 0, -100)[0])
        assert [(p.evaluations, p.full_calls) for p in cache.report().passes] == [(4, 2), (0, 1)]  # not over yet
        assert len(alive("Slot")) == 1


def test_a_turn_is_taken_and_given(unet):
    turn = Turn(unet)
    turn.take(by_call=False)
    assert turn.take_if_free() is None
    turn.give()
    assert turn.owner is None and turn.take_if_free() is not None
    waited = []
    other = threading.Thread(target=lambda: (turn.take(by_call=False), waited.append(1), turn.give()))
    other.start()
    other.join(0.3)
    assert not waited  # who wants no call to be under way is not run over, though no call of its own is seen
    turn.give()
    other.join(60)
    assert waited and turn.owner is None


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


def test_the_end_of_a_loop_while_another_thread_calls(unet):
    """What it kept goes when that call is over."""
    with DeepCache(unet, **THIRD) as cache:
        timesteps = list(torch.arange(900, 200, -100))
        for k in range(3):
            call(unet, k, timesteps[k])
        inside, go_on = threading.Event(), threading.Event()

        def hold(*_):
            inside.set()
            go_on.wait(60)

        handle = unet.conv_out.register_forward_pre_hook(hold)
        other = threading.Thread(target=lambda: torch.no_grad()(call)(unet, 0, torch.arange(900, 200, -100)[0]))
        other.start()
        assert inside.wait(60)
        timesteps.clear()
        assert len(alive("Slot")) == 1  # not waited for
        go_on.set()
        other.join(60)
        handle.remove()
        assert [p.evaluations for p in cache.report().passes] == [3, 0]  # the other one is under way
        assert len(cache._driver.sessions) == 1


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


def test_a_run_of_a_pipeline_in_each_of_two_threads():
    """Pipelines that share a UNet; DeepCache knows one of them."""
    pipe = build(SD)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    other = type(pipe)(**{**parts, "scheduler": copy.deepcopy(pipe.scheduler)}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    pipes, got = (pipe, other), {}
    with DeepCache(pipe, **THIRD):
        expected = [run(one, SD, seed=seed) for seed, one in enumerate(pipes)]
    gate = threading.Barrier(2)
    prompts = dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), pipe.encode_prompt("lower", "cpu", 1, True), strict=True)
    )
    with DeepCache(pipe, **THIRD):
        expected = [run(one, SD, seed=seed, prompt=None, **prompts) for seed, one in enumerate(pipes)]

    @torch.no_grad()
    def work(seed):
        gate.wait(60)
        got[seed] = run(pipes[seed], SD, seed=seed, prompt=None, **prompts)

    with DeepCache(pipe, **THIRD):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert all(torch.equal(got[seed], expected[seed]) for seed in (0, 1))


def test_gligens_boxes_that_end_in_mid_run():
    """Its pipeline switches the layers that see them off after the first steps."""
    unet, text = unets.make("sd1", attention_type="gated"), CONTEXT.shape[2]
    gligen = {
        "boxes": torch.tensor([[[0.1, 0.1, 0.6, 0.6]]]),
        "masks": torch.ones(1, 1),
        "positive_embeddings": torch.randn(1, 1, text, generator=torch.Generator().manual_seed(0)),
    }

    def outputs():
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            for module in unet.modules():
                if type(module).__name__ == "GatedSelfAttentionDense":
                    module.enabled = k < 4
            kwargs = {"cross_attention_kwargs": {"gligen": dict(gligen)}}
            found.append(unet(latent(k), t, encoder_hidden_states=CONTEXT[:1], **kwargs).sample)
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD) as cache:
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k in (0, 3, 4, 6) for k in range(7)]
    assert cache.report().passes[0].misses


@pytest.mark.parametrize("was_on", [False, True])
def test_freeu_that_begins_in_mid_run(was_on):
    unet, free = unets.make("sd1"), {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
    if was_on:  # its numbers are None from then on
        unet.enable_freeu(**free)
        unet.disable_freeu()

    def outputs():
        unet.disable_freeu()
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            if k == 4:
                unet.enable_freeu(**free)
            found.append(call(unet, k, t))
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD):
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k in (0, 3, 4, 6) for k in range(7)]
