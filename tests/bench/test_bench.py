"""The benchmarks run, and what they measure against is the real UNet's own work. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import calls, overhead, timing, unets
from bench.__main__ import main
from deepcache_ext.plan.estimators import Copy

SMALL_SGM = unets.LAYOUTS["sdxl"].options | {
    "model_channels": 32,
    "num_head_channels": 16,
    "context_dim": 48,
    "adm_in_channels": 24,
    "transformer_depth": [0, 1, 2],
}


@pytest.fixture(params=["tiny", "small-sgm"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(unets.LAYOUTS, "small-sgm", unets.Layout("sgm", 16, 16, SMALL_SGM))
    return request.param


@torch.no_grad()
def test_full_forward_by_hand_is_the_unets_own(layout: str) -> None:
    unet, given = unets.make(layout), unets.inputs(layout, 2, 16)
    branches = range(len(unet.output_blocks))
    output, features = unets.full(unet, given, branches)
    assert torch.equal(output, unet(**given))
    assert output.abs().max() > 0
    for branch in branches:
        assert torch.equal(unets.live(unet, given, branch, features[branch]), output)


@torch.no_grad()
def test_cached_call_equals_the_live_blocks_by_hand(layout: str) -> None:
    unet, given = unets.make(layout), unets.inputs(layout, 2, 16)
    other = given | {"x": given["x"] * 0.9}
    for branch in (0, 2):
        one = calls.Pass(unet, given, branch)
        one.session.decisions.estimator = Copy()
        one.evaluate()
        one.only_cached()
        feature = unets.full(unet, given, [branch])[1][branch]
        one._arguments = tuple(other.values())
        assert torch.equal(one.evaluate(), unets.live(unet, other, branch, feature))
        assert one.session.close().cached_calls == 1


@torch.no_grad()
def test_fused_attention_gives_what_the_published_one_gives() -> None:
    given = unets.inputs("tiny", 2, 16)
    fused, vanilla = (unets.make("tiny", attention=kind)(**given) for kind in ("sdp", "vanilla"))
    assert torch.allclose(fused, vanilla, atol=1e-5)


@pytest.mark.sample("tiny")
def test_half_precision_runs_under_autocast_and_is_cached(layout: str) -> None:
    device, dtype = torch.device("cpu"), torch.bfloat16
    unet, given = unets.make(layout, device, dtype), unets.inputs(layout, 2, 8, device, dtype)
    with calls.inference(device, dtype):
        measured = calls.measure(unet, given, [1], ["copy"], timing.Clock(device), pairs=1, budget=0, least=1)
    assert measured.doubts == []


def test_flops_are_those_of_the_paper() -> None:
    # 338.8 GMACs without the attention products (arXiv 2312.00858), 401.6 with them; 512 px, one row.
    whole, live = unets.count_flops("sd15", 1, 64, [0, 1, 2])
    assert whole / 2e9 == pytest.approx(401.6, abs=0.1)
    assert [live[b] / 2e9 for b in (0, 1, 2)] == pytest.approx([31.6, 90.1, 152.7], abs=0.1)


@pytest.mark.slow
def test_all_runs_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    few = ["--layout", "tiny", "--size", "8", "--quick", "--seconds", "0", "--branches", "0,2"]
    assert main([*few, "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert text.count("target at most") == 4 + 1 + 4
    assert "Checked: every call ran as it was meant to" in text
    figures: dict[str, Any] = json.loads(file.read_text())
    assert figures["doubts"] == []
    assert {(f["branch"], f["estimator"]) for f in figures["cached"]} == {
        (0, "copy"),
        (0, "forecast"),
        (2, "copy"),
        (2, "forecast"),
    }
    feature = 2 * 32 * 8 * 8 * 4  # rows, channels, height, width, bytes of a number
    assert figures["kept_bytes"]["0"] == {"copy": feature, "forecast": 3 * feature}
    assert set(figures["python"]) == {"full", "cached", "full, at work", "cached, at work"}
    assert figures["flops"]["live"]["0"] < figures["flops"]["live"]["2"] < figures["flops"]["full"]


def test_a_call_that_was_not_cached_is_confessed() -> None:
    unet, given = overhead.idle_unet(), unets.inputs("tiny", 2, overhead.SIDE)
    one, result = calls.Pass(unet, given, 0), calls.Measured()
    with torch.no_grad():
        one.evaluate()
        one.only_cached()
        given["context"].add_(1)
        one.evaluate()
    calls._check_counts(one.session, 0, result)
    assert "the prompt, or a mask or picture given with it, changed in mid-run" in result.doubts[0]
    calls._check_equal(torch.ones(2), torch.zeros(2) + 2, "it", result)
    assert "it differs" in result.doubts[1]


def test_rivals_take_turns() -> None:
    order: list[str] = []
    rivals = [timing.Rival(name, lambda name=name: order.append(name)) for name in "abc"]
    seconds = timing.rounds(timing.Clock(torch.device("cpu")), rivals, 6)
    assert len({tuple(order[i : i + 3]) for i in range(0, 18, 3)}) == 6
    assert order[:3] == order[5:2:-1]
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 6, "b": 6, "c": 6}


def test_ratio_uses_the_pairs() -> None:
    slow_spells = [1.0, 5.0, 1.0, 9.0, 2.0, 1.0]
    found = timing.ratio({"a": [1.02 * s for s in slow_spells], "b": slow_spells}, "a", "b")
    assert [found.value, found.low, found.high] == pytest.approx([1.02] * 3)
