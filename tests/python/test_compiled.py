"""docs/python.md, "Compiled UNets": the blocks that a UNet repeats, compiled, are cached as uncompiled ones are."""

import re
from pathlib import Path

import pytest
import torch

from deepcache_ext import DeepCache
from tests.diffusers_pipelines import build, run

SD = "StableDiffusion"
PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.skipif(not hasattr(torch.nn.Module, "compile"), reason="torch 2.0 compiles no module in place")
def test_compiled_blocks_are_cached_like_others() -> None:
    pictures = []
    for compiled in (False, True):
        pipe = build(SD)
        if compiled:
            pipe.unet.compile_repeated_blocks(backend="eager")  # the tests' machines may have no C compiler
        with DeepCache(pipe, cache_interval=3, cache_branch_id=0, estimator="copy") as cache:
            pictures.append(run(pipe, SD))
        (told,) = cache.report().passes
        assert told.cached_calls > 0 and not told.off
        assert all(block._compiled_call_impl is not None for block in blocks(pipe.unet)) is compiled
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], run(build(SD), SD))


def blocks(unet: torch.nn.Module) -> list[torch.nn.Module]:
    found = [module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert found
    return found


def test_the_page_shows_it() -> None:
    (example,) = re.findall(r"```python\n(pipe\.unet\.compile_repeated_blocks.*?)```", PAGE.read_text(), re.DOTALL)
    pipe = build(SD)
    plain, pipe.unet.compile_repeated_blocks = pipe.unet.compile_repeated_blocks, lambda: plain(backend="eager")
    names = {"pipe": lambda prompt: run(pipe, SD), "DeepCache": lambda p, **settings: DeepCache(pipe, **settings)}
    names["pipe"].unet = pipe.unet
    exec(example, names)
    assert names["cache"].report().passes
