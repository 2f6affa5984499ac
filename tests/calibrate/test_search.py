"""The search for a plan, on made-up pictures whose best plan is known."""

import itertools
import random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcache_ext.calibrate.search as search_module
from deepcache_ext.calibrate.search import EQUAL, Proposal, Wanted, Wish, bounded, by_rules, search
from deepcache_ext.plan import cost
from deepcache_ext.plan.importance import Nature, weighted
from deepcache_ext.settings.evaluation_list import custom
from deepcache_ext.settings.fields import SettingsError

SIGMAS = tuple(14.6 * (0.03 / 14.6) ** (k / 19) for k in range(20))


def plan_of(text, count=20, branch=0):
    full, renewed, deeper = custom(text, count, branch)
    return tuple(None if k in full else deeper if k in renewed else branch for k in range(count))


def first_of(wanted):
    count = len(wanted.sigmas)
    full = cost.full_for(count, wanted.speed_up, cost.share(wanted.branch, wanted.blocks))
    chosen = weighted(wanted.sigmas, full, wanted.must, wanted.nature)
    return Proposal(tuple(None if k in chosen else wanted.branch for k in range(count)))


def full_of(proposal):
    return [k for k, branch in enumerate(proposal.plan) if branch is None]


class Landscape:
    """Scores a plan by how far it is from a hidden one; remembers what it was asked."""

    def __init__(self, hidden, pictures=4, noise=0.0):
        self.hidden, self.pictures, self.noise, self.asked = hidden, pictures, noise, []
        self._chance = random.Random(3)

    def score(self, plan):
        far = sum(a != b for a, b in zip(plan, self.hidden, strict=True))
        return [40 - far + self.noise * self._chance.gauss(0, 1) for _ in range(self.pictures)]

    def judge(self, proposal):
        self.asked.append(proposal)
        return self.score(proposal.plan)


def test_it_comes_nearer_to_the_best_plan():
    wanted = Wanted(SIGMAS, 2.0)
    first = first_of(wanted)
    # The same number of whole evaluations, all of them at the end.
    full = first.plan.count(None)
    land = Landscape((None,) + (0,) * (20 - full) + (None,) * (full - 1))
    found = search(wanted, first, land.score(first.plan), 150, land.judge)
    before, after = fmean(land.score(first.plan)), fmean(land.score(found.best.plan))
    assert found.first == first and after >= before + 4
    assert after == max(fmean(land.score(one.plan)) for one in land.asked)


@settings(max_examples=30)
@given(
    st.floats(1.3, 3.5),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([12, 9, 5]),
    st.booleans(),
    st.sets(st.integers(0, 19), max_size=3),
    st.integers(4, 40),
)
def test_every_plan_is_new_and_fast_enough(speed_up, branch, blocks, fresh_noise, must, tries):
    wanted = Wanted(SIGMAS, speed_up, branch, blocks, Nature(fresh_noise), frozenset(must))
    first, asked = first_of(wanted), []

    def judge(proposal):
        asked.append(proposal)
        return [float(len(asked))]  # always better than what was before

    found = search(wanted, first, [0.0], tries, judge)
    assert found.tries == len(asked) + 1 <= tries and len(set(asked)) == len(asked) and first not in asked
    for one in asked:
        assert cost.speed_up(one.plan, blocks) >= cost.NEARLY * speed_up
        assert all(one.plan[k] is None for k in {0, *must})
        assert one.branch >= branch and plan_of(one.text, branch=one.branch) == one.plan
    assert found.best == (asked[-1] if asked else first)


@pytest.mark.parametrize("fresh_noise", [False, True])
@pytest.mark.parametrize("blocks", [9, 12])
def test_the_rules_come_first(fresh_noise, blocks):
    """Both branches, both estimators and even plans are among the tries that Calibrate makes by itself."""
    wanted = Wanted(SIGMAS, 1.6, 0, blocks, Nature(fresh_noise))
    tried = list(itertools.islice(by_rules(wanted), Wish().tries))
    assert {(one.branch, one.estimator) for one in tried} >= {
        (0, "copy"),
        (0, "forecast"),
        (1, "copy"),
        (1, "forecast"),
    }
    even = [one for one in tried if {b - a for a, b in itertools.pairwise(full_of(one))} <= {1, 2}]
    assert even and any(one.text.count("/") for one in tried)


def test_the_same_seed_and_scores_give_the_same_plans():
    wanted = Wanted(SIGMAS, 1.6)
    first = first_of(wanted)
    runs = [Landscape(first.plan[::-1]) for _ in range(3)]
    seeds = zip(runs, (0, 0, 1), strict=True)
    found = [search(wanted, first, land.score(first.plan), 40, land.judge, seed) for land, seed in seeds]
    assert found[0] == found[1] and runs[0].asked == runs[1].asked != runs[2].asked


def test_chance_alone_does_not_choose(monkeypatch):
    wanted = Wanted(SIGMAS, 2.0)
    first = first_of(wanted)

    def found(sure):
        monkeypatch.setattr(search_module, "SURE", sure)
        return search(wanted, first, [40.0] * 4, 30, lambda _: [40.3, 39.8, 40.3, 39.7])

    assert found(0.5).best == found(0.5).first, "two pictures of four say otherwise"
    assert found(0.0).best != found(0.0).first


def test_equal_pictures_have_a_number():
    assert bounded([float("inf"), 41.5]) == [EQUAL, 41.5]


@pytest.mark.parametrize(
    ("given_wish", "pictures", "tries"),
    [(True, 2, 8), ({}, 2, 8), ({"pictures": 4}, 4, 8), ({"tries": 9.0, "pictures": 3}, 3, 9), (Wish(5, 6), 5, 6)],
)
def test_wishes(given_wish, pictures, tries):
    assert Wish.parse(given_wish) == Wish(pictures, tries)


@pytest.mark.parametrize(
    ("given_wish", "words"),
    [
        (False, "calibrate = False"),
        ("yes", "true, or an object"),
        ({"seeds": 1}, "true, or an object"),
        ({"pictures": 1}, "pictures = 1 is not allowed: a whole number from 2 to 16"),
        ({"tries": 1e9}, "from 4 to 400"),
    ],
)
def test_wishes_that_cannot_be_used(given_wish, words):
    with pytest.raises(SettingsError, match=words):
        Wish.parse(given_wish)
