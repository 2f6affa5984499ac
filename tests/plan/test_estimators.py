"""Copy and forecast against the formula."""

import math
from collections import deque

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


def _told(past, now, settled):
    """What a forecast gives for `now`, after it has learned of each of the `past` in its turn."""
    estimator, known = Forecast(settled), deque(maxlen=Forecast.keeps)
    for one in past:
        known.append(one)
        estimator.learn(known)
    return estimator.estimate(known, now)[0]


def test_what_a_forecast_was_wrong_by_is_settled_in_part_at_the_next_evaluation():
    levels = [10.0 * 0.8**k for k in range(10)]
    planes = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    past = [Kept((plane,), Moment(index, levels[index])) for plane, index in zip(planes, (0, 2, 4, 7), strict=True)]
    wrong = past[-1].features[0] - _told(past[:-1], past[-1].moment, 0.0)
    here, later = Moment(8, levels[8]), Moment(9, levels[9])
    torch.testing.assert_close(_told(past, here, 0.2), _told(past, here, 0.0) + 0.2 * wrong)
    assert torch.equal(_told(past, later, 0.2), _told(past, later, 0.0))


def test_nothing_is_settled_where_nothing_ran_on_a_forecast():
    past = [kept(value, index, 8.0 / 2**index) for value, index in ((1, 0), (5, 1))]
    now = Moment(2, 2.0)
    assert torch.equal(_told(past, now, 0.2), _told(past, now, 0.0))
    assert torch.equal(_told(past[:1], Moment(1, 4.0), 0.2), past[0].features[0])


def test_where_rows_come_and_go_nothing_is_settled():
    past = [Kept((torch.ones(rows, 2, 2, 2),), Moment(index, 8.0 / 2**index)) for rows, index in ((1, 0), (2, 2))]
    assert torch.equal(_told(past, Moment(3, 1.0), 0.2), past[-1].features[0])
