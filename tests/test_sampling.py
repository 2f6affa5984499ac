"""What `make test` takes of a parametrised test."""

import itertools

import pytest

from tests.sampling import covering, in_turn, named


def cases(**axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@pytest.mark.parametrize(
    "axes",
    [
        {"one": "abc"},
        {"one": "abc", "two": range(4)},
        {"one": [0, False, 0.0, "0", None], "two": [{"a": 1}, {"a": 2}]},
    ],
)
def test_each_value_once_and_no_more_cases_than_that_takes(axes):
    every = cases(**axes)
    taken = [every[place] for place in sorted(covering(every))]
    assert len(taken) == max(map(len, axes.values()))
    for name, values in axes.items():
        assert {repr(case[name]) for case in taken} == set(map(repr, values))


def test_cases_that_are_no_product():
    """As branches of UNets of unequal depth."""
    every = [{"layout": layout, "branch": branch} for layout, depth in (("a", 3), ("b", 5)) for branch in range(depth)]
    taken = [every[place] for place in covering(every)]
    assert len(taken) == 5 and {case["branch"] for case in taken} == set(range(5))
    assert {case["layout"] for case in taken} == {"a", "b"}


def test_cases_by_name():
    assert named(["euler", "heun", "heun-2"], ["heun", "euler"], "test_x") == {0, 1}
    assert named(["euler"], ["heun"]) == set()
    with pytest.raises(pytest.UsageError, match=r"test_x has no cases \['plms'\]"):
        named(["euler", "heun"], ["euler", "plms"], "test_x")


def test_hosts_take_turns():
    every = cases(host=["a", "b"], way=[1, 2])
    assert [sorted(in_turn(every, "host", turn)) for turn in range(3)] == [[0, 1], [2, 3], [0, 1]]
    assert in_turn(every, "model", 1) == {0, 1, 2, 3}
