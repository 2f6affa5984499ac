"""Pictures of the demo's host for the pages, and how near two pictures are."""

from __future__ import annotations

import math

import pytest
import torch

from bench import demo_studio
from bench.demo_studio import DemoStudio, NotActive, Pair, checkpoint_called, pairs_for
from bench.likeness import PSNR_CAP, psnr

PAIR = Pair("a red car", 1000)


def test_psnr_of_a_known_error() -> None:
    grey = torch.full((2, 3, 16, 16), 0.5)
    assert psnr(grey, torch.stack([grey[0], grey[1] + 0.1])).tolist() == [PSNR_CAP, pytest.approx(20, abs=1e-4)]
    assert psnr(grey, grey + 1 / 255)[0].item() == pytest.approx(20 * math.log10(255), abs=1e-4)


def test_cached_pictures_really_are_and_uncached_ones_leave_no_trace() -> None:
    with DemoStudio(checkpoint_called("tinyA"), 64) as studio:
        plain, again = (studio.make("Euler", 4, [PAIR]) for _ in range(2))
        cached = studio.make("Euler", 4, [PAIR], {"cache_interval": 2})
        assert torch.equal(plain.pictures, again.pictures) and plain.branches == (None,) * 4 and plain.speed_up == 1
        assert plain.pictures.shape == (1, 3, 64, 64) and not torch.equal(plain.pictures, cached.pictures)
        assert cached.kinds == ["full", "cached"] * 2 and cached.branches == (None, 0, None, 0)
        by_depth = studio.make("Euler", 5, [PAIR], {"cache_interval": 2, "deeper_branch_id": 2})
        assert by_depth.branches == (None, 0, 2, 0, None)
        assert "decode_first_stage" not in vars(studio._host.module("shared").sd_model)  # type: ignore[union-attr]
        with pytest.raises(NotActive):
            studio.make("Euler", 4, [PAIR], {"cache_interval": 0})


def test_pairs_are_the_same_ones_and_grow() -> None:
    tiny = checkpoint_called("tinyA")
    assert pairs_for(tiny, 3) == pairs_for(tiny, 9)[:3]
    assert {pair.prompt for pair in pairs_for(tiny, 9)} < set(demo_studio.WORDS)
