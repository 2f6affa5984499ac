"""What several of these tests draw with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.laboratory.studio import Studio
from tests.train.test_laboratory import TINY, pictures
from train.laboratory import learn
from train.laboratory.networks import CHOOSING, Network


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A network of the laboratory's kind, hardly trained, and two pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPCACHE_LAB", str(tmp_path_factory.mktemp("lab")))
        network = Network("tiny", CHOOSING, "forty", "eps", "sd1", TINY, steps=30, batch=4)
        learn.train(network, pictures())
        yield Studio(network, 2)
