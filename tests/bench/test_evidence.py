"""The evidence: its measures against known values, its run end to end with random weights, and that it resumes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from bench.evidence import __main__ as program
from bench.evidence import grid, plots, report, speed, studio, summary
from bench.evidence.grid import Arm, Pair, Sampler, Task
from bench.evidence.metrics import METRICS, PSNR_CAP, bootstrap, compare, gmsd, ms_gmsd, psnr, ssim
from bench.evidence.results import Results, key_of
from bench.evidence.runs import missing
from bench.evidence.studio import Made, Studio

TASKS = [
    Task(
        Sampler("Euler"),
        6,
        (
            grid.setting(3, 0, "copy"),
            grid.preset("Quality"),
            Arm("2 steps", fewer=2),
            Arm("5 steps", fewer=5),
        ),
    )
]
TIMES = speed.CallTimes(10.0, 10.0, {0: {"copy": 1.0, "forecast": 1.0}}, False, {})
PAIR = Pair(0, "a red car", studio.FIRST_SEED)


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Two of 40 x 48 pixels, and the same with a little noise."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 40, 48, generator=generator)
    return clean, (clean + 0.05 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


# Measures ---------------------------------------------------------------------------------------------------


def test_equal_pictures(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert compare(pictures[0], pictures[0]) == [pytest.approx({"psnr": PSNR_CAP, "ssim": 1, "distance": 0})] * 2


def test_psnr_of_a_known_error() -> None:
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert psnr(grey, grey + 0.1).item() == pytest.approx(20, abs=1e-4)
    assert psnr(grey, grey + 1 / 255).item() == pytest.approx(20 * math.log10(255), abs=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_symmetric_and_worse_with_more_noise(name: str, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    metric, (clean, noisy) = METRICS[name], pictures
    torch.testing.assert_close(metric(clean, noisy), metric(noisy, clean))
    noisier = clean + 3 * (noisy - clean)
    worse = metric(clean, noisier) > metric(clean, noisy)
    assert worse.all() if name == "distance" else not worse.any()


@pytest.mark.parametrize("name", METRICS)
def test_pictures_of_a_batch_do_not_mix(name: str, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    metric, (clean, noisy) = METRICS[name], pictures
    torch.testing.assert_close(metric(clean, noisy)[1:], metric(clean[1:], noisy[1:]))


def test_ssim_of_flat_pictures_is_its_formula() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(a, b).item() == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), rel=1e-5)


def test_ssim_is_that_of_scipys_gaussian(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (one[0].double().numpy() for one in pictures)

    def blur(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, (0, 1.5, 1.5), radius=(0, 5, 5))[:, 5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    wanted = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    wanted /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert ssim(*pictures)[0].item() == pytest.approx(wanted.mean(), rel=1e-9)


def test_gmsd_of_a_lost_edge_is_its_formula() -> None:
    """Similarity c / (1 + c) in the two columns beside the edge of height 1, and 1 elsewhere."""
    edge = torch.zeros(1, 1, 22, 12, dtype=torch.float64)
    edge[..., 6:] = 1
    similarity = torch.ones(20, 10, dtype=torch.float64)
    similarity[:, 4:6] = 170 / 255**2 / (1 + 170 / 255**2)
    wanted = similarity.std(unbiased=False).item()
    assert gmsd(edge, torch.zeros_like(edge)).item() == pytest.approx(wanted, rel=1e-5)


def test_distance_sees_lost_edges_but_no_even_brightness() -> None:
    ramp = torch.linspace(0, 0.5, 64).expand(1, 3, 64, 64)
    assert ms_gmsd(ramp, ramp + 0.2).item() == pytest.approx(0, abs=1e-5)
    edges = torch.zeros(1, 3, 64, 64)
    edges[..., 16:48, 16:48] = 1
    assert ms_gmsd(edges, torch.zeros_like(edges)).item() > 0.1


def test_bootstrap_is_deterministic_and_holds_the_mean() -> None:
    values = np.random.default_rng(3).normal(30, 2, size=200).tolist()
    first = bootstrap(values)
    assert first == bootstrap(values)
    assert first.mean == pytest.approx(np.mean(values)) and first.low < first.mean < first.high
    assert first.high - first.low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(200), rel=0.15)
    assert bootstrap([5.0] * 4).as_json() == {"mean": 5.0, "low": 5.0, "high": 5.0, "samples": 4}


def test_bootstrap_of_groups_counts_pictures_of_one_prompt_as_one() -> None:
    values = np.random.default_rng(3).normal(30, 2, size=20).tolist()
    once = bootstrap(values)
    four = bootstrap(values * 4, [str(i) for i in range(20)] * 4)
    assert four.mean == pytest.approx(once.mean) and four.samples == 80
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=0.1)


# Speed ------------------------------------------------------------------------------------------------------


def test_speed_up_counts_full_and_cached_calls() -> None:
    assert TIMES.speed_up(30, 30, 10, 0, "copy") == pytest.approx(300 / 120)
    two = speed.CallTimes(10.0, 10.0, {0: {"copy": 1.0}, 5: {"copy": 5.0}}, False, {})
    assert two.speed_up(30, 30, 6, 0, "copy", 6, 5) == pytest.approx(300 / (60 + 30 + 18))
    assert TIMES.speed_up(30, 30, 30, 7, "copy") == 1  # nothing was cached: no branch is looked up


def test_counted_call_times_are_those_of_the_layout() -> None:
    times = speed.counted([0, 2], ["copy"])
    assert not times.measured and "not measured" in times.in_words()
    assert 0.05 < times.cached[0]["copy"] / times.plain < 0.1 < times.cached[2]["copy"] / times.plain < 0.5
    assert speed.covers(times, {(2, "copy")}) and not speed.covers(times, {(1, "copy")})


def bench_figures(**changes: Any) -> dict[str, Any]:
    machine = {"device": "cpu", "name": "x", "cpus": 2, "threads": 1, "load": 4.0, "torch": "2", "python": "3"}
    figures = {
        "settings": {"layout": "sd15", "size": 64, "batch": 2, "clock": "processor"},
        "machine": machine,
        "doubts": [],
        "full": {"plain": 3.0, "hooked": 2.0, "ratio": {"low": 0.6, "high": 0.7}},
        "samples": {"full": {"plain": [3.0, 3.0], "hooked": [2.0, 2.0]}},
        "cached": [{"branch": 0, "estimator": "copy", "seconds": 0.5}],
    }
    return figures | changes


def test_call_times_from_the_bench(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_figures()), encoding="utf-8")
    times = speed.from_bench(path)
    assert (times.plain, times.full, times.cached) == (3.0, 2.0, {0: {"copy": 0.5}})
    assert "processor time" in times.in_words() and "busy" in times.in_words()
    assert speed.CallTimes.from_json(json.loads(json.dumps(times.as_json()))) == times
    not_apart = {"plain": 3.0, "hooked": 2.0, "ratio": {"low": 0.6, "high": 1.1}}
    path.write_text(json.dumps(bench_figures(full=not_apart)), encoding="utf-8")
    assert speed.from_bench(path).plain == speed.from_bench(path).full == 2.5


@pytest.mark.parametrize(
    "changes",
    [
        {"doubts": ["a call was not cached"]},
        {"settings": {"layout": "sdxl", "size": 64, "batch": 2, "clock": "wall"}},
    ],
)
def test_call_times_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_figures(**changes)), encoding="utf-8")
    with pytest.raises(speed.NotUsable):
        speed.from_bench(path)


# Summary and report -----------------------------------------------------------------------------------------


def record(arm: str, seed: int, psnr: float, **more: Any) -> dict[str, Any]:
    where = {"sampler": "Euler", "steps": 6, "guidance": 5.0, "arm": arm, "seed": seed}
    calls = {"calls": 6, "reference_calls": 6, "seconds": 1.0, "reference_seconds": 2.0}
    likeness = {"psnr": psnr, "ssim": 0.9, "distance": 0.01}
    return {**where, "prompt": f"picture {seed % 3}", **calls, **likeness, **more}


def test_rival_lies_between_its_neighbours_in_log_time() -> None:
    cached = {"full": 2, "branch": 0, "estimator": "copy"}
    records = [
        made
        for seed in range(4)
        for made in (
            record("interval 3, branch 0, copy", seed, 40.0 + seed, **cached),
            record("2 steps", seed, 20.0, calls=2),
            record("5 steps", seed, 35.0, calls=5),
        )
    ]
    (section,) = summary.summarise(TASKS, records, TIMES)
    (row,) = section.rows
    assert row.speed_up == pytest.approx(60 / 24) and row.own == pytest.approx(2) and section.pairs == 4
    assert [one.arm.fewer for one in section.rivals] == [5, 2]
    share = math.log(2.5 / 1.2) / math.log(3 / 1.2)
    assert row.rival is not None and row.ahead is not None
    assert row.rival["psnr"].mean == pytest.approx(35 - 15 * share)
    assert row.ahead.mean == pytest.approx(41.5 - 35 + 15 * share) and row.ahead.low > 0
    (line,) = report.verdicts([section])
    assert "of 1 settings that have a rival 1 are ahead of it, 0 behind" in line


def test_rows_of_a_table_are_of_the_same_pairs() -> None:
    records = [record("2 steps", seed, 20.0 + seed, calls=2) for seed in range(3)]
    records += [record("5 steps", seed, 35.0, calls=5) for seed in range(2)]
    records += [record("5 steps", 0, 99.0, guidance=9.0), record("4 steps", 0, 99.0)]  # in no task
    (section,) = summary.summarise(TASKS, records, TIMES)
    assert [row.likeness["psnr"].samples for row in section.rivals] == [2, 2] and section.pairs == 2
    assert section.rivals[1].likeness["psnr"].mean == pytest.approx(20.5)


def test_no_rival_outside_of_what_was_measured() -> None:
    records = [
        record("interval 3, branch 0, copy", 1, 40.0, full=2, branch=0, estimator="copy"),
        record("5 steps", 1, 35.0, calls=5),
    ]
    ((row,),) = (section.rows for section in summary.summarise(TASKS, records, TIMES))
    assert row.rival is None and row.ahead is None


def test_over_plain_deepcache_at_equal_speed() -> None:
    arms = (*grid.PLAIN[1:3], grid.weighted(2.0))
    tasks = [Task(Sampler("Euler"), 6, arms)]
    times = speed.CallTimes(1.0, 1.0, {0: {"copy": 0.1, "forecast": 0.1}}, True, {})
    records = []
    for seed in range(3):
        records += [
            record(arms[0].name, seed, 40.0 + seed, full=3, branch=0, estimator="copy"),
            record(arms[1].name, seed, 30.0 + seed, full=2, branch=0, estimator="copy"),
            record(arms[2].name, seed, 45.0 + seed, full=3, branch=0, estimator="forecast"),
        ]
    (section,) = summary.summarise(tasks, records, times)
    rows = {row.arm.name: row for row in section.rows}
    assert rows["weighted 2x"].over_copy is None  # as slow as the slowest plain one: nothing is extrapolated
    for one in records[2::3]:
        one["full"] = 2
    (section,) = summary.summarise(tasks, records, times)
    rows = {row.arm.name: row for row in section.rows}
    assert rows["weighted 2x"].over_copy.mean == pytest.approx(15.0)
    assert all(rows[arm.name].over_copy is None for arm in arms[:2])


def test_grid_has_what_was_asked_for() -> None:
    every = [((task.sampler.name, task.steps, task.guidance), task) for task in grid.full_grid()]
    assert len(dict(every)) == len(every)
    assert {guidance for (_, _, guidance), _ in every} == {5.0, 7.0}
    tasks = {key[:2]: [arm.name for arm in task.arms] for key, task in every if key[2] == grid.GUIDANCE}
    presets = {f"preset {name}" for name in grid.PRESETS}
    for sampler in ("Euler", "DPM++ 2M Karras"):
        named = [name.split()[0] for name in tasks[sampler, 30]]
        assert (named.count("interval"), named.count("weighted"), named.count("non-uniform")) == (12, 6, 1)
        assert all(presets <= set(tasks[sampler, steps]) for steps in (20, 30, 50))
    for sampler in ("Euler a", "DPM++ SDE Karras", "DDIM", "UniPC"):
        assert presets <= set(tasks[sampler, 30])
        assert any(name.endswith("steps") for name in tasks[sampler, 30]) == (sampler in ("DDIM", "UniPC"))
    assert all(len(set(names)) == len(names) for names in tasks.values())


def test_file_names_of_plots_differ() -> None:
    assert len({plots.file_name(sampler.name) for sampler in grid.SAMPLERS}) == len(grid.SAMPLERS)


# The run ----------------------------------------------------------------------------------------------------


def test_results_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    first, second, third = (record("2 steps", seed, 20.0) for seed in range(3))
    with Results(path) as results:
        results.add([first])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(second)[:40])
    with Results(path) as results:
        assert results.records == [first] and key_of(second) not in results
        results.add([second, third, third])
    with Results(path) as results:
        assert results.records == [first, second, third]


def test_what_is_missing_goes_through_the_whole_grid_first(tmp_path: Path) -> None:
    tasks = [Task(Sampler(name), 6, (Arm("2 steps", fewer=2),)) for name in ("Euler", "DDIM")]
    pairs = [Pair(i, "a red car", 1000 + i) for i in range(3)]
    with Results(tmp_path / "results.jsonl") as results:
        pieces = missing(tasks, pairs, 2, results)
        assert [(task.sampler.name, len(part)) for task, part, _ in pieces] == [
            ("Euler", 2),
            ("DDIM", 2),
            ("Euler", 1),
            ("DDIM", 1),
        ]


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Steps, and whether with DeepCache, of each generation but the one that warms up."""
    real, seen = Studio.make, []

    def make(
        self: Studio,
        sampler: str,
        steps: int,
        guidance: float,
        pairs: Sequence[Pair],
        args: Mapping[str, Any] | None = None,
    ) -> Made:
        made = real(self, sampler, steps, guidance, pairs, args)
        if hasattr(self, "warm"):
            seen.append((steps, args is not None))
        self.__dict__["warm"] = True
        return made

    monkeypatch.setattr(Studio, "make", make)
    return seen


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(grid, "quick_grid", lambda: TASKS)
    monkeypatch.setattr(speed, "recorded", lambda path: None)
    given = [
        "--quick",
        "--model",
        "tinyA",
        "--size",
        "64",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "docs"),
    ]
    return lambda *more: program.main([*given, *more])


@pytest.mark.slow
def test_run_resume_and_report(
    tmp_path: Path,
    evidence: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    generations: list[tuple[int, bool]],
) -> None:
    assert evidence("--pairs", "2", "--batch", "2") == 0
    assert sorted(generations) == [(2, False), (5, False), (6, False), (6, True), (6, True)]
    found = json.loads((tmp_path / "docs" / "evidence.json").read_text(encoding="utf-8"))
    (section,) = found["sections"]
    assert section["pairs"] == 2 and not found["facts"]["trained"] and not found["call_times"]["measured"]
    rows = {row["arm"]: row for row in section["settings"]}
    copy = rows["interval 3, branch 0, copy"]
    assert (copy["calls"], copy["full"]) == (6, 2) and copy["speed_up"] > 2
    assert 10 < copy["likeness"]["psnr"]["mean"] < PSNR_CAP and 0 < copy["likeness"]["distance"]["mean"] < 1
    assert rows["preset Quality"]["full"] == 6  # so few steps: nothing is skipped
    text = (tmp_path / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "random weights" in text and "not measured" in text and "Euler, 6 steps (2 pairs)" in text
    for picture in re.findall(r"\]\((evidence/[^)]+\.png)\)", text):
        assert (tmp_path / "docs" / picture).read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in text + json.dumps(found)

    generations.clear()  # all is there: nothing is made again, and the report is the same
    assert evidence("--pairs", "2", "--batch", "2") == 0
    assert generations == []
    assert (tmp_path / "docs" / "evidence.md").read_text(encoding="utf-8") == text
    assert evidence("--pairs", "3", "--batch", "2", "--minutes", "0") == 0
    assert generations == [] and "the same command continues" in capsys.readouterr().err
    assert evidence("--pairs", "1", "--report") == 0
    text = (tmp_path / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "Euler, 6 steps (1 pairs)" in text


@pytest.mark.slow
def test_interruption_keeps_what_is_finished(
    tmp_path: Path, evidence: Callable[..., int], generations: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Studio.make

    def interrupted(self: Studio, *args: Any) -> Made:
        if len(generations) == 3:
            raise KeyboardInterrupt
        return whole(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Studio, "make", interrupted)
        assert evidence("--pairs", "1") == 130
    assert generations == [(6, False), (6, True), (6, True)] and not (tmp_path / "docs").exists()
    generations.clear()
    assert evidence("--pairs", "1") == 0
    assert generations == [(6, False), (2, False), (5, False)]  # only the reference once more, for what is missing
    (path,) = (tmp_path / "work").glob("*.jsonl")
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(TASKS[0].arms)


def test_nothing_to_report(evidence: Callable[..., int]) -> None:
    assert evidence("--report") == 1


def test_unknown_sampler_is_named(evidence: Callable[..., int]) -> None:
    with pytest.raises(SystemExit, match="Euler a"):
        evidence("--samplers", "Oiler")


def test_cached_pictures_really_are_and_uncached_ones_leave_no_trace() -> None:
    with Studio(studio.checkpoint_called("tinyA"), 64) as made:
        plain, again = (made.make("Euler", 4, 7.0, [PAIR]) for _ in range(2))
        cached = made.make("Euler", 4, 7.0, [PAIR], {"cache_interval": 2})
        assert torch.equal(plain.pictures, again.pictures) and plain.calls == 4
        assert plain.pictures.shape == (1, 3, 64, 64) and not torch.equal(plain.pictures, cached.pictures)
        assert (cached.evaluations, cached.full, cached.branch, cached.estimator) == (4, 2, 0, "copy")
        by_depth = made.make("Euler", 4, 7.0, [PAIR], {"cache_interval": 1, "deeper_branch_id": 2})
        assert (by_depth.full, by_depth.deeper, by_depth.deeper_branch) == (4, 0, 0)
        by_depth = made.make("Euler", 5, 7.0, [PAIR], {"cache_interval": 2, "deeper_branch_id": 2})
        assert (by_depth.full, by_depth.deeper, by_depth.deeper_branch) == (2, 1, 2)
        assert "decode_first_stage" not in vars(made._host.module("shared").sd_model)  # type: ignore[union-attr]
        with pytest.raises(studio.NotActive):
            made.make("Euler", 4, 7.0, [PAIR], {"cache_interval": 0})


def test_pairs_are_the_same_ones_and_grow() -> None:
    tiny = studio.checkpoint_called("tinyA")
    assert studio.pairs_for(tiny, 5) == studio.pairs_for(tiny, 20)[:5]
    half = len(studio.WORDS) // 2
    held_out, tuned = ({p.prompt for p in studio.pairs_for(tiny, 3 * half, tuned=flag)} for flag in (False, True))
    assert len(held_out) == len(tuned) == half and not held_out & tuned
    assert studio.fingerprint(tiny, 64) != studio.fingerprint(tiny, 128)
