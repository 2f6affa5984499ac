"""Plans by how fast features age: against the definition, against every other plan, and their speed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.plan import ageing, cost
from deepcache_ext.plan.ageing import UNMEASURED, candidates, least_error, predicted
from deepcache_ext.plan.importance import ORDER, Nature, spreads, weights

DEPTHS = (12, 9)


def geometric(count):
    return [14.6 * (0.03 / 14.6) ** (k / (count - 1)) for k in range(count)]


def branches_of(spread, count):
    full, renewed, branch, deeper = spread
    return [None if k in full else deeper if k in renewed else branch for k in range(count)]


def test_the_predicted_error_by_hand():
    sigmas, aged = [8.0, 4.0, 2.0, 1.0, 0.5], {0: 1.0, 3: 0.5}
    weight, once = weights(sigmas), math.log(2) ** ORDER
    full, medium, cached = (0,), (2,), 0
    expected = weight[1] * once  # branch 0, one step old
    expected += weight[2] * 0.5 * 2**ORDER * once  # branch 3, two steps old
    expected += weight[3] * (0.5 * 2**ORDER + 1) * once  # one step older than what the medium one renewed
    expected += weight[4] * (0.5 * 2**ORDER + 2**ORDER) * once
    assert predicted((full, medium, cached, 3), sigmas, aged) == pytest.approx(expected)
    assert predicted(((0, 1, 2, 3, 4), (), 0, 0), sigmas, aged) == 0.0


@given(
    st.integers(12, 40),
    st.floats(1.0, 4.5),
    st.sampled_from(DEPTHS),
    st.booleans(),
    st.floats(0, 0.3),
    st.floats(0.7, 1),
)
def test_the_least_error_of_all_that_are_fast_enough(count, speed, depth, fresh_noise, start, end):
    sigmas, nature = geometric(count), Nature(fresh_noise)
    must = frozenset(k for k in range(count) if not start * count <= k < end * count)
    aged = UNMEASURED[depth, fresh_noise]
    chosen = least_error(sigmas, speed, depth, aged, must, nature)
    full, renewed, branch, deeper = chosen
    assert {0, *must} <= set(full) and not set(full) & set(renewed) and branch <= deeper
    gained = cost.speed_up(branches_of(chosen, count), depth)
    assert gained >= cost.NEARLY * speed - 1e-9 or must or len(full) <= 2
    every = [(b,) for b in aged] + [(b, d) for b in aged for d in aged if d > b + 1]
    others = [one for those in every for one in candidates(sigmas, speed, depth, [(0,), those], must, nature)]
    assert predicted(chosen, sigmas, aged, nature) <= min(predicted(o, sigmas, aged, nature) for o in others) + 1e-12


@given(st.integers(12, 60), st.floats(1.5, 3.5), st.sampled_from([2, 3, 5, 9]))
def test_a_pair_renews_as_often_as_its_speed_allows(count, speed, deeper):
    sigmas = geometric(count)
    _, *pair = candidates(sigmas, speed, 12, [(0,), (0, deeper)])
    for full, renewed, *_ in pair:
        chosen = sorted({*full, *renewed})
        assert chosen[::2] == list(full)
        assert cost.speed_up(branches_of((full, renewed, 0, deeper), count)) >= cost.NEARLY * speed - 1e-9
        more = spreads(sigmas, len(chosen) + 1, len(chosen) + 1)[min(len(chosen) + 1, count)]
        spent = len(more[::2]) + len(more[1::2]) * cost.share(deeper) + (count - len(more)) * cost.share(0)
        assert count / spent < cost.NEARLY * speed or len(chosen) == count


def test_what_ages_slowly_is_kept_long():
    sigmas = geometric(20)
    alike = dict.fromkeys((0, 1, 2, 3, 5), 1.0)
    assert least_error(sigmas, 2.0, 12, alike)[2:] == (0, 0), "where all age alike the cheapest branch is the best"
    _, renewed, branch, deeper = least_error(sigmas, 2.0, 12, {**alike, 5: 0.01})
    assert renewed and (branch, deeper) == (0, 5)
    assert least_error(sigmas, 1.4, 9, {0: 1.0, 5: 0.01})[2:] == (5, 5), "branch 5 of SDXL is cheap enough for 1.4x"


def test_a_window_that_leaves_no_choice_is_soon_planned(monkeypatch):
    """It would be planned again for every number of renewals, for seconds in a long run."""
    asked = []
    monkeypatch.setattr(ageing, "spreads", lambda *given: asked.append(given) or spreads(*given))
    least_error(geometric(150), 2.6, 12, UNMEASURED[12, False], frozenset(range(75)))
    assert len(asked) == 1
