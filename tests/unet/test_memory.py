"""What keeping takes is foreseen from the UNet's own numbers, for every real layout."""

import pytest
import torch
from torch import nn

from deepcache_ext.unet.ldm import Ladder, numbers_per_place
from tests import unets


@pytest.mark.parametrize("layout", unets.LAYOUTS)
def test_numbers_per_place_are_the_features_own(layout):
    unet, given = unets.shared_unet(layout), unets.inputs(layout, rows=2, size=(16, 16))
    ladder = Ladder(unet)
    walks = ladder.up_full(range(ladder.depth), False)
    with torch.no_grad():
        unet(**given)
    ladder.take_down()
    assert [walks.features[b][0].numel() for b in range(ladder.depth)] == [
        2 * 16 * 16 * numbers for numbers in numbers_per_place(unet)
    ]


@pytest.mark.parametrize("unet", [None, nn.Linear(2, 2)], ids=["none", "no blocks"])
def test_unknown(unet):
    assert numbers_per_place(unet) == ()
