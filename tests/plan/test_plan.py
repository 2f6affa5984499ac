"""Uniform plans against the plain rule."""

from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.plan.plan import ListedPlan, UniformPlan


def full(plan, evaluations=None):
    return [k for k in range(evaluations or plan.total) if plan.is_full(k)]


def test_uniform_is_every_nth():
    assert full(UniformPlan(3, 0, 10)) == [0, 3, 6, 9]
    assert full(UniformPlan(1, 0, 4)) == [0, 1, 2, 3]
    assert full(UniformPlan(50, 0, 30)) == [0]


def test_window():
    assert full(UniformPlan(3, 0, 10, start=0.3)) == [0, 1, 2, 3, 6, 9]
    assert full(UniformPlan(3, 0, 10, end=0.5)) == [0, 3, 5, 6, 7, 8, 9]
    assert full(UniformPlan(3, 0, 10, start=0.2, end=0.2)) == list(range(10))
    assert not UniformPlan(3, 0, 10, start=1.0).caches
    assert not UniformPlan(3, 0, 10, end=0.0).caches
    assert not UniformPlan(1, 0, 10).caches


def test_more_evaluations_than_announced():
    assert full(UniformPlan(3, 0, 4), 10) == [0, 3, 6, 9]
    assert full(UniformPlan(3, 0, 4, end=0.5), 8) == [0, 2, 3, 4, 5, 6, 7]
    assert full(UniformPlan(3, 0, 4, start=1.0), 8) == list(range(8))


def test_more_evaluations_than_a_list_announces():
    """What is kept gets no older than it was on the mean, by full evaluations where the deeper ones have an end."""
    for listed, renewed in (((0, 3, 6, 9), ()), ((0, 6), (3, 9))):
        plan = ListedPlan(listed, 0, 12, renewed=renewed, deeper=5)
        assert [k for k in range(12, 24) if plan.is_full(k)] == [12, 15, 18, 21]
        assert {plan.branch_at(k) for k in range(12, 24)} == {None, 0}


PLANS = st.builds(
    UniformPlan,
    st.integers(1, 50),
    st.just(0),
    st.integers(1, 60),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    deeper=st.sampled_from([-1, 0, 3]),
)


@given(PLANS, st.integers(0, 80), st.integers(1, 2))
def test_invariants(plan, k, keeps):
    assert plan.is_full(0)
    last = plan.last_full(k)
    assert plan.is_full(last) and 0 <= last <= k
    assert not any(plan.is_full(j) for j in range(last + 1, k + 1))
    assert k - last < plan.interval * len(plan.branches) or plan.is_full(k)
    more = [j for j in range(k) if plan.is_full(j) or (plan.branch_at(j) == 3 and plan.branch_at(k) == 0)]
    assert plan.source(k) == (k if plan.is_full(k) else more[-1])
    if not plan.is_full(k):
        assert plan.caches
        assert plan.worth_keeping(last, keeps)
        assert plan.first <= last
