"""Several threads on one UNet whose host announces nothing: passes of their own, and nobody meets another's shadows."""

import copy
import threading

import pytest
import torch

from deepcache_ext import DeepCache
from deepcache_ext.python.turn import Turn
from tests.diffusers_pipelines import build, run
from tests.python.loops import SD, THIRD, alive, call, in_thread, picture, same

pytestmark = pytest.mark.usefixtures("quiet")


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
