"""Strategies against published sequences, against brute force, and against what a user may type."""

import itertools
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.interface import plan_strip
from deepcache_ext.plan import cost
from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.plan.importance import ORDER, Nature, spreads, weights
from deepcache_ext.plan.plan import ListedPlan, UniformPlan
from deepcache_ext.plan.preview import PassAhead, planned
from deepcache_ext.plan.strategies import estimator_for, non_uniform, plan_for
from deepcache_ext.settings.evaluation_list import custom, ranges, written
from deepcache_ext.settings.fields import SettingsError
from deepcache_ext.settings.settings import Settings, parse

SIGMAS = [14.6, 9.0, 5.5, 3.4, 2.1, 1.3, 0.8, 0.45, 0.2, 0.05]


def full(plan, total):
    return [k for k in range(total) if plan.is_full(k)]


@pytest.mark.parametrize(
    ("total", "interval", "center", "expected"),
    [
        (50, 5, 15, (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)),
        (30, 3, 9, (0, 3, 6, 8, 10, 12, 15, 19, 22, 26)),
        (25, 3, 7, (0, 3, 5, 7, 9, 11, 14, 18, 21)),
        (20, 3, 6, (0, 3, 5, 7, 10, 13, 16)),
    ],
)
def test_non_uniform_gives_the_published_sequences(total, interval, center, expected):
    assert non_uniform(total, interval, center, 1.4) == expected


@given(st.integers(1, 150), st.integers(1, 20), st.floats(0, 1), st.floats(1, 3))
def test_non_uniform_for_any_number_of_evaluations(total, interval, center, power):
    found = non_uniform(total, interval, round(center * total), power)
    assert found[0] == 0 and list(found) == sorted(set(found)) and found[-1] < total
    assert len(found) == math.ceil(total / interval)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3, 6, 9", (0, 1, 2, 3, 6, 9)),
        ("2 4", (0, 2, 4)),
        ("12 - 29 : 3", (0, 12, 15, 18, 21, 24, 27)),
        ("5;40", (0, 5)),
        ("100-999999", (0,)),
        (" 3, ", (0, 3)),
    ],
)
def test_custom(text, expected):
    assert custom(text, 30) == (expected, (), 0)


@pytest.mark.parametrize(
    ("text", "full", "renewed"),
    [("0, 3/5, 6", (0, 6), (3,)), ("0/5", (0,), ()), ("2-8:2/5, 4", (0, 4), (2, 6, 8)), ("1 / 5; 2", (0, 2), (1,))],
)
def test_custom_with_a_deeper_branch(text, full, renewed):
    assert custom(text, 9) == (full, renewed, 5)
    assert custom(text, 9, branch=5)[:2] == (tuple(sorted({*full, *renewed})), ()), "no deeper: the whole UNet instead"


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(1, 40)), st.integers(1, 11))
def test_what_is_written_is_read_again(full, renewed, deeper):
    full, renewed = {0, *full}, renewed - full
    text = written(sorted(full), sorted(renewed), deeper)
    assert custom(text, 41) == (tuple(sorted(full)), tuple(sorted(renewed)), deeper if renewed else 0)


@pytest.mark.parametrize("text", ["0, 3/5, 6/4", "3/", "/5", "3/0", "3/48"])
def test_custom_with_a_branch_that_cannot_be(text):
    with pytest.raises(SettingsError, match="full_evaluations"):
        parse([{"enabled": True, "full_evaluations": text}])


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-5:0", "-2", "1..5", "1-2-3", "1.5", "9" * 9])
def test_custom_that_cannot_be_read(text):
    with pytest.raises(SettingsError, match="full_evaluations"):
        ranges(text)


def predicted(sigmas, chosen):
    """The definition, written out."""
    weight, error, last = weights(sigmas), 0.0, 0
    for k in range(len(sigmas)):
        if k in chosen:
            last = k
        else:
            error += weight[k] * abs(math.log(sigmas[k] / sigmas[last])) ** ORDER
    return error


@given(
    st.lists(st.floats(0.03, 15), min_size=2, max_size=9, unique=True).map(lambda s: sorted(s, reverse=True)),
    st.integers(1, 9),
    st.sets(st.integers(0, 8), max_size=2),
)
def test_weighted_is_the_best_choice_of_all(sigmas, count, must):
    must = frozenset(k for k in must if k < len(sigmas))
    wanted = min(max(count, len(must | {0})), len(sigmas))
    chosen = set(spreads(sigmas, count, count, must)[wanted])
    assert 0 in chosen and must <= chosen and len(chosen) == wanted
    choices = ({0, *rest} | must for rest in itertools.combinations(range(len(sigmas)), wanted - 1))
    best = min(predicted(sigmas, c) for c in choices if len(c) == wanted)
    assert predicted(sigmas, chosen) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_weighted_for_a_thousand_evaluations():
    sigmas = [14.6 * 0.994**k for k in range(1000)]
    chosen = spreads(sigmas, 300, 300)[300]
    assert len(set(chosen)) == 300 and chosen[0] == 0


@given(
    st.sets(st.integers(0, 60)),
    st.integers(1, 40),
    st.integers(0, 90),
    st.integers(1, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sets(st.integers(0, 60)),
)
def test_listed_plan_keeps_a_plan_s_promises(listed, total, k, keeps, one, other, renewed):
    plan = ListedPlan(tuple(listed), 0, total, min(one, other), max(one, other), tuple(renewed), 3)
    window = UniformPlan(2, 0, total, plan.start, plan.end)
    last = plan.last_full(k)
    assert plan.is_full(0) and plan.is_full(last) and 0 <= last <= k
    assert not any(plan.is_full(j) for j in range(last + 1, k + 1))
    if k < total:
        assert plan.is_full(k) == (k == 0 or k in listed or window.is_outside(k))
    assert plan.branch_at(k) == (None if plan.is_full(k) else 3 if k in renewed else 0)
    more = [j for j in range(k) if plan.is_full(j) or (plan.branch_at(j) == 3 and plan.branch_at(k) == 0)]
    assert plan.source(k) == (k if plan.is_full(k) else more[-1])
    if not plan.is_full(k):
        assert plan.caches
        held = [j for j in range(k) if plan.is_full(j)][-keeps:]
        assert all(plan.worth_keeping(j, keeps) for j in held)


def test_a_feature_that_serves_nobody_is_not_worth_keeping():
    plan = ListedPlan((0, 1, 2, 3, 5), 0, 6)  # F F F F c F
    assert [plan.worth_keeping(k, 2) for k in (0, 1, 2, 3, 5)] == [False, False, True, True, True]
    assert not ListedPlan((0, 5), 0, 6, end=0.9).worth_keeping(5, 1)


def test_plan_by_settings():
    def plan(total=30, sigmas=None, **values):
        made, remark = plan_for(Settings(enabled=True, **{"strategy": "uniform", **values}), total, sigmas, depth=12)
        return full(made, total), remark

    karras = [(14.6 ** (1 / 7) + k / 29 * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7 for k in range(30)]
    assert plan(strategy="uniform", cache_interval=4) == ([*range(0, 30, 4)], "")
    assert plan(strategy="non-uniform", cache_interval=3)[0] == [0, 3, 6, 8, 10, 12, 15, 19, 22, 26]
    assert plan(strategy="custom", full_evaluations="1,2")[0] == [0, 1, 2]
    chosen, remark = plan(strategy="weighted", speed_up=2.0, sigmas=karras)
    assert len(chosen) == 13 and remark == ""  # 30 / 2 = n + (30 - n) 0.0787
    assert len(plan(strategy="weighted", speed_up=2.0, sigmas=karras, cache_branch_id=1, deeper_branch_id=0)[0]) == 10
    assert plan(strategy="weighted", speed_up=1.0, sigmas=karras)[0] == [*range(30)]
    # Without noise levels they lie evenly, and there are as many as keep it from being faster.
    evenly, remark = plan(strategy="weighted", speed_up=2.0)
    assert evenly == [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27] and "spaced evenly" in remark
    short, remark = plan(strategy="weighted", total=8, sigmas=karras[:8])
    assert short == [*range(8)] and "fewer than 12 steps" in remark
    forced, remark = plan(strategy="uniform", cache_interval=2, total=8)
    assert forced == [0, 2, 4, 6] and "so few steps" in remark
    late = plan(strategy="weighted", speed_up=2.0, sigmas=karras, start=0.5)[0]
    assert late[:15] == [*range(15)] and len(late) < 30


@pytest.mark.parametrize("speed_up", [1.3, 1.6, 2.0, 4.0])
@pytest.mark.parametrize("depth", [9, 12])
def test_a_run_of_unknown_length_is_no_faster_than_asked_for(speed_up, depth):
    """However long it turns out to be, and with as few full evaluations as that allows."""
    plan, remark = plan_for(Settings(enabled=True, speed_up=speed_up), 0, None, depth)
    assert "number of steps is not known" in remark
    for length in (20, 50, 200):
        gained = cost.speed_up([plan.branch_at(k) for k in range(length)], depth)
        assert gained <= speed_up + 1e-6 < length / (length / gained - 1)  # one full evaluation less would be too few


def test_other_strategies_in_a_run_of_unknown_length():
    def made(**values):
        plan, remark = plan_for(Settings(enabled=True, **values), 0, None, 12)
        return full(plan, 12), remark

    assert made(strategy="uniform", cache_interval=4) == ([0, 4, 8], "")
    assert made(strategy="custom", full_evaluations="0-1, 5") == ([0, 1, 5], "")
    evenly, remark = made(strategy="non-uniform", cache_interval=3)
    assert evenly == [0, 3, 6, 9] and "not known" in remark


KARRAS = [(14.6 ** (1 / 7) + k / 29 * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7 for k in range(30)]


def ran(sigmas, **values):
    """The branch of each evaluation, -1 for full ones."""
    plan, _ = plan_for(Settings(enabled=True, strategy="weighted", **values), len(sigmas), sigmas, depth=12)
    return [-1 if branch is None else branch for branch in map(plan.branch_at, range(len(sigmas)))]


def test_a_deeper_branch_is_run_where_it_is_asked_for():
    """Every second renewal runs it, and there are more of them."""
    assert set(ran(KARRAS, speed_up=2.6)) == {-1, 0}
    branches = ran(KARRAS, speed_up=2.6, deeper_branch_id=5)
    renewals = [branch for branch in branches if branch]
    assert renewals == [-1, 5] * 6
    gained = cost.speed_up([None if branch < 0 else branch for branch in branches])
    assert 0.99 * 2.6 <= gained < 2.8
    assert len(renewals) > len([b for b in ran(KARRAS, speed_up=2.6) if b]) == 10
    assert set(ran(KARRAS, speed_up=1.5, cache_branch_id=5, deeper_branch_id=5)) == {-1, 5}  # it is no deeper than that
    assert 8 in ran(KARRAS, speed_up=1.5, deeper_branch_id=8)
    window = ran(KARRAS, speed_up=2.0, start=0.2, end=0.9, deeper_branch_id=5)
    assert window[:6] == [-1] * 6 and window[27:] == [-1] * 3 and 5 in window
    fast = ran(KARRAS, speed_up=2.6, start=0.2, end=0.9)
    assert fast.count(-1) == 10, "one full evaluation within the window is all that there is time for"


@pytest.mark.parametrize(
    ("depth", "fresh_noise", "asked", "branches"),
    [
        (12, False, {}, (0,)),
        (12, True, {}, (1,)),
        (9, False, {}, (1, 4)),
        (9, True, {}, (5,)),
        (9, True, {"cache_branch_id": 2}, (2,)),
        (9, False, {"cache_branch_id": 1, "deeper_branch_id": 3}, (1, 3)),
        (7, False, {}, (0,)),
    ],
)
def test_the_branches_are_part_of_the_plan(depth, fresh_noise, asked, branches):
    """What the user names is obeyed; of a UNet of unknown layout nothing is known but branch 0."""
    settings = Settings(enabled=True, strategy="weighted", speed_up=2.0, **asked)
    plan, _ = plan_for(settings, 30, KARRAS, depth, Nature(fresh_noise))
    assert plan.branches == branches
    gained = cost.speed_up([plan.branch_at(k) for k in range(30)], depth)
    assert 0.99 * 2 <= gained < 2.15


@pytest.mark.parametrize(
    ("plan", "nature", "estimator"),
    [
        (UniformPlan(2, 0, 30), Nature(), Forecast),
        (UniformPlan(2, 0, 30), Nature(fresh_noise=True), Copy),
        (UniformPlan(2, 1, 30), Nature(fresh_noise=True), Forecast),
        (UniformPlan(2, 0, 30, deeper=2), Nature(fresh_noise=True), Forecast),
        (UniformPlan(2, 1, 30), Nature(fresh_noise=True, all_fresh=True), Copy),
    ],
)
def test_what_fresh_noise_reaches_is_copied(plan, nature, estimator):
    assert isinstance(estimator_for(Settings(enabled=True), plan, 30, KARRAS, nature), estimator)


@pytest.mark.parametrize("deeper", [1, 5, 9])
@pytest.mark.parametrize("wanted", [1.0, 1.15, 1.3])
def test_a_deeper_branch_is_no_faster_than_wanted(deeper, wanted):
    """Every second evaluation on a deeper branch may be faster than was asked for: at 1 nothing is to change at all."""
    branches = ran(KARRAS, speed_up=wanted, deeper_branch_id=deeper)
    gained = cost.speed_up([None if branch < 0 else branch for branch in branches])
    assert 0.99 * wanted <= gained < wanted + 0.05
    if wanted == 1.0:
        assert set(branches) == {-1}


@pytest.mark.parametrize("deeper", [0, 3, 5, 9])
@pytest.mark.parametrize("wanted", [1.0, 1.3, 1.6, 2.0, 2.6, 4.0])
@pytest.mark.parametrize("total", [12, 20, 30, 47])
def test_without_noise_levels_no_plan_is_faster_than_asked(total, wanted, deeper):
    settings = Settings(enabled=True, strategy="weighted", speed_up=wanted, deeper_branch_id=deeper)
    plan, remark = plan_for(settings, total, None, depth=12)
    branches = [plan.branch_at(k) for k in range(total)]
    gained = cost.speed_up(branches)
    assert gained <= wanted + 1e-9 and "spaced evenly" in remark
    renewals = [k for k, branch in enumerate(branches) if branch != 0]
    apart = {b - a for a, b in pairwise(renewals)}
    assert len(renewals) == 1 or max(apart) - min(apart) <= 1
    one_fewer = gained * total / (total - gained * (1 - cost.share(0)))
    assert one_fewer > wanted or len(renewals) == 1


FEWER = "without DeepCache take as long and may come as close"


@pytest.mark.parametrize(
    ("steps", "speed_up", "sampler", "fresh_noise", "said"),
    [
        (30, 2.6, "Euler", False, ""),
        (30, 3.2, "Euler", False, ""),
        (30, 5, "Euler", False, f"6 steps {FEWER}"),
        (20, 3, "Euler", False, f"6 steps {FEWER}"),
        (20, 2.6, "Euler", False, f"7 steps {FEWER}"),
        (20, 3, "Euler a", True, "fast for so few steps: the picture changes visibly"),
        (20, 2, "Euler", False, ""),
        (20, 2, "UniPC", False, f"10 steps {FEWER}"),
        (20, 2, "UniPCMultistepScheduler", False, f"10 steps {FEWER}"),
    ],
)
def test_where_fewer_steps_serve_as_well_is_said(steps, speed_up, sampler, fresh_noise, said):
    sigmas = tuple(14.6 * (0.03 / 14.6) ** (k / (steps - 1)) for k in range(steps))
    settings = Settings(enabled=True, strategy="weighted", speed_up=speed_up)
    one = planned(settings, PassAhead(False, steps, sigmas, 12, Nature(fresh_noise), sampler=sampler))
    assert one.hint == said and not one.remark
    assert said.lower() in plan_strip.strip([one]).lower() and one.as_json()["remark"] == said


def test_nothing_is_said_of_a_plan_that_skips_nothing():
    assert not planned(Settings(enabled=True), PassAhead(False, 8, None, 12, sampler="UniPC")).hint


def test_every_second_one_of_a_list():
    def branches(**values):
        plan, _ = plan_for(
            Settings(enabled=True, deeper_branch_id=4, **{"strategy": "uniform", **values}), 12, None, depth=12
        )
        return [plan.branch_at(k) for k in range(12)]

    N = None
    assert branches(strategy="custom", full_evaluations="0-2, 6, 9") == [N, 4, N, 0, 0, 0, 4, 0, 0, N, 0, 0]
    assert branches(strategy="uniform", cache_interval=3) == [N, 0, 0, 4, 0, 0] * 2
    assert branches(strategy="uniform", cache_interval=1) == [N] * 12
    assert branches(strategy="non-uniform", cache_interval=3).count(4) == 2


def test_auto_forecasts_where_full_evaluations_lie_close():
    settings = Settings(enabled=True, strategy="uniform")
    assert isinstance(estimator_for(settings, UniformPlan(3, 0, 30), 30), Forecast)
    assert isinstance(estimator_for(settings, UniformPlan(4, 0, 30), 30), Copy)
    assert isinstance(estimator_for(Settings(estimator="copy"), UniformPlan(2, 0, 30), 30), Copy)


@pytest.mark.parametrize(("depth", "settled"), [(9, 0.2), (12, 0.0), (0, 0.0)])
def test_forecasts_are_settled_on_sdxls_shape(depth, settled):
    for settings in (Settings(enabled=True), Settings(estimator="forecast")):
        estimator = estimator_for(settings, UniformPlan(3, 0, 30), 30, depth=depth)
        assert isinstance(estimator, Forecast) and estimator.settled == settled


@pytest.mark.parametrize(
    ("steps", "interval", "expected"),
    [
        (30, 5, Forecast),
        (30, 6, Copy),
        (20, 3, Forecast),
        (20, 4, Copy),
        (50, 8, Forecast),
        (50, 10, Copy),
    ],
)
def test_auto_counts_in_log_sigma_where_the_levels_are_known(steps, interval, expected):
    sigmas = [14.6 * (0.03 / 14.6) ** (k / (steps - 1)) for k in range(steps)]
    plan = UniformPlan(interval, 0, steps)
    assert isinstance(estimator_for(Settings(enabled=True), plan, steps, sigmas), expected)
    again = [*sigmas, *sigmas]  # twice the evaluations over the same way
    assert isinstance(estimator_for(Settings(enabled=True), UniformPlan(interval, 0, 2 * steps), 0, again), Forecast)
