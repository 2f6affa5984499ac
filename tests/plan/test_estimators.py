"""Copy and forecast against the formula."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from deepcache_ext.plan.estimators import Copy, Forecast, Kept, Moment


def kept(value, index, sigma=None):
    return Kept((torch.full((1, 2), float(value)),), Moment(index, sigma))


def test_copy_hands_out_a_clone():
    last = kept(3, 0)
    (first,) = Copy().estimate([last], Moment(1))
    first.mul_(0)
    assert torch.equal(Copy().estimate([last], Moment(1))[0], last.features[0])


def test_forecast_goes_half_the_way_of_a_line_in_log_sigma():
    line = lambda sigma: 2 - 5 * math.log(sigma)  # noqa: E731
    sigmas = [10.0, 4.0, 2.5]
    past = [kept(line(s), k, s) for k, s in enumerate(sigmas[:2])]
    (value,) = Forecast().estimate(past, Moment(2, sigmas[2]))
    torch.testing.assert_close(value, torch.full((1, 2), (line(4.0) + line(2.5)) / 2))


def test_between_two_points_nothing_is_damped():
    """DPM fast goes back in time."""
    past = [kept(1, 0, 8.0), kept(3, 2, 2.0)]
    (value,) = Forecast().estimate(past, Moment(3, 4.0))
    torch.testing.assert_close(value, torch.full((1, 2), 2.0))


def test_forecast_uses_the_index_where_a_sigma_is_missing():
    past = [kept(1, 0, 10.0), kept(3, 2, None)]
    (value,) = Forecast().estimate(past, Moment(3, 2.0))
    torch.testing.assert_close(value, torch.full((1, 2), 3.5))


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [
        ((2.0, 2.0, 1.0), 0.0),  # Heun repeats a sigma: two points are one
        ((4.0, 2.0, 0.01), Forecast.REACH),  # the last step of an uneven schedule
        ((4.0, 2.0, 3.0), math.log(2 / 3) / math.log(2)),  # DPM fast goes back between the two
        ((4.0, 2.0, 14.0), -1.0),  # Restart jumps up
        ((4.0, 2.0, 0.0), 0.5),  # no logarithm: indices 0, 2, 3
    ],
)
def test_ratio(sigmas, expected):
    moments = [Moment(index, sigma) for index, sigma in zip((0, 2, 3), sigmas, strict=True)]
    assert Forecast.ratio(*moments) == pytest.approx(expected, abs=1e-9)


def test_one_full_call_is_copied():
    (value,) = Forecast().estimate([kept(3, 0, 10.0)], Moment(1, 5.0))
    assert torch.equal(value, torch.full((1, 2), 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    past = [Kept((torch.ones(2, 2, dtype=dtype) * k,), Moment(k, 10.0 - k)) for k in (1, 2)]
    (value,) = Forecast().estimate(past, Moment(3, 7.0))
    assert value.dtype == dtype


@given(st.lists(st.floats(0.03, 15), min_size=3, max_size=3, unique=True))
def test_forecast_follows_the_formula_and_stays_bounded(sigmas):
    a, b, c = map(math.log, sigmas)
    assume(abs(b - a) > 1e-3)
    ratio = min(max((c - b) / (b - a), -1), Forecast.REACH)
    past = [kept(1, 0, sigmas[0]), kept(2, 1, sigmas[1])]
    (value,) = Forecast().estimate(past, Moment(2, sigmas[2]))
    expected = 2.0 + (ratio / 2 if ratio > 0 else ratio)
    torch.testing.assert_close(value, torch.full((1, 2), expected), rtol=1e-4, atol=1e-4)
