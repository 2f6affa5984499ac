"""The benchmark of the pipelines: what it counts, what it doubts and the form of its table. No time is asserted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import pipelines as bench
from deepcache_ext.python.deepcache import Report
from deepcache_ext.report.pass_report import PassReport, Reason
from tests import diffusers_pipelines

CONTROL = "StableDiffusionControlNet, control network counted"
ROW = re.compile(
    r"\| (?P<case>[^|]+) \| (?P<gain>\d+\.\d\d) \[\d+\.\d\d, \d+\.\d\d\] \| [\d.]+ \| [\d.]+ \| (?P<pairs>\d+) "
    r"\| (?P<full>[^|]+) \| (?P<checks>[^|]+) \|"
)


@pytest.mark.slow
def test_table_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, names = tmp_path / "figures.json", ["DDPM", CONTROL]
    assert bench.main(["--only", *names, "--pairs", "1", "--width", "32", "--json", str(file)]) == 0
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert set(line) == {"|", "-"} and line.count("|") == head.count("|") == rows[0].count("|")
    found = [ROW.fullmatch(row) for row in rows]
    assert [(m["case"], m["pairs"], m["full"], m["checks"]) for m in found if m] == [
        (name, "1", "2 of 6", "as planned") for name in names
    ]
    figures = json.loads(file.read_text())
    assert figures["machine"]["threads"] == 1
    assert [kept["calls"] for kept in figures["rows"]] == [6, 6 + 6]
    for kept, match in zip(figures["rows"], found, strict=True):
        assert match is not None
        assert float(match["gain"]) == pytest.approx(kept["speed_up"]["value"], abs=0.006)
        (plain,), (cached,) = kept["seconds"]["plain"], kept["seconds"]["cached"]
        assert kept["speed_up"]["value"] == pytest.approx(plain / cached)


def test_every_pipeline_is_a_case() -> None:
    assert set(diffusers_pipelines.BUILD) <= set(bench.CASES)


def test_only_the_networks_calls_are_timed() -> None:
    inner, outer, now = torch.nn.Identity(), torch.nn.Identity(), iter([10.0, 12.0, 20.0, 23.0])
    clock = bench.NetworkClock()
    clock._now = lambda: next(now)  # type: ignore[method-assign]
    seen = []
    inner.register_forward_pre_hook(lambda *_: seen.append(clock._began))
    inner.register_forward_hook(lambda *_: seen.append(clock.calls))

    def run() -> None:
        with clock.on([inner]):
            outer(inner(torch.zeros(1)))
            inner(torch.zeros(1))
        inner(torch.zeros(1))

    assert clock.time(run) == 5.0
    assert clock.calls == 2
    assert seen == [10.0, 0, 20.0, 1, 20.0, 2], "other hooks' time must be within"


def test_doubts() -> None:
    good = PassReport(evaluations=7, full_evaluations=3, planned_full=3, full_calls=3, cached_calls=4)
    assert bench.doubts_of(Report((good, good)), 3) == bench.doubts_of(Report((good,)), None) == []
    assert bench.doubts_of(Report((good,)), 2) == ["3 full, planned 4"]
    assert bench.doubts_of(Report((), "no ladder"), 3) == ["no ladder"]
    bad = PassReport(
        evaluations=7,
        full_evaluations=3,
        planned_full=3,
        full_calls=5,
        cached_calls=4,
        off="asked",
        misses=Counter({Reason.WEIGHTS: 2}),
    )
    assert bench.doubts_of(Report((bad,)), 3) == [
        "off: asked",
        "2 calls in full: the model's weights changed",
        "5 full and 4 cached calls in 7 evaluations",
    ]


def test_heads_and_widths_shrink_alike() -> None:
    options = bench.narrowed("sdxl", 64)
    assert options["block_out_channels"] == (64, 128, 256)
    assert options["attention_head_dim"] == (1, 2, 4)
    assert bench.narrowed("3d", 64)["attention_head_dim"] == 16
