"""Rivals of the presets: all full is the uncached picture, what is counted is what runs, forecasts are right."""

import math

import pytest
import torch

from bench.laboratory.results import Results
from bench.rivals import __main__ as program
from bench.rivals import forecasts, page, spent, ways
from bench.rivals.forecasts import Forecasting
from bench.rivals.net import Net
from bench.rivals.sada import Rule, Sada, interpolated
from bench.rivals.tgate import TGate
from bench.rivals.thresholds import KINDS, Reusing, drift

STEPS = 7
LINE = [(k, torch.tensor([3.0 - 2 * k, k])) for k in (0, 1, 3, 4)]


def all_full(net):
    whole = range(STEPS)
    yield Forecasting(net, STEPS, whole, lambda *_: 1 / 0)
    yield Forecasting(net, STEPS, whole, lambda *_: 1 / 0, inside=True)
    yield from (Reusing(net, STEPS, kind, 0.0) for kind in KINDS.values())
    yield Sada(net, STEPS, Rule(least=-2.0))
    yield TGate(net, STEPS, STEPS)


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M Karras", "Euler a"])
def test_all_full_is_the_uncached_picture_to_the_bit(studio, sampler):
    plain = studio.run(sampler, STEPS, 3.0)
    for rival in all_full(Net.of(studio, 3.0)):
        assert torch.equal(studio.drawn(sampler, STEPS, rival), plain), type(rival)
        assert rival.speed_up == 1.0


@pytest.fixture
def calls(studio, monkeypatch):
    """How many rows each run of the middle block had."""
    found = []
    handle = studio.model.unet.middle_block.register_forward_pre_hook(lambda _, given: found.append(len(given[0])))
    yield found
    handle.remove()


def test_a_skipped_evaluation_costs_nothing_and_is_not_run(studio, calls):
    rival = Forecasting(Net.of(studio, 3.0), 20, range(12), lambda known, at: known[-1][1])
    studio.drawn("Euler", 20, rival)
    assert rival.speed_up == pytest.approx(20 / 12) and len(calls) == 12


@pytest.mark.parametrize("name", KINDS)
def test_each_picture_decides_for_itself_and_what_is_counted_is_what_ran(studio, calls, name):
    rival = Reusing(Net.of(studio, 3.0), STEPS, KINDS[name], 1e-3)
    x, t = torch.randn(studio.count, *studio._shape), torch.tensor([500.0])
    first = rival(x, t, 1.0)
    x[0] = torch.randn_like(x[0])
    second = rival(x, t, 1.0)
    assert calls == [4, 2] and rival.share < 0.08
    assert rival.spent == pytest.approx(1 + 0.5 + 0.5 * rival.share)
    assert torch.allclose(second[1], first[1], atol=1e-5) and not torch.allclose(second[0], first[0], atol=1e-5)
    assert torch.allclose(second[0], Reusing(Net.of(studio, 3.0), STEPS, KINDS[name], 0.0)(x, t, 1.0)[0], atol=1e-5)


def test_a_threshold_above_everything_keeps_the_first_residual(studio):
    """First Block Cache, written out: the picture of the first block's output and the first residual."""
    net = Net.of(studio, 3.0)
    rival = Reusing(net, STEPS, KINDS["First Block Cache"], math.inf)
    x, kept = torch.randn(studio.count, *studio._shape), None
    for t in (900.0, 700.0):
        call = net.call(x, torch.tensor([t]))
        led = net.lead(call, 2)
        kept = net.rest(call, led) - led[-1] if kept is None else kept
        said = net.last(led[-1] + kept)
        assert torch.allclose(rival(x, torch.tensor([t]), 1.0), net.noise(said, x, 1.0), atol=1e-5)
        x = x * 0.5
    assert rival.spent == pytest.approx(1 + rival.share)


def test_after_the_gate_neither_texts_nor_guidance_count(studio, calls):
    rival = TGate(Net.of(studio, 3.0), STEPS, 2)
    drawn = studio.drawn("Euler", STEPS, rival)
    after = (1 - spent.SHARES[12].cross_attention) / 2
    assert rival.spent == pytest.approx(2 + 5 * after) and calls == [4] * 2 + [2] * 5
    assert not torch.equal(drawn, studio.drawn("Euler", STEPS, TGate(Net.of(studio, 3.0), STEPS, 3)))
    assert not any(layer._forward_hooks for layer in studio.model.unet.modules() if layer is not None)


def test_self_attention_is_kept_before_the_gate_where_that_is_asked_for(studio):
    rival = TGate(Net.of(studio, 3.0), STEPS, 6, keeps_self=True)
    studio.drawn("Euler", STEPS, rival)  # Kept at 2, used at 3 and 4, the gate's own is run.
    shares = spent.SHARES[12]
    assert rival.spent == pytest.approx(6 - 2 * shares.self_attention + (1 - shares.cross_attention) / 2)


def test_sada_expects_the_latent_where_it_comes_to_be(studio):
    """Third order: the miss is a small part of the step."""
    parts = []

    class Watched(Sada):
        def skipped(self, x, expected):
            if expected is not None:
                parts.append(float((x - expected).norm() / (x - self.before[0]).norm()))
            return super().skipped(x, expected)

    studio.drawn("Euler", 40, Watched(Net.of(studio, 1.0), 40, Rule(least=-2.0)))
    assert sum(parts[:25]) / 25 < 0.1


def test_sada_skips_at_most_four_in_a_row_and_counts_them(studio, calls):
    rival = Sada(Net.of(studio, 3.0), 20, Rule(begin=0.2, end=1.0, least=2.0))
    studio.drawn("Euler", 20, rival)
    # Five in full, then four skipped and one full, three times.
    assert rival.speed_up == pytest.approx(20 / 8) and len(calls) == 8


@pytest.mark.parametrize("order", [1, 2])
def test_taylors_forecast_is_exact_on_a_line_and_not_on_a_cube(order):
    assert torch.allclose(forecasts.taylor(LINE, 7, order), torch.tensor([-11.0, 7.0]))
    cube = [(k, torch.tensor([float(k**3)])) for k, _ in LINE]
    assert not torch.allclose(forecasts.taylor(cube, 7, order), torch.tensor([343.0]))
    assert torch.equal(forecasts.taylor(LINE[:1], 7, order), LINE[0][1])


def test_the_chebyshev_fit_gives_back_a_series_of_its_order():
    known, steps, coefficients = [0, 2, 3, 7, 9, 12], 20, torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)

    def series(k):
        return float(torch.cos(torch.arange(5) * torch.acos(torch.tensor(2 * k / steps - 1.0))).double() @ coefficients)

    values = [torch.tensor([series(k)], dtype=torch.float64) for k in known]
    near = forecasts.mixed(forecasts.chebyshev_weights(known, 14, steps, 4, 1e-12), values)
    assert float(near) == pytest.approx(series(14), abs=1e-3)
    assert (
        abs(float(forecasts.mixed(forecasts.chebyshev_weights(known, 14, steps, 3, 1e-12), values)) - series(14)) > 0.1
    )


def test_interpolation_goes_through_a_polynomial_of_its_order():
    cube = [torch.tensor([float(k**3 - k)]) for k in (1, 5, 9, 13)]
    assert float(interpolated((1, 5, 9, 13), cube, 15)) == pytest.approx(15**3 - 15)


def test_the_published_schedules():
    assert forecasts.spectrum_steps(20, 5, 2, 0.75) == (0, 1, 2, 3, 4, 6, 8, 11, 15)
    assert forecasts.taylor_steps(12, 3, 5) == (0, 1, 2, 5, 8)
    for steps in (20, 30):
        for count in range(5, steps // 2 + 2):
            assert len(forecasts.taylor_steps(steps, 2, count)) == count
            assert len(ways.spectrum_for(steps, count, 2)) == count, (steps, count)


def test_a_gate_is_found_where_there_is_one():
    # 3 and 17 halves of 0.96: 11.2 of 20.
    assert ways.gate_for(20, 1.8, 12) == 3
    assert ways.gate_for(20, 2.6, 12) == 0


def test_drift_is_each_pictures_own():
    before = torch.ones(4, 3)
    now = before.clone()
    now[1], now[3] = 2, 3
    assert drift(now, before).tolist() == [0.0, 1.5]


@pytest.mark.parametrize("depth", [12, pytest.param(9, marks=pytest.mark.slow)])
def test_the_shares_are_those_of_the_real_unets(depth):
    assert spent.counted(depth) == spent.SHARES[depth]


def test_a_number_is_found_for_a_speed_up():
    class Counted:
        def run(self, made):
            return ways.Made(1 + made(None), ())

    tuned = ways.Tuned(Counted(), lambda number, _: number, -9.0, 3.0, 0.3, math.exp)
    for wanted in (1.3, 2.0, 2.6):
        place, made = tuned.near(wanted, 0.5)
        assert made.near(wanted) < 0.02 and math.exp(place) == pytest.approx(made.speed_up - 1)
    assert len(tuned.known) < 3 * ways.TRIES


def test_what_is_read_off_lies_on_the_line_over_costs():
    half, third = ways.Made(2.0, (40.0, 30.0)), ways.Made(3.0, (34.0, 30.0))
    assert ways.on_line(half, third, 2.4).likeness == pytest.approx((37.0, 30.0))
    assert ways.on_line(half, half, 2.0).likeness == (40.0, 30.0)


def test_a_run_goes_on_from_what_is_there(studio, tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "polynomial", lambda *_: (1.0, 0.0))
    monkeypatch.setattr(Results, "mean", lambda self, *at: (1.8, 30.0) if at[-1] == "preset @2" else None)
    monkeypatch.setattr(ways, "TRIES", 1)
    cell, results = ways.Cell(studio, 3.0, 12, "Euler"), Results("tiny", tmp_path)
    program.measure(cell, results, {})
    keys = set(results.keys("Euler", 12, 3.0))
    assert keys == {f"{name} @2" for name in ways.RIVALS} | {*ways.DEFAULTS, *ways.INTERVALS}
    monkeypatch.setattr(ways.Cell, "run", lambda *_: 1 / 0)
    monkeypatch.setattr(studio, "likeness", lambda *_: 1 / 0)
    program.measure(cell, Results("tiny", tmp_path), {})
    found = results.cells["Euler, 12 steps, guidance 3"]["Spectrum @2"]
    assert found["speed_up"] == 1.8 and len(found["psnr"]) == studio.count


def test_the_page_is_that_of_the_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "python -m bench.rivals --write"
