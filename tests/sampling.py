"""Which cases of a parametrised test `make test` takes; the others are marked slow, and `make test-all` takes them too.

    @pytest.mark.sample                       # as few as have each value of each parameter once
    @pytest.mark.sample("euler_a", "hires")   # these, by what stands in brackets in their names
    pytestmark = pytest.mark.sample(turns="host")   # one value of `host` for each test, for the next test the next one

A test without the mark, and a case that is new in a test with the first form, is in both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pytest

Case = Mapping[str, Any]
"""The values of a case by parameter."""


def mark_slow(items: Iterable[pytest.Item], complete: bool = True) -> None:
    """Mark what the samples leave out.

    `complete`: whether the items are all that there are; if not, a name that is not found is no mistake.
    """
    functions: dict[str, list[Any]] = {}
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("sample"):
            functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    turns: dict[str, int] = {}
    for function, cases in functions.items():
        mark = cases[0].get_closest_marker("sample")
        if "turns" in mark.kwargs:
            module = function.partition("::")[0]
            chosen = in_turn([case.callspec.params for case in cases], mark.kwargs["turns"], turns.get(module, 0))
            turns[module] = turns.get(module, 0) + 1
        elif mark.args:
            chosen = named([case.callspec.id for case in cases], mark.args, function if complete else "")
        else:
            chosen = covering([case.callspec.params for case in cases])
        for place, case in enumerate(cases):
            if place not in chosen:
                case.add_marker("slow")


def covering(cases: Sequence[Case]) -> set[int]:
    """Places of cases that have each value of each parameter at least once; each shows the most that is new by then."""
    values = [{(name, _key(value)) for name, value in case.items()} for case in cases]
    missing, chosen = set().union(*values), set()
    while missing:
        most = max(range(len(cases)), key=lambda place: len(values[place] & missing))
        chosen.add(most)
        missing -= values[most]
    return chosen


def named(ids: Sequence[str], wanted: Sequence[str], function: str = "") -> set[int]:
    """Places of the cases with these ids; with `function` (for the message), each of them must be there."""
    unknown = set(wanted) - set(ids)
    if unknown and function:
        raise pytest.UsageError(f"{function} has no cases {sorted(unknown)} to sample")
    return {place for place, name in enumerate(ids) if name in wanted}


def in_turn(cases: Sequence[Case], parameter: str, turn: int) -> set[int]:
    """Places of the cases with the value of the parameter whose turn it is; all cases, where it is not a parameter."""
    if parameter not in cases[0]:
        return set(range(len(cases)))
    values = list(dict.fromkeys(_key(case[parameter]) for case in cases))
    return {place for place, case in enumerate(cases) if _key(case[parameter]) == values[turn % len(values)]}


def _key(value: Any) -> Hashable:
    """Equal for equal values alone: 0 is neither False nor 0.0."""
    return type(value), value if isinstance(value, (str, int, float, type(None))) else repr(value)
