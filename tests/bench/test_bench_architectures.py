"""Speed on the architectures: the UNets are the published ones, the forwards by hand theirs, the sums right. No time is
asserted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import architectures, cases, loops, speed_report, twin_calls, twins, unets
from bench.cases import Case
from bench.loops import Setting
from bench.timing import Clock
from tests import diffusers_unets

SMALL = {
    "small-sd": twins.Net(
        twins.TEXT,
        twins.NETS["sd15"].options
        | {
            "block_out_channels": (32, 64, 128, 128),
            "attention_head_dim": 4,
            "cross_attention_dim": 64,
        },
    ),
    "small-svd": twins.Net(twins.VIDEO, diffusers_unets.SVD, tokens=1),
    "small-ddpm": twins.Net(twins.PIXELS, diffusers_unets.DDPM),
}
SETTINGS = (Setting(10, 3, 0), Setting(10, 5, 0), Setting(10, 5, 1))
CASES = (Case("small-sd", 64, 64), Case("small-svd", 64, 64, 1, 2), Case("small-ddpm", 16, 16, 2))


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, net in SMALL.items():
        monkeypatch.setitem(twins.NETS, name, net)
        scale = 1 if name == "small-ddpm" else 8
        monkeypatch.setitem(
            cases.ARCHITECTURES,
            name,
            cases.Architecture(name, scale, name != "small-ddpm", SETTINGS),
        )
    monkeypatch.setitem(unets.LAYOUTS, "small-sd", unets.LAYOUTS["tiny"])
    for module in (architectures, speed_report):
        monkeypatch.setattr(module, "ON_CPU", CASES)


# The UNets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(unets.LAYOUTS) & set(twins.NETS)))
def test_twins_have_the_same_number_of_weights(name: str) -> None:
    ours, twin = unets.on_meta(name), twins.on_meta(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in twin.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("sd15", 859.5),
        ("sd21", 865.9),
        ("sdxl", 2567.5),
        ("ldm-4-g", 400.9),
        ("svd", 1524.6),
        ("ddpm-cifar10", 35.7),
        ("ddpm-lsun", 113.7),
    ],
)
def test_weights_are_as_many_as_in_the_published_models(name: str, millions: float) -> None:
    assert sum(p.numel() for p in twins.on_meta(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_flops_are_those_of_the_paper() -> None:
    # GMACs without the attention products, arXiv 2312.00858, tables 2 and 3; we count with them.
    assert unets.count_flops("ldm-4-g", 1, 64, [0])[0] / 2e9 == pytest.approx(99.82, rel=0.05)
    assert twins.count_flops("ddpm-cifar10", 1, (32, 32), [0])[0] / 2e9 == pytest.approx(6.1, rel=0.05)
    assert twins.count_flops("ddpm-lsun", 1, (256, 256), [0])[0] / 2e9 == pytest.approx(248.7, rel=0.05)


@pytest.mark.parametrize("name", ["small-svd", "small-ddpm"])
def test_forwards_by_hand_are_the_nets_own(small: None, name: str) -> None:
    unet, given = twins.make(name), twins.inputs(name, 2, (8, 8), frames=2)
    timestep, rest = torch.tensor(7), {key: value for key, value in given.items() if key != "sample"}
    wanted = unet(given["sample"], timestep, **rest, return_dict=False)[0]
    branches = range(len(unet.up_blocks) * 3)
    output, features = twins.walk(unet, given, timestep, branches)
    assert torch.equal(output, wanted)
    assert output.abs().max() > 0
    for branch in branches:
        assert torch.equal(twins.walk(unet, given, timestep, live=branch, feature=features[branch])[0], output)


# The sums ---------------------------------------------------------------------------------------------------


def test_a_loop_is_put_together_from_its_calls() -> None:
    setting = Setting(50, 3, 0)
    assert setting.full == 17
    full = {"plain": [9.0, 10, 11], "ours": [9.9, 11, 12.1]}
    cached = {"ours": [2.0] * 5, "by hand": [1.0] * 5}
    made = loops.compose(setting, full, cached, ("ours", "ours"), "plain", "by hand")
    assert made.gain.value == pytest.approx(500 / (17 * 11 + 33 * 2))
    assert made.by_hand.value == pytest.approx(500 / (170 + 33))
    assert made.share.value == pytest.approx(203 / (17 * 11 + 66))
    assert made.gain.low <= made.gain.value <= made.gain.high
    assert made.gain.low < made.gain.high
    assert loops.helpers(setting, full, cached, "ours", "plain").value == pytest.approx(made.gain.value)


def test_what_others_reported_is_found_by_size() -> None:
    found = cases.reported(Case("sd21", 512, 512, 8), 3, 0)
    assert found is not None and (found[0].speed_up, found[1]) == (2.32, True)
    found = cases.reported(Case("sd21", 256, 256), 5, 1)
    assert found is not None and (found[0].speed_up, found[1]) == (2.35, False)
    assert cases.reported(Case("sdxl", 1024, 1024), 5, 0) is None


def test_every_case_can_be_found() -> None:
    names = [case.name for case in {*cases.ON_GPU, *cases.ON_CPU}]
    assert len(set(names)) == len(names)
    for case in (*cases.ON_GPU, *cases.ON_CPU):
        assert speed_report.case_named(case.name) == case
        assert all(side % 8 == 0 for side in case.latent)


# The run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_runs_resumes_and_writes(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, docs = tmp_path / "work", tmp_path / "docs"
    given = ["--pairs", "2", "--seconds", "0", "--device", "cpu", "--work", str(work), "--docs", str(docs)]
    assert architectures.main([*given, "--cases", CASES[0].name]) == 0
    first = next(work.glob("*.json"))
    before = first.stat().st_mtime_ns
    assert architectures.main(given) == 0
    assert first.stat().st_mtime_ns == before
    text = capsys.readouterr().out
    assert (docs / "speed.md").read_text() in text
    figures: dict[str, Any] = json.loads((docs / "speed.json").read_text())
    assert [found["case"] for found in figures["cases"]] == [case.name for case in CASES]
    assert [found["doubts"] for found in figures["cases"]] == [[], [], []]
    assert len(figures["rows"]) == len(CASES) * len(SETTINGS)
    for row in figures["rows"]:
        assert row["gain"]["value"] > 0 and row["helper"]["value"] > 0 and row["share"]["value"] > 0
        assert 1 < row["limit"] < row["setting"]["interval"]
    assert figures["rows"][0]["kept_bytes"] == 2 * 32 * 8 * 8 * 4  # rows, channels, height, width, bytes
    text = (docs / "speed.md").read_text()
    assert text.count("at least 97 %") == text.count("at least 90 %") == 2 * len(CASES)
    assert "Do not trust" not in text


def test_what_went_wrong_is_confessed(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, given = twins.make("small-ddpm"), twins.inputs("small-ddpm", 1, (8, 8))
    real = twins.walk

    def wrong(*args: Any, **options: Any) -> Any:
        output, features = real(*args, **options)
        return output + 1, features

    monkeypatch.setattr(twins, "walk", wrong)
    clock, device = Clock(torch.device("cpu")), torch.device("cpu")
    result = twin_calls.measure(unet, given, [0], clock, device, pairs=1, budget=0, least=1, hand=True)
    assert any("by hand differs from the helper" in doubt for doubt in result.doubts)
