"""What the tests of `deepcache_ext.python` share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import diffusers_pipelines, diffusers_unets


@pytest.fixture
def pipe() -> Iterator[Any]:
    """A StableDiffusion pipeline that must look untouched when the test is over; its scheduler comes back."""
    pipe = diffusers_pipelines.shared("StableDiffusion")
    before, scheduler = diffusers_unets.traces(pipe.unet), pipe.scheduler
    yield pipe
    pipe.scheduler = scheduler
    assert diffusers_unets.traces(pipe.unet) == before


@pytest.fixture(scope="module")
def made() -> Any:
    return diffusers_unets.make("sd1")


@pytest.fixture
def unet(made: Any) -> Iterator[Any]:
    """A UNet that must look untouched when the test is over."""
    before = diffusers_unets.traces(made)
    yield made
    assert diffusers_unets.traces(made) == before
