"""Plans on the laboratory's networks: what runs is the extension's session, what is counted is what was run."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch

from bench import unets
from bench.laboratory import __main__ as program
from bench.laboratory import measured, page, results, table, ways
from bench.laboratory.samplers import SAMPLERS, SCHEDULE
from bench.laboratory.studio import NotAsPlanned, Studio
from bench.tables import between
from deepcache_ext.plan.ageing import SOUNDED, UNMEASURED
from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.plan.importance import Nature
from deepcache_ext.plan.plan import ListedPlan, UniformPlan
from deepcache_ext.session.session import Session
from train.laboratory.networks import CHOOSING, JUDGING
from train.learn import fused_attention

LISTED = ListedPlan((0, 2, 3), 0, 5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_noise_levels_that_plans_see_are_those_that_are_run(studio, sampler, monkeypatch):
    seen, tick = [], Session.tick

    def watched(self, latent, sigma=None):
        seen.append(sigma)
        tick(self, latent, sigma)

    monkeypatch.setattr(Session, "tick", watched)
    studio.run(sampler, 5, 3.0, LISTED, Copy())
    assert seen == pytest.approx(SAMPLERS[sampler].sigmas(5)) and len(seen) == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_full_is_the_uncached_picture_and_anything_less_is_not(studio, sampler):
    plain = studio.run(sampler, 5, 3.0)
    assert torch.equal(studio.run(sampler, 5, 3.0), plain)
    assert torch.equal(studio.run(sampler, 5, 3.0, ListedPlan(tuple(range(5)), 0, 5), Copy()), plain)
    assert not torch.equal(studio.run(sampler, 5, 3.0, LISTED, Copy()), plain)


def test_a_plan_is_what_the_blocks_by_hand_make_of_it(studio):
    """Euler's method and DeepCache written out."""
    guidance, unet, kept = 3.0, studio.model.unet, None
    levels = [*SAMPLERS["Euler"].sigmas(5), 0.0]
    x = studio._noise * levels[0]
    with torch.no_grad(), fused_attention():
        for k, (now, then) in enumerate(itertools.pairwise(levels)):
            t = SCHEDULE.sigma_to_t(torch.tensor([now])).expand(4)
            given = {"x": torch.cat([x, x]) / (now**2 + 1) ** 0.5, "timesteps": t, **studio.given}
            if k in (0, 2, 3):
                out, kept = unets.full(unet, given, (0,))
            else:
                out = unets.live(unet, given, 0, kept[0])
            asked, empty = out.chunk(2)
            x = x + (empty + guidance * (asked - empty)) * (then - now)
    found = studio.run("Euler", 5, guidance, LISTED, Copy())
    assert torch.allclose(found, studio.code.decode(x), atol=1e-5)
    assert not torch.allclose(found, studio.run("Euler", 5, guidance), atol=1e-5)


def test_what_the_session_did_not_run_is_not_measured(studio, monkeypatch):
    monkeypatch.setattr(Session, "before", lambda *_: None)
    with pytest.raises(NotAsPlanned):
        studio.run("Euler", 5, 3.0, UniformPlan(2, 0, 5), Copy())


@pytest.mark.parametrize("depth", [9, 12])
@pytest.mark.parametrize("sampler", ["Euler", "Euler a"])
def test_every_way_is_as_fast_as_was_wanted(sampler, depth):
    ahead = ways.of(SAMPLERS[sampler].sigmas(20), depth, Nature(SAMPLERS[sampler].fresh_noise))
    found = list(ways.every(ahead))
    assert len({one.key for one in found}) >= 16
    for one in found:
        if one.wanted and not one.fewer:
            assert 0.99 * one.wanted <= one.speed_up <= ways.FASTEST * one.wanted * 1.05, one.key
    assert any(one.fewer for one in found) == (sampler == "Euler")
    plain, preset = (next(o for o in found if o.key == key) for key in ("uniform copy b0 @2", "preset @2"))
    assert plain.plan != preset.plan and plain.speed_up == pytest.approx(preset.speed_up, rel=0.09)


def test_fewer_steps_lie_on_the_line_between_two_numbers():
    assert ways.fewer_at({10: 30.0, 9: 28.0}, 19, 2.0) == pytest.approx(29.0)
    assert ways.fewer_at({10: 30.0}, 20, 2.0) == 30.0
    assert ways.fewer_at({10: 30.0}, 19, 2.0) is None


def test_even_spreads_full_evaluations_between_two_intervals():
    assert ways.even(20, 10) == tuple(range(0, 20, 2))
    assert ways.even(10, 4) == (0, 2, 5, 7)


@pytest.mark.slow
def test_a_run_goes_on_from_what_is_there_and_its_table_says_worst_and_mean(studio, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results.Results.__init__, "__defaults__", (tmp_path,))
    cells = [(3.0, 20, "Euler")]
    program.measure(studio, cells)
    first, made = (tmp_path / "tiny.json").read_text(), []
    monkeypatch.setattr(studio, "likeness", lambda *_: made.append(1))
    program.measure(studio, cells)
    assert not made and (tmp_path / "tiny.json").read_text() == first
    one, other = results.Results("tiny", tmp_path), results.Results("tiny", tmp_path)
    cell = other.cells["Euler, 20 steps, guidance 3"]
    for key in cell:
        if key.startswith("preset"):
            cell[key]["psnr"] = [value - 2 for value in cell[key]["psnr"]]
    plain, weighted = (one.mean("Euler", 20, 3.0, f"{name} @2")[1] for name in (table.PLAIN, "preset"))
    line = next(row for row in table.whole([one, other], cells).splitlines() if "2x | preset" in row)
    above = weighted - plain
    assert f"| {weighted - 1:.1f} ({weighted - 2:.1f}) | {above - 1:.1f} ({above - 2:.1f}) |" in line
    assert next(row for row in table.whole([one], cells).splitlines() if f"2x | {table.PLAIN}" in row).count(
        "0.0 (0.0)"
    )


@pytest.mark.slow
def test_a_network_is_measured_and_plans_go_by_that(studio, tmp_path, monkeypatch):
    monkeypatch.setitem(SOUNDED, studio.depth, (0, 2, 4))
    for fresh_noise in (False, True):
        monkeypatch.setitem(UNMEASURED, (studio.depth, fresh_noise), dict.fromkeys(range(5), 1.0))
    found = measured.measured(studio.network, 3.0)
    assert set(found) == {False, True} and all(set(one) == set(range(5)) for one in found.values())
    tuned = Studio(studio.network, 2, measured.TUNING_SEED)
    error = {}
    for branch in (0, 2):
        estimator = Forecast() if branch else Copy()
        scores = tuned.likeness("Euler a", 20, 3.0, UniformPlan(2, branch, 20), estimator)
        error[branch] = fmean(scores)
    half_way = 10 ** ((error[0] - error[2]) / 40)  # from the usual 1
    assert found[True][2] == pytest.approx(half_way, rel=1e-3)
    deep = {False: {0: 1.0, 2: 0.01}, True: {0: 1.0}}
    cells = dict(measured.one_network(studio, [("Euler", 12), ("Euler a", 12)], 3.0, deep))
    assert list(cells) == [f"{name}|12|{speed}" for name in ("Euler", "Euler a") for speed in ("1.6", "2", "2.6")]
    plain, preset, own = cells["Euler|12|1.6"]
    assert own not in (plain, preset)
    path = tmp_path / "measured.json"
    measured.keep({"one|Euler|12|2": [1.0, 2.0, 3.0]}, path)
    measured.keep({"two|Euler|12|2": [1.0, 4.0, 6.0]}, path)
    kept = json.loads(path.read_text(encoding="utf-8"))
    lines = list(measured.table(kept))
    assert lines[2] == "| Euler | 12 | 2x | +2.0 (+1.0) | +3.5 (+2.0) |" and "+1.5 dB in the mean, +1.0 at" in lines[-1]


@pytest.mark.parametrize(("path", "made"), [(page.README, page.presets), (page.WHICH, page.means)])
def test_the_pages_tables_are_those_of_the_results(path: Path, made: Callable[[], list[str]]):
    told = path.read_text(encoding="utf-8")
    assert between(told, *page.MARKS[path], "\n".join(made())) == told, "python -m bench.laboratory --write"


def test_the_page_of_evidence_is_that_of_the_results():
    told = page.PAGE.read_text(encoding="utf-8")
    assert all(line in told for half in (JUDGING, CHOOSING) for line in page.table(half)), "bench.laboratory --write"


def test_a_table_takes_its_own_place_alone():
    made = between("x\n<1>\nold\n<2>\ny", "<1>", "<2>", r"new \1")
    assert made == "x\n<1>\n\nnew \\1\n\n<2>\ny"
    with pytest.raises(ValueError, match="no place"):
        between("<2> <1>", "<1>", "<2>", "new")
