"""Calls of the same UNet from other threads while a call of ours is under way: nobody meets the other's blocks."""

import threading

import pytest
import torch

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from deepcache_ext.unet.forge import ForgeLadder
from tests import forge_unets, unets
from tests.driver import LAYOUT, TRUSTED, call, drifting, evaluate, expected_copy, run, scaled, session, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def unet():
    return unets.make(LAYOUT)


class Elsewhere:
    """Asks the UNet about another latent in another thread, whenever `block` is about to run in a call of ours."""

    def __init__(self, unet, block, only=lambda evaluation: True):
        self.unet, self.only = unet, only
        self.mine, self.evaluation, self.asked = threading.get_ident(), 0, []
        self.handle = block.register_forward_pre_hook(self._hook)

    def _hook(self, *_):
        if threading.get_ident() == self.mine and self.only(self.evaluation):
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


@pytest.mark.parametrize("first", [True, False])
def test_a_call_inside_a_call(unet, first):
    """Of a full and of a cached call, before and after it asks for what was kept."""
    block = unet.input_blocks[0] if first else unet.output_blocks[-1]
    other, cache = Elsewhere(unet, block), session(3)
    cache.attach(unet)
    outputs = run(cache, unet, 9)
    report = cache.close()
    assert other.all_right() == [True] * 9
    assert all(map(torch.equal, outputs, expected_copy(unet, 9, 3, 0)))
    assert (report.full_calls, report.cached_calls, report.misses) == (3, 6, {Reason.OUTSIDE: 9})


def test_one_that_comes_before_the_own_walk_and_then_behind_it(unet):
    """The other's walk would be the first of a full call, and the own one the first of a cached call."""
    before = Elsewhere(unet, unet.input_blocks[0], only=lambda k: k % 3 == 0)
    behind = Elsewhere(unet, unet.output_blocks[-1], only=lambda k: k % 3)
    cache, latent, arguments = session(3), drifting(2), call()
    cache.attach(unet)
    outputs = []
    for k in range(9):
        before.evaluation = behind.evaluation = k
        outputs += evaluate(cache, unet, k, latent(k), {**arguments, "x": latent(k)})
    cache.close()
    behind.handle.remove()
    right = before.all_right(), behind.all_right()
    assert all(map(torch.equal, outputs, expected_copy(unet, 9, 3, 0)))
    assert right == ([True] * 3, [True] * 6)


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
        if threading.get_ident() == mine:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    cache = Session(UniformPlan(3, 1, 6), Copy(), ladder=ForgeLadder, trusted=TRUSTED)
    cache.attach(unet)
    live = unet.input_blocks[0][0].register_forward_hook(hook)
    feature = None
    for k in range(6):
        cache.tick(lambda k=k: latent(k), sigma(k))
        given = unet(**asked(scaled(latent(k), k), k))
        cache.pause()
        live.remove()
        expected, kept = forge_unets.by_hand(unet, 1, feature if k % 3 else None, **asked(scaled(latent(k), k), k))
        live = unet.input_blocks[0][0].register_forward_hook(hook)
        feature = feature if k % 3 else kept
        assert torch.equal(given, expected)
    live.remove()
    assert (cache.close().full_calls, len(others)) == (2, 6)
    assert all(torch.equal(given, forge_unets.by_hand(unet, None, **arguments)[0]) for arguments, given in others)
