"""How often the host waits for the device: numbers that our own code reads of tensors. On a CPU nothing waits, but what
is read is read there too.
"""

import sys
from pathlib import Path

import pytest
import torch

import deepcache_ext
from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.unet.answers import Answers
from tests import unets
from tests.driver import LAYOUT, call, drifting, scaled, session, sigma

OURS = str(Path(deepcache_ext.__file__).parent)
READS = [(torch.Tensor, name) for name in ("tolist", "item", "__bool__", "__float__", "__int__")] + [(torch, "equal")]


@pytest.fixture
def waits(monkeypatch):
    """A list that gets the place of each reading of our code."""
    found = []

    def watch(owner, name):
        real = getattr(owner, name)

        def read(*args, **kwargs):
            frame = sys._getframe(1)
            while frame is not None and not frame.f_code.co_filename.startswith(OURS):
                frame = frame.f_back if "_tensor" in frame.f_code.co_filename else None
            if frame is not None:
                found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {name}")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, read)

    for owner, name in READS:
        watch(owner, name)
    return found


def evaluations(cache, unet, waits, count, **changes):
    """What was read before and in each evaluation's call, of a host that makes all tensors anew each time."""
    latent, arguments = drifting(2), {**call(), **changes}
    cache.attach(unet)
    for k in range(count):
        waits.clear()
        new = {name: value.clone() for name, value in arguments.items()}
        x = torch.cat([latent(k), new["x"][:, 4:]], dim=1)
        cache.tick(lambda k=k: latent(k), sigma(k))
        running = []
        hook = unet.out.register_forward_hook(lambda *_, seen=running: seen.append(len(waits)))
        with torch.no_grad():
            unet(**{**new, "x": scaled(x, k)})
        hook.remove()
        cache.pause()
        yield list(waits), running[0]


@pytest.mark.parametrize("layout", [LAYOUT, "inpaint", "sdxl"])
@pytest.mark.parametrize("estimator", [Copy(), Forecast()], ids=["copy", "forecast"])
@pytest.mark.parametrize("loaded", ["plain", "inference"])
def test_an_evaluation_waits_once_and_before_the_unet_runs(waits, estimator, layout, loaded):
    with torch.inference_mode(loaded == "inference"):
        unet = unets.make(layout)
    cache = session(3, estimator=estimator)
    for found, before in evaluations(cache, unet, waits, 9, **unets.inputs(layout, rows=2, size=(8, 8))):
        assert len(found) == before == 1, found
    assert cache.close().fraction == "3 of 9 full"


def test_an_answer_brings_those_asked_before_it(waits):
    answers = Answers()
    one, two = answers.about(torch.tensor([1.5, 2.5])), answers.about(torch.tensor([True, False]).any())
    assert two() == [1.0] and one() == [1.5, 2.5] and len(waits) == 1
    three = answers.about(torch.tensor(3, dtype=torch.float16))
    assert three() == [3.0] and three() == [3.0] and len(waits) == 2


def test_answers_of_two_devices_are_read_apart():
    answers = Answers()
    answers.about(torch.ones(2, device="meta"))
    assert answers.about(torch.tensor(False))() == [0.0]
