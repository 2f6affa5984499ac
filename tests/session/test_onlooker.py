"""A pass that caches nothing: it is the host's own to the bit, and is called full only where nobody else skips."""

import pytest
import torch

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.onlooker import Onlooker
from deepcache_ext.unet.compiled import COMPILED
from deepcache_ext.unet.support import UnknownLayout
from tests import unets
from tests.driver import LAYOUT, TRUSTED, call, drifting, scaled, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def unet():
    return unets.make(LAYOUT)


def run(cache, unet, evaluations, asked=lambda k: True, meanwhile=lambda k: None):
    latent = drifting(2)
    for k in range(evaluations):
        cache.attach(unet)
        cache.tick(lambda k=k: latent(k), sigma(k))
        meanwhile(k)
        if asked(k):
            now = call(x=scaled(latent(k), k))
            assert torch.equal(unet(**now), unets.by_hand(unet, 0, **now)[0])
    return cache.so_far().fraction


def onlooker():
    return Onlooker(UniformPlan(1, 0, 9), Copy(), trusted=TRUSTED)


def test_all_is_full_and_nothing_is_left(unet):
    cache, before = onlooker(), unets.traces(unet)
    assert run(cache, unet, 9) == "9 of 9 full"
    report = cache.close()
    assert (report.fraction, report.misses, report.off) == ("9 of 9 full", {}, "")
    assert unets.traces(unet) == before


@pytest.mark.parametrize("at", [4, 8])
def test_an_evaluation_without_a_call_is_not_full(unet, at):
    """Of the last one there is none after it that would tell."""
    cache = onlooker()
    told = run(cache, unet, 9, asked=lambda k: k != at)
    report = cache.close()
    assert told == report.fraction == f"{at} of {at} full"
    assert report.off == (Reason.NO_CALL.value if at < 8 else "")


def test_another_cache_is_told_by_its_name(unet):
    cache = onlooker()
    run(cache, unet, 3, meanwhile=lambda k: setattr(unet, "_teacache_patched", k == 1))
    report = cache.close()
    assert "_teacache_patched" in report.off and report.fraction == "2 of 2 full"


def test_an_unknown_forward_is_told_by_its_name(unet):
    def forward(*args, **kwargs):
        return type(unet).forward(unet, *args, **kwargs)

    unet.forward = forward
    cache = Onlooker(UniformPlan(1, 0, 9), Copy())
    run(cache, unet, 3)
    assert "replaced the UNet's forward" in cache.close().off


def test_what_only_keeps_a_unet_from_being_cached_is_no_matter(unet):
    cache = onlooker()
    cache.attach(unet)
    cache.turn_off(UnknownLayout(COMPILED))
    report = cache.close()
    assert not report.off


@pytest.mark.parametrize("kind", ["script", "trace", "compile", "none"])
@pytest.mark.filterwarnings("ignore")
def test_a_unet_that_takes_no_hooks_is_not_looked_at(unet, kind):
    """From the first evaluation on, or since another one was: that this is called no more tells nothing."""
    layer, before = torch.nn.Linear(2, 2), unets.traces(unet)
    made = {
        "script": torch.jit.script(layer),
        "trace": torch.jit.trace(layer, torch.ones(1, 2)),
        "compile": torch.compile(layer, backend="eager"),
        "none": None,
    }[kind]
    for first in (0, 3):
        cache = onlooker()
        run(cache, unet, first)
        for k in range(first, 6):
            cache.attach(made)
            cache.tick(lambda: None, sigma(k))
            if made is not None:
                made(torch.ones(1, 2))
        report = cache.close()
        assert (report.fraction, report.off) == ("6 of 6 full", "")
    assert unets.traces(unet) == before


@pytest.mark.parametrize("what", ["another UNet", "hooks cleared", "parked"])
def test_what_nobody_saw_is_no_sign_of_another_cache(unet, what):
    cache, other = onlooker(), unets.make(LAYOUT, seed=1)

    def meanwhile(k):
        if k == 4 and what == "hooks cleared":
            unet._forward_pre_hooks.clear()
        elif k == 4 and what == "parked":
            cache.unhook()

    run(cache, unet, 6, meanwhile=meanwhile)
    if what == "another UNet":
        cache.tick(lambda: drifting(2)(6), sigma(6))
    run(cache, other, 3)
    report = cache.close()
    assert not report.off and unets.traces(unet)[:2] == unets.traces(other)[:2] == (0, 0)
