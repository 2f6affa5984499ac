"""docs/python.md, "Compiled UNets": compiled as a whole or block by block, they are cached as uncompiled ones are.

torch's "eager" backend stands for its compiler, since a machine may have no C compiler: what is made a graph, and when
a graph is taken, is the same, and what a graph gives can be compared bit by bit.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcache_ext import DeepCache
from deepcache_ext.unet import compiled
from deepcache_ext.unet.ladder import Walks
from tests.diffusers_pipelines import build, run

SD = "StableDiffusion"
PAGE = Path(__file__).parents[2] / "docs" / "python.md"
RUNGS = {"cache_interval": 3, "cache_branch_id": 0, "deeper_branch_id": 4, "estimator": "copy"}
"""Full, cached and medium calls."""
GRAPHS = 4
"""One for each of these, and one for calls that keep nothing."""
STEPS = 10

pytestmark = pytest.mark.skipif(not compiled.is_new_enough(), reason="this torch makes a new graph at each call")


class Graphs:
    """A backend that counts what it is given and runs it as it is; `fails_in`: after so many calls one raises."""

    def __init__(self) -> None:
        self.made = self.fails_in = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.made += 1

        def run(*inputs: Any) -> Any:
            self.fails_in -= 1
            if self.fails_in == 0:
                raise MemoryError
            return graph.forward(*inputs)

        return run


def wrap(pipe: Any, backend: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)


def in_place(pipe: Any, backend: Any) -> None:
    pipe.unet.compile(backend=backend, fullgraph=True)


def forward_alone(pipe: Any, backend: Any) -> None:
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend=backend, fullgraph=True)


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield


def cached_picture(name: str = SD, **settings: Any) -> torch.Tensor:
    """Of the uncompiled UNet."""
    pipe = build(name)
    with DeepCache(pipe, **(settings or RUNGS)):
        return run(pipe, name, steps=STEPS)


@pytest.mark.sample("wrapped")
@pytest.mark.parametrize(
    ("way", "first"),
    [(wrap, "plain"), (in_place, "cached"), (forward_alone, "plain")],
    ids=["wrapped", "in place", "forward"],
)
def test_a_compiled_unet_is_cached_like_others(way: Callable[..., None], first: str) -> None:
    """A graph for each rung, whichever came first, and no further ones; nothing is left."""
    pipe, graphs = build(SD), Graphs()
    plain = run(pipe, SD, steps=STEPS)
    way(pipe, graphs)
    if first == "plain":
        assert torch.equal(run(pipe, SD, steps=STEPS), plain) and graphs.made == 1
    with DeepCache(pipe, **RUNGS) as cache:
        pictures = [run(pipe, SD, steps=STEPS) for _ in range(2)]
    assert all(torch.equal(picture, cached_picture()) for picture in pictures)
    assert not torch.equal(pictures[0], plain)
    for told in cache.report().passes:
        assert (told.full_evaluations, told.medium_evaluations, told.misses, told.off) == (2, 2, {}, "")
    unet = compiled.inner(pipe.unet)
    assert not unet._forward_pre_hooks and not unet._forward_hooks
    assert not {"down_blocks", "mid_block", "up_blocks"} & vars(unet).keys()
    assert torch.equal(run(pipe, SD, steps=STEPS), plain) and graphs.made == GRAPHS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        ("StableDiffusionInpaint", True),
        ("StableDiffusionControlNet", False),
        ("StableDiffusionXL", False),
        ("StableVideoDiffusion", False),
    ],
)
def test_other_pipelines(name: str, dynamic: bool) -> None:
    pipe, graphs = build(name), Graphs()
    pipe.unet = torch.compile(pipe.unet, backend=graphs, fullgraph=True, dynamic=dynamic)
    plain = run(pipe, name, steps=STEPS)
    with DeepCache(pipe, **RUNGS):
        pictures = [run(pipe, name, steps=STEPS) for _ in range(2)]
    assert all(torch.equal(picture, cached_picture(name)) for picture in pictures)
    assert torch.equal(run(pipe, name, steps=STEPS), plain) and graphs.made == GRAPHS


@pytest.mark.parametrize("wanted", [True, False])
def test_a_caller_gets_what_it_asked_for(wanted: bool) -> None:
    """The output alone in a tuple or a class of diffusers', asked for by name or by place; the latter by default."""
    unet = build(SD).unet
    x, prompt = torch.randn(2, 4, 8, 8), torch.randn(2, 5, unet.config.cross_attention_dim)
    plain = unet(x, 500, prompt, return_dict=False)[0]
    between = len(inspect.signature(unet.forward).parameters) - 4
    ways = [((x, 500, prompt), {"return_dict": wanted}), ((x, 500, prompt, *[None] * between, wanted), {})]
    for args, kwargs in [*ways, *([((x, 500, prompt), {})] if wanted else [])]:
        args, kwargs = compiled.Graphs(unet).told_apart(Walks("a rung"), args, kwargs)
        output = unet(*args, **kwargs)
        assert (type(output) is tuple) is not wanted and torch.equal(output[0], plain)


@pytest.mark.slow
def test_a_unet_that_is_compiled_while_deepcache_is_enabled() -> None:
    """The compiler makes nothing of hooks that it meets, which is told; of a forward alone it never meets them."""
    plain = run(build(SD), SD, steps=STEPS)
    for way in (wrap, in_place):
        pipe = build(SD)
        with DeepCache(pipe, **RUNGS) as cache:
            way(pipe, "eager")
            assert torch.equal(run(pipe, SD, steps=STEPS), plain)
            assert "compiled while DeepCache was enabled" in str(cache.report())
        with cache:
            assert torch.equal(run(pipe, SD, steps=STEPS), cached_picture())
        assert str(cache.report()).startswith("2 of 10 full")
    pipe = build(SD)
    with DeepCache(pipe, **RUNGS) as cache:
        assert torch.equal(run(pipe, SD, steps=STEPS), cached_picture())
        forward_alone(pipe, "eager")
        assert torch.equal(run(pipe, SD, steps=STEPS), cached_picture())
    assert torch.equal(run(pipe, SD, steps=STEPS), plain)


def test_a_forward_of_its_own_without_that_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs could not be told apart, whether it was compiled before or in mid-run: the picture is made in full."""
    pipe = build(SD)
    usual = type(pipe.unet)

    class Own(usual):  # type: ignore[misc, valid-type]
        def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **given: Any) -> Any:
            return super().forward(sample, timestep, encoder_hidden_states, **given)

    plain = run(pipe, SD, steps=STEPS)
    pipe.unet.__class__ = Own
    with DeepCache(pipe, **RUNGS, trusted=[__name__]) as cache:
        assert torch.equal(run(pipe, SD, steps=STEPS), cached_picture())
        forward_alone(pipe, "eager")
        assert torch.equal(run(pipe, SD, steps=STEPS), plain)
    assert cache.report().passes[1].off == "the UNet is compiled, and its forward has no return_dict"
    with DeepCache(pipe, **RUNGS, trusted=[__name__]) as cache:
        assert torch.equal(run(pipe, SD, steps=STEPS), plain)
    assert "has no return_dict" in str(cache.report())


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2])
def test_an_error_in_a_graph(call: int) -> None:
    """In a full call, and in a cached one."""
    pipe, graphs = build(SD), Graphs()
    wrap(pipe, graphs)
    plain = run(pipe, SD, steps=STEPS)
    with DeepCache(pipe, **RUNGS):
        graphs.fails_in = call
        with pytest.raises(MemoryError):
            run(pipe, SD, steps=STEPS)
        assert torch.equal(run(pipe, SD, steps=STEPS), cached_picture())
    assert torch.equal(run(pipe, SD, steps=STEPS), plain) and graphs.made == GRAPHS


def test_compiled_blocks_are_cached_like_others() -> None:
    pipe = build(SD)
    pipe.unet.compile_repeated_blocks(backend="eager")
    assert all(block._compiled_call_impl is not None for block in blocks(pipe.unet))
    with DeepCache(pipe, **RUNGS) as cache:
        picture = run(pipe, SD, steps=STEPS)
    (told,) = cache.report().passes
    assert told.cached_calls > 0 and not told.off
    assert torch.equal(picture, cached_picture())


def blocks(unet: torch.nn.Module) -> list[torch.nn.Module]:
    found = [module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert found
    return found


@pytest.mark.parametrize(
    "example", re.findall(r"```python\n(pipe\.unet\S* ?=?.*?compile.*?)```", PAGE.read_text(), re.DOTALL)
)
def test_the_page_shows_it(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build(SD)
    whole, repeated = torch.compile, pipe.unet.compile_repeated_blocks
    monkeypatch.setattr(torch, "compile", lambda it, **how: whole(it, **{**how, "backend": "eager"}))
    pipe.unet.compile_repeated_blocks = lambda: repeated(backend="eager")

    class Pipe:
        unet = pipe.unet

        def __call__(self, _: str) -> Any:
            pipe.unet = self.unet
            return run(pipe, SD)

    names = {"pipe": Pipe(), "torch": torch, "DeepCache": DeepCache}
    exec(example, names)
    assert names["cache"].report().passes[0].cached_calls


def test_the_page_shows_both() -> None:
    assert len(test_the_page_shows_it.pytestmark[0].args[1]) == 2
