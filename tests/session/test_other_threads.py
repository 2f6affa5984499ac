"""Calls of the same UNet from other threads while a call of ours is under way: nobody meets the other's blocks."""

import threading

import pytest
import torch

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from deepcache_ext.unet.forge import ForgeLadder
from deepcache_ext.unet.ladder import Walks
from deepcache_ext.unet.ldm import Ladder
from tests import forge_unets, unets
from tests.driver import LAYOUT, TRUSTED, call, drifting, evaluate, expected_copy, scaled, session, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def unet():
    return unets.make(LAYOUT)


class Elsewhere:
    """Asks the UNet about another latent in another thread, as `block` is about to run in evaluation `at`."""

    def __init__(self, unet, block, at):
        self.unet, self.at = unet, at
        self.mine, self.evaluation, self.asked = threading.get_ident(), None, []
        self.handle = block.register_forward_pre_hook(self._hook)

    def _hook(self, *_):
        if threading.get_ident() == self.mine and self.evaluation == self.at:
            thread = threading.Thread(target=self._ask)
            thread.start()
            thread.join()

    def _ask(self):
        arguments = call(seed=100 + len(self.asked))
        with torch.no_grad():
            self.asked.append((arguments, self.unet(**arguments)))

    def all_right(self):
        self.handle.remove()
        return [torch.equal(given, unets.by_hand(self.unet, 0, **arguments)[0]) for arguments, given in self.asked]


def play(cache, unet, others, evaluations=9):
    """Own outputs, and those that they should be: in full, or from the own feature before."""
    latent, arguments, feature = drifting(2), call(), None
    outputs, expected, modes = [], [], ""
    for k in range(evaluations):
        for other in others:
            other.evaluation = k
        full = cache.report.full_calls
        outputs += evaluate(cache, unet, k, latent(k), {**arguments, "x": latent(k)})
        modes += "C" if cache.report.full_calls == full else "F"
        for other in others:
            other.evaluation = None
        now = {**arguments, "x": scaled(latent(k), k)}
        output, kept = unets.by_hand(unet, 0, feature if modes[-1] == "C" else None, **now)
        expected.append(output)
        feature = feature if modes[-1] == "C" else kept
    return modes, all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("at", "modes"), [(3, "FCCFFCFCC"), (4, "FCCFCFFCC")])
def test_a_call_inside_a_call(unet, first, at, modes):
    """Of a full and of a cached call, before and after it asks for what was kept. It may be a part of the evaluation
    (prompt and negative prompt are asked at once): the next one is full.
    """
    block = unet.input_blocks[0] if first else unet.output_blocks[-1]
    other, cache = Elsewhere(unet, block, at), session(3)
    cache.attach(unet)
    assert play(cache, unet, [other]) == (modes, True)
    assert other.all_right() == [True]
    assert cache.close().misses == {Reason.OUTSIDE: 1, Reason.TOGETHER: 1}


def test_one_that_comes_before_the_own_walk_and_then_behind_it(unet):
    """The other's walk would be the first of a full call, and the own one the first of a cached call."""
    others = [Elsewhere(unet, unet.input_blocks[0], 0), Elsewhere(unet, unet.output_blocks[-1], 2)]
    cache = session(4)
    cache.attach(unet)
    assert play(cache, unet, others, 4) == ("FFCF", True)
    assert [other.all_right() for other in others] == [[True], [True]]
    assert cache.close().cached_calls == 1


@pytest.mark.parametrize("at", [3, 4])
def test_a_pass_that_another_thread_ends(unet, at):
    """Scripts are unloaded while a picture is under way: the call that runs keeps its blocks to its end."""
    cache, latent, before, threads = session(3), drifting(2), unets.traces(unet), []

    def end(*_):
        if len(outputs) == at and not threads:
            threads.append(threading.Thread(target=cache.close))
            threads[0].start()
            threads[0].join(0.2)

    outputs = []
    handle = unet.input_blocks[0].register_forward_pre_hook(end)
    cache.attach(unet)
    for k in range(6):
        cache.tick(lambda k=k: latent(k), sigma(k)) if not threads else None
        outputs.append(unet(**call(x=scaled(latent(k), k))))
    threads[0].join(20)
    handle.remove()
    assert all(map(torch.equal, outputs, expected_copy(unet, at + 1, 3, 0)))
    assert unets.traces(unet) == before and cache.close().evaluations == at + 1


@pytest.mark.parametrize("at", [3, 4])
def test_a_call_inside_one_whose_end_another_thread_awaits(unet, at):
    """It meets the real blocks, and the call around it keeps its own."""
    cache, latent, before, asked, inner = session(3), drifting(2), unets.traces(unet), [], call(seed=7)
    thread = threading.Thread(target=cache.close)

    def ask(*_):
        if len(outputs) == at and thread.ident is None:
            thread.start()
            thread.join(0.2)
            asked.append(unet(**inner))

    outputs = []
    handle = unet.input_blocks[0].register_forward_pre_hook(ask)
    cache.attach(unet)
    for k in range(at + 1):
        cache.tick(lambda k=k: latent(k), sigma(k))
        outputs.append(unet(**call(x=scaled(latent(k), k))))
    thread.join(20)
    handle.remove()
    assert all(map(torch.equal, outputs, expected_copy(unet, at + 1, 3, 0)))
    assert torch.equal(asked[0], unets.by_hand(unet, 0, **inner)[0]) and unets.traces(unet) == before


def test_where_calls_are_taken_in_turns_the_end_waits_for_none_that_waits_for_it(unet):
    """A call was broken off, and another thread has the turn to clear up after it, as its own thread calls again."""
    cache, latent, threads = session(3), drifting(2), []

    def before(*given):
        if threads:
            threads[0].start()
            threads[0].join(5)
            return None
        return cache.before(*given)

    def break_off(*_):
        handles.pop().remove()
        raise KeyboardInterrupt

    unet.register_forward_pre_hook(before, with_kwargs=True)
    handles = [unet.input_blocks[0].register_forward_pre_hook(break_off)]
    cache.attach(unet, hooked=False)
    cache.tick(lambda: latent(0), sigma(0))
    with pytest.raises(KeyboardInterrupt):
        unet(**call(x=scaled(latent(0), 0)))
    threads.append(threading.Thread(target=cache.close))
    unet(**call())
    assert not threads[0].is_alive()


@pytest.mark.parametrize(
    "through", [iter, reversed, enumerate, len, lambda blocks: blocks[0], lambda blocks: blocks[-1]]
)
def test_whichever_way_another_thread_goes_through_the_blocks(unet, through):
    def told():
        found = through(unet.output_blocks)
        return list(found) if hasattr(found, "__next__") else found

    ladder, expected, found = Ladder(unet), told(), []
    ladder.up_cached(0, [torch.zeros(1)], Walks())
    thread = threading.Thread(target=lambda: found.append(told()))
    thread.start()
    thread.join()
    ladder.take_down()
    assert found == [expected]


@pytest.mark.parametrize("protocol", forge_unets.PROTOCOLS)
def test_on_forge_and_its_kin(protocol):
    """Where blocks are called, and where a forward goes through their layers."""
    unet, latent, context = forge_unets.make(protocol), drifting(1), torch.ones(1, 7, 32)

    def asked(x, k):
        options = {"cond_or_uncond": [0], "patches": {}}
        return {"x": x, "timesteps": torch.tensor([900.0 - k]), "context": context, "transformer_options": options}

    others, mine = [], threading.get_ident()

    def elsewhere():
        arguments = asked(torch.full((1, 4, 8, 8), 0.1 * (len(others) + 1)), 500)
        with torch.no_grad():
            others.append((arguments, unet(**arguments)))

    def hook(*_):
        if threading.get_ident() == mine and k in (0, 2):
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    cache = Session(UniformPlan(3, 1, 6), Copy(), ladder=ForgeLadder, trusted=TRUSTED)
    cache.attach(unet)
    live = unet.input_blocks[0][0].register_forward_hook(hook)
    feature = None
    for k in range(6):
        full = cache.report.full_calls
        cache.tick(lambda k=k: latent(k), sigma(k))
        given = unet(**asked(scaled(latent(k), k), k))
        cache.pause()
        live.remove()
        was_cached = cache.report.full_calls == full
        now = asked(scaled(latent(k), k), k)
        expected, kept = forge_unets.by_hand(unet, 1, feature if was_cached else None, **now)
        live = unet.input_blocks[0][0].register_forward_hook(hook)
        feature = feature if was_cached else kept
        assert torch.equal(given, expected)
    live.remove()
    assert (cache.close().full_calls, len(others)) == (3, 2)
    assert all(torch.equal(given, forge_unets.by_hand(unet, None, **arguments)[0]) for arguments, given in others)
