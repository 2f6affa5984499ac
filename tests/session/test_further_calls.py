"""A session beside others: calls that come beside the sampler's own or stay away, and what is told of them."""

import threading
import warnings

import pytest
import torch

from deepcache_ext.report.pass_report import Reason
from tests import unets
from tests.driver import LAYOUT, call, drifting, evaluate, run, scaled, session, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


def test_an_evaluation_without_a_call_ends_the_caching(unet):
    """Spectrum forecasts the UNet's output at some evaluations: its skipped ones are not ours, and both would act."""
    cache, latent = session(3, total=12), drifting(2)
    cache.attach(unet)
    for k in range(12):
        evaluate(cache, unet, k, latent(k), *([call(x=latent(k))] if k < 4 or k % 2 == 0 else []))
    report = cache.close()
    assert report.off == Reason.NO_CALL.value and report.is_blind
    assert report.fraction == "2 of 5 full" and (report.full_calls, report.cached_calls) == (2, 3)


def elsewhere(unet, arguments):
    thread = threading.Thread(target=lambda: torch.no_grad()(unet)(**arguments))
    thread.start()
    thread.join()


def on_a_replica(unet, arguments):
    unet._replicate_for_data_parallel()(**arguments)


def traced(unet, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.trace(unet, tuple(arguments.values()), check_trace=False)


def nested(cache, _unet):
    """A generation begins inside an evaluation, which parks the session."""
    cache.unhook()


def nested_without_our_hooks(cache, unet):
    """The same, where no hook of ours runs for it: its first evaluation ends the one under way."""
    cache.pause()
    unet(**call())


@pytest.mark.parametrize("way", [nested, nested_without_our_hooks])
def test_an_evaluation_that_a_nested_generation_ends_is_no_other_cache(unet, way):
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(7):
        cache.attach(unet)
        cache.tick(lambda k=k: latent(k), sigma(k))
        if k == 4:
            way(cache, unet)
        unet(**call(x=scaled(latent(k), k)))
    report = cache.close()
    assert (report.off, report.fraction, report.cached_calls) == ("", "3 of 6 full", 3)


@pytest.mark.parametrize(
    ("way", "evaluations", "misses"),
    [
        (elsewhere, 6, {Reason.OUTSIDE: 1, Reason.TOGETHER: 1}),
        (on_a_replica, 6, {Reason.REPLICA: 1}),
        (traced, 7, {Reason.TRACED: 1, Reason.TOGETHER: 1}),
    ],
)
def test_an_evaluation_whose_call_is_none_of_ours_is_no_other_cache(unet, way, evaluations, misses):
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(7):
        if k == 4:
            cache.tick(lambda: latent(4), sigma(4))
            way(unet, call(x=scaled(latent(4), 4)))
            cache.pause()
        else:
            evaluate(cache, unet, k, latent(k), call(x=latent(k)))
    report = cache.close()
    assert (report.off, report.evaluations, report.misses) == ("", evaluations, misses)


def test_a_model_exchanged_behind_our_back_is_no_other_cache(unet):
    """A refiner puts another model in place after we were told of the evaluation, which then calls that one: it is not
    counted, since nobody saw it.
    """
    cache, latent, refiner = session(3), drifting(2), unets.make(LAYOUT, seed=1)
    for k in range(9):
        cache.attach(unet if k < 5 else refiner)
        if k == 4:
            cache.tick(lambda: latent(4), sigma(4))
            refiner(**call(x=scaled(latent(4), 4)))
        else:
            evaluate(cache, unet if k < 5 else refiner, k, latent(k), call(x=latent(k)))
    report = cache.close()
    assert (report.off, report.is_blind, report.fraction) == ("", False, "4 of 8 full")
    assert report.misses == {Reason.WEIGHTS: 1} and (report.full_calls, report.cached_calls) == (4, 4)


def test_an_evaluation_that_was_broken_off_is_none(unet):
    """An interrupt comes before the UNet's call."""
    cache = session(3)
    cache.attach(unet)
    run(cache, unet, 4)
    cache.tick(lambda: drifting(2)(4), sigma(4))
    report = cache.close()
    assert (report.off, report.fraction) == ("", "2 of 4 full")


@pytest.mark.parametrize("rows_of_the_further_call", [1, 2])
def test_a_further_call_never_gets_the_own_calls_feature(unet, rows_of_the_further_call):
    """PAG asks once more, of the prompt's rows or of all; NGMS leaves rows out of the own call at every other time."""
    cache, latent, arguments = session(2, total=6), drifting(2), call()
    context = arguments["context"][:1].repeat(2, 1, 1)
    cache.attach(unet)
    for k in range(6):
        own = slice(0, 1 if k % 2 else 2)
        further = slice(0, rows_of_the_further_call)
        calls = [
            {**call(rows=2), "x": latent(k)[rows], "context": context[rows], "timesteps": arguments["timesteps"][rows]}
            for rows in (own, further)
        ]
        for output, now in zip(evaluate(cache, unet, k, latent(k), *calls), calls, strict=True):
            if k % 2:  # no evaluation before had this call at this place since the last full one
                assert torch.equal(output, unets.by_hand(unet, 0, **{**now, "x": scaled(now["x"], k)})[0])
    cache.close()


@pytest.mark.parametrize("order", ["ab", "ba at 4", "b at 4", "ab from 3 on"])
def test_calls_that_differ_in_nothing_but_their_timesteps(unet, order):
    """Nothing tells which is which when they change places or one stays away."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(9):
        a = call(x=latent(k), context=torch.ones(2, 77, 64))
        b = {**a, "timesteps": a["timesteps"] + 100}
        calls = {"ab": [a, b], "ba at 4": [b, a] if k == 4 else [a, b], "b at 4": [b] if k == 4 else [a, b]}.get(order)
        calls = ([a] if k < 3 else [a, b]) if calls is None else calls
        for output, now in zip(evaluate(cache, unet, k, latent(k), *calls), calls, strict=True):
            if order != "ab from 3 on" or k >= 3:
                assert torch.equal(output, unets.by_hand(unet, 0, **{**now, "x": scaled(now["x"], k)})[0])
    assert cache.close().misses[Reason.UNCLEAR] >= 5


def test_calls_that_differ_in_nothing_but_their_scale(unet):
    """A guider asks about the own latent at another scale, and leaves the own call out at some evaluations."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(9):
        own, other = call(x=latent(k)), call(x=0.3 * latent(k))
        calls = [other] if k in (4, 7) else [own, other]
        for output, now in zip(evaluate(cache, unet, k, latent(k), *calls), calls, strict=True):
            assert torch.equal(output, unets.by_hand(unet, 0, **{**now, "x": scaled(now["x"], k)})[0])
    assert cache.close().misses[Reason.UNCLEAR] >= 5


def test_calls_that_are_the_same_in_everything(unet):
    """The prompt and the negative prompt are both empty, say, and are asked about one by one."""
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(9):
        now = call(x=latent(k), context=torch.ones(2, 77, 64))
        first, second = evaluate(cache, unet, k, latent(k), now, now)
        assert torch.equal(first, second)
    report = cache.close()
    assert (report.fraction, report.misses) == ("3 of 9 full", {})


def test_a_surprise_makes_the_next_evaluation_full(unet):
    """The second of two calls changes its prompt after the first one was cached: that evaluation is mixed."""
    cache, latent = session(6), drifting(2)
    first, second = call(rows=1), call(rows=1, seed=1)
    cache.attach(unet)
    for k in range(6):
        if k == 2:
            second["context"] = second["context"] + 1
        evaluate(cache, unet, k, latent(k)[:1], {**first, "x": latent(k)[:1]}, {**second, "x": latent(k)[:1]})
    report = cache.close()
    assert report.fraction == "2 of 6 full + 1 mixed"
    assert report.misses == {Reason.CONDITIONING: 1, Reason.TOGETHER: 2}


def test_prompt_and_negative_prompt_apart_beside_one_who_counts_layers(unet, monkeypatch):
    """NegPiP takes the negative call for the positive one where layers are left out."""
    layer = unet.middle_block[0].in_layers[2]
    space = {"__name__": "negpip.py", "own": layer.forward}
    exec("def forward(*args): return own(*args)", space)
    layer.forward = space["forward"]
    try:
        for apart in (True, False):
            cache, latent = session(3, total=6), drifting(1)
            cache.attach(unet)
            for k in range(6):
                x = latent(k).repeat(2, 1, 1, 1)
                calls = [call(rows=1, x=x[:1]), call(rows=1, seed=1, x=x[1:])] if apart else [call(x=x)]
                evaluate(cache, unet, k, x, *calls)
            report = cache.close()
            assert report.misses.get(Reason.LAYERS, 0) == (8 if apart else 0)
            assert report.fraction == ("6 of 6 full" if apart else "2 of 6 full")
    finally:
        del layer.forward


def test_some_evaluations_with_the_prompt_alone_beside_one_who_counts_layers(unet):
    """NGMS, and two calls where that pauses, prompts being of unequal length: the first of the two looks like the only
    one of the evaluation before."""
    seen = []

    def count(own):
        space = {"__name__": "negpip.py", "own": own, "seen": seen}
        exec("def forward(*args, **more):\n    seen.append(1)\n    return own(*args, **more)", space)
        return space["forward"]

    layers = [layer for layer in unet.modules() if type(layer).__name__ == "CrossAttention"]
    for layer in layers:
        layer.forward = count(layer.forward)
    try:
        cache, latent = session(6, total=6), drifting(1)
        cache.attach(unet)
        for k in range(6):
            seen.clear()
            x = latent(k).repeat(2, 1, 1, 1)
            calls = [call(rows=1, x=x[:1]), call(rows=1, seed=1, x=x[1:])][: 1 + (k == 3)]
            evaluate(cache, unet, k, x, *calls)
            assert len(seen) == len(layers) * len(calls)
        report = cache.close()
    finally:
        for layer in layers:
            del layer.forward
    assert report.fraction == "6 of 6 full" and report.misses == {Reason.LAYERS: 6}


def test_weights_without_a_counter(unet):
    """Forge loads under inference_mode: a refiner's weights come in place, and nothing counts."""
    with torch.inference_mode():
        frozen = unets.make(LAYOUT)
        other = {name: value.clone() for name, value in unets.make(LAYOUT, seed=5).state_dict().items()}
        cache = session(3)
        cache.attach(frozen)
        for k in range(9):
            if k == 4:
                frozen.load_state_dict(other)
            evaluate(cache, frozen, k, drifting(2)(k), call(x=drifting(2)(k)))
        report = cache.close()
    assert report.misses == {Reason.WEIGHTS: 1} and report.fraction == "4 of 9 full"
