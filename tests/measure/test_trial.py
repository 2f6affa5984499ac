"""How an ageing comes from pictures, with a studio that makes none: only their likeness is made up."""

from types import SimpleNamespace

import pytest

from deepcache_ext.measure.profile import MadeFor
from deepcache_ext.measure.trial import RUNS, WHOLE, NotMeasured, ageing_of, measured
from deepcache_ext.plan.ageing import SOUNDED, UNMEASURED, learned
from deepcache_ext.plan.importance import Nature
from deepcache_ext.plan.preview import PassAhead, planned
from deepcache_ext.settings.settings import Settings, overridden


class Studio:
    """Its pictures are the settings that they were made with, and score what `scores` says of their branch."""

    def __init__(self, scores, depth=12, fresh_noise=False, steps=20, ran=None):
        self.ahead = PassAhead(False, steps, None, depth, Nature(fresh_noise), "photo", "0123456789", "Some")
        self._scores, self._ran = scores, steps if ran is None else ran
        self.asked, self.said, self.told = [], [], ""

    @property
    def first_pass(self):
        found = planned(Settings(enabled=True), self.ahead)
        return SimpleNamespace(planned=found, report=SimpleNamespace(evaluations=self._ran))

    def make(self, settings):
        self.asked.append(settings)
        self.said.append(self.told)
        return [settings, settings]

    def scores(self, pictures, reference):
        assert reference == [WHOLE, WHOLE]
        return self._scores[pictures[0]["cache_branch_id"]]


def runs_of(studio):
    """The plan and estimator of each cached run, by branch."""
    mine = Settings(enabled=True, preset="Balanced", start=0.4, end=0.6, deeper_branch_id=7)
    found = {}
    for one in studio.asked[1:]:
        plan = planned(overridden(mine, one), studio.ahead)
        (branch,) = plan.live_branches
        found[branch] = plan
    return found


@pytest.mark.parametrize(("depth", "fresh_noise"), UNMEASURED)
def test_every_second_evaluation_is_cached_at_each_sounded_branch(depth, fresh_noise):
    branches = SOUNDED[depth]
    studio = Studio({branch: [40.0 + branch, 50.0] for branch in branches}, depth, fresh_noise)
    made_for, ageing = measured(studio)
    assert studio.asked[0] == WHOLE and len(studio.asked) == RUNS == len(set(studio.said))
    runs = runs_of(studio)
    assert tuple(runs) == branches == tuple(ageing)
    for branch, plan in runs.items():
        assert [k for k, kind in enumerate(plan.kinds) if kind == "full"] == list(range(0, 20, 2))
        assert plan.estimator.name == ("copy" if fresh_noise and not branch else "forecast")
    assert made_for == MadeFor("photo", "0123456789", depth, fresh_noise, "Some", 20)


def test_an_ageing_is_a_ratio_of_errors_in_the_mean_of_their_logarithms():
    ageing = ageing_of({0: [20.0, 40.0], 2: [40.0, 40.0], 5: [float("inf"), 20.0]})
    assert ageing == pytest.approx({0: 1.0, 2: 10**-0.5, 5: 10**-1.5})
    # One error of 0.1 and one of 0.01 is the same as two of their geometric mean.
    assert ageing_of({0: [30.0], 2: [40.0], 5: [60.0]}) == pytest.approx(ageing)


def test_an_ageing_is_bounded():
    assert ageing_of({0: [20.0], 2: [100.0], 5: [5.0]}) == {0: 1.0, 2: 0.01, 5: 3.0}


@pytest.mark.parametrize(
    ("studio", "words"),
    [
        ({"depth": 10}, "its UNet has 10 output blocks: only those of 9 or 12 can be measured"),
        ({"steps": 11}, "only 11 steps: it needs 12 or more"),
        ({"ran": 17}, "the sampler ran 17 steps instead of 20"),
    ],
)
def test_what_cannot_be_measured_is_said_after_one_run(studio, words):
    made = Studio({}, **studio)
    with pytest.raises(NotMeasured, match=words):
        measured(made)
    assert len(made.asked) == 1


def test_pictures_that_say_nothing():
    inf, nan = float("inf"), float("nan")
    with pytest.raises(NotMeasured, match="nothing changed"):
        measured(Studio({0: [inf, inf], 2: [40.0, 40.0], 5: [40.0, 40.0]}))
    assert ageing_of({0: [inf, 40.0], 2: [40.0, 40.0]})[2] == 3.0, "one of them changed"
    with pytest.raises(NotMeasured, match="not a number"):
        measured(Studio({0: [40.0, 40.0], 2: [40.0, nan], 5: [40.0, 40.0]}))


def test_what_is_learned_lies_half_way_to_the_usual():
    """In logarithms: of the measured, and between the measured branches of what lies on the line between them."""
    usual = UNMEASURED[12, False]
    cube_root = (0.25**2 * 0.05) ** (1 / 3)
    said = {0: 1.0, 1: 0.5, 2: 0.25, 3: cube_root, 5: 0.05}
    found = learned({0: 1.0, 2: 0.25, 5: 0.05}, usual)
    assert found == pytest.approx({branch: (said[branch] * usual[branch]) ** 0.5 for branch in usual})
    said = {0: 1.0, 1: 0.2 ** (1 / 3), 2: 0.2 ** (2 / 3), 3: 0.2, 4: 0.1, 5: 0.05}
    found = learned({0: 1.0, 3: 0.2, 5: 0.05}, dict.fromkeys(range(6), 1.0))
    assert found == pytest.approx({branch: said[branch] ** 0.5 for branch in said})
