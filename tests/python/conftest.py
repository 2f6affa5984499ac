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
