"""`make gpu` on a very small UNet and a CPU: every step runs, what is done stays done, a cut run tells what is missing,
and what is wrong is seen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_checks, gpu_report, twin_calls, unets
from bench.timing import Clock
from deepcache_ext.unet.hooks import is_hooked

TINY = ("--device", "cpu", "--tiny")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("quiet")


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "speed-gpu.json").read_text())["steps"]


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*TINY, "--out", str(tmp_path)]) == 0
    found, text = figures(tmp_path), capsys.readouterr().out
    assert [name.split(":")[0] for name in found] == ["right"] * 2 + ["waits"] * 2 + ["fast"] * 4
    assert all("figures" in step for step in found.values()), text
    assert text.strip() == (tmp_path / "speed-gpu.md").read_text().strip()
    assert "too small" in text and "Not done" not in text
    counts = found["waits: tiny"]["figures"]["synchronisations"]
    assert all(count >= 0 for count in counts.values()) and len(counts) == 8
    assert set(found["fast: presets, tiny 64 px"]["figures"]["gains"]) == set(gpu.PRESETS)
    assert found["fast: compiled, tiny 64 px"]["figures"]["wrong"] == [] and "of what is compiled" in text


def steps_of(*names: str, run: Any) -> Any:
    return lambda options, say: [gpu.Step(name, 5, lambda name=name: run(name)) for name in names]


def test_a_second_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(name: str) -> dict[str, Any]:
        ran.append(name)
        if ran == ["right: a", "right: b"]:
            raise RuntimeError("out of memory")
        return {"wrong": []}

    monkeypatch.setattr(gpu, "steps", steps_of("right: a", "right: b", run=run))
    gpu.main([*TINY, "--out", str(tmp_path)])
    assert "out of memory" in (tmp_path / "speed-gpu.md").read_text()
    gpu.main([*TINY, "--out", str(tmp_path)])
    assert ran == ["right: a", "right: b", "right: b"]
    assert "Not done" not in (tmp_path / "speed-gpu.md").read_text()


@pytest.mark.parametrize("how", ["budget", "SIGTERM"])
def test_a_cut_run_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def run(name: str) -> dict[str, Any]:
        if name == "right: b":
            if how == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return {"wrong": []}

    monkeypatch.setattr(gpu, "steps", steps_of("right: a", "right: b", "fast: c", run=run))
    before, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    gpu.main([*TINY, "--minutes", "0.03" if how == "budget" else "5", "--out", str(tmp_path)])
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGTERM) is before
    found = figures(tmp_path)
    assert "figures" in found["right: a"]
    assert found["right: b"]["not_done"] == ("stopped" if how == "SIGTERM" else "time was up")
    assert "right: b" in (tmp_path / "speed-gpu.md").read_text()


def test_a_cut_that_gets_lost_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cleared:
        def __del__(self) -> None:  # Python only tells of what is raised here
            time.sleep(30)

    def run(name: str) -> dict[str, Any]:
        Cleared()
        time.sleep(30)
        return {}

    monkeypatch.setattr(gpu, "AGAIN", 0.2)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(gpu, "steps", steps_of("right: a", run=run))
    began = time.monotonic()
    gpu.main([*TINY, "--minutes", "0.03", "--out", str(tmp_path)])
    assert time.monotonic() - began < 10 and figures(tmp_path)["right: a"]["not_done"] == "time was up"


def test_a_run_that_is_cut_between_two_steps_tells_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = gpu_report.write

    def written(*args: Any) -> str:
        monkeypatch.setattr(gpu_report, "write", write)
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*args)

    monkeypatch.setattr(gpu_report, "write", written)
    monkeypatch.setattr(gpu, "steps", steps_of("right: a", "right: b", run=lambda name: {"wrong": []}))
    assert gpu.main([*TINY, "--out", str(tmp_path)]) == 0
    assert list(figures(tmp_path)) == ["right: a"]
    assert "1 arrangements" in capsys.readouterr().out


def test_without_its_packages_it_says_what_to_carry() -> None:
    blocked = "import sys, runpy; sys.modules['diffusers'] = None; runpy.run_module('bench.gpu', run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "diffusers" in found.stderr.partition("\n")[0] and "pip download" in found.stderr


def test_the_unets_own_waits_are_counted_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = []

    def count(_: torch.device, run: Any) -> int:
        if run.__name__ == "plain":
            hooked.append(is_hooked(run.__self__.unet))
        run()
        return 0

    monkeypatch.setattr(gpu_checks, "_count", count)
    assert gpu_checks.waits("tiny", CPU, torch.float32, 8)["wrong"] == []
    assert hooked == [False] * 4


def test_a_gpus_first_call_is_not_what_a_call_takes() -> None:
    calls: list[str] = []

    class Fake(Clock):
        def time(self, run: Any, calls: int = 1) -> float:
            run()
            return 0.5

    for name in ("cuda", "cpu"):
        device = torch.device(name)
        assert twin_calls.first_call(lambda name=name: calls.append(name), Fake(device), device) == 0.5
    assert calls == ["cuda", "cuda", "cpu"]


def test_a_wrong_result_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = unets.live
    monkeypatch.setattr(unets, "live", lambda *args: live(*args) + 1)
    found = gpu_checks.webui("tiny", CPU, torch.float32, torch.float32, 8)
    assert [text.split(":")[0] for text in found["wrong"]] == [f"branch {b}, cached" for b in (0, 1, 5)]
    state = {"steps": {"right: a": {"figures": found}}}
    assert len(list(gpu_report.wrong(state))) == 3


def test_reading_a_number_is_counted() -> None:
    x = torch.ones(2)
    assert gpu_checks._count(CPU, lambda: (x.sum().item(), torch.equal(x, x), x + 1)) == 2
