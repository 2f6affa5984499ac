"""What of torch records, transforms or differentiates a forward, and how it is known."""

import pytest
import torch

from deepcache_ext.unet import tracing
from deepcache_ext.unet.tracing import has_tangents, is_traced, transforms
from tests.tracing import TRACING


def on_a_device(f, x):
    with torch.device("cpu"):
        return f(x)


RUNNING = {
    "plain": lambda f, x: f(x),
    "on a device": on_a_device,
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
}


def told(way, ask):
    """What `ask` answers, given the arguments, inside a function that is called in that way."""
    found = []

    def f(x):
        found.append(ask((x,), {}))
        return x * 2

    way(f, torch.ones(2, 3))
    assert found
    return found[0]


@pytest.mark.parametrize("way", TRACING)
def test_what_is_no_run(way):
    assert told(TRACING[way], is_traced)


@pytest.mark.parametrize("way", RUNNING)
def test_what_is_a_run_on_numbers(way):
    assert not told(RUNNING[way], is_traced)


def test_tangents():
    ways = [*RUNNING, "functionalize"]
    assert [way for way in ways if told({**RUNNING, **TRACING}[way], lambda *_: has_tangents())] == ["jvp"]


def test_an_older_torch_tells_the_innermost_transform_alone(monkeypatch):
    ways = [RUNNING["plain"], TRACING["vmap"], TRACING["vmap of grad"]]
    assert [told(way, lambda *_: transforms()) for way in ways] == [[], ["Vmap"], ["Vmap", "Grad"]]
    monkeypatch.delattr(torch._C._functorch, "get_interpreter_stack")
    assert [told(way, lambda *_: transforms()) for way in ways] == [[], ["Vmap"], ["Grad"]]
    monkeypatch.setattr(tracing, "_transforms", None)
    assert [told(way, lambda *_: transforms()) for way in ways] == [[], [], []]


def test_a_graph_is_captured_of_what_a_gpu_is_given(monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.ones(2, 3)
    assert [is_traced((one,), {}) for one in (x, x.as_subclass(OnGpu))] == [False, True]
    assert is_traced((), {"sample": x.as_subclass(OnGpu)})
