"""What the tests of whole hosts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import unets


@pytest.fixture
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that has a host, its UNet is as it was, and no generation is under way."""
    if "host" not in request.fixturenames:
        yield
        return
    host = request.getfixturevalue("host")
    ours = next(one.module.host for one in host.module("scripts").scripts_data if one.path.endswith("deepcache.py"))
    unet, before = host.unet, unets.traces(host.unet)
    yield
    host.module("sd_models").reload_model_weights()  # after a refiner
    assert unets.traces(unet) == unets.traces(host.unet) == before
    assert ours._generations.active is None
