"""Whatever a host does, every output is either the full UNet's or the plan's: random passes against a naive model.

The model in this file knows what each call is about, because it makes the calls; it shares no code with the engine.
"""

import functools

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests import unets
from tests.driver import drifting, scaled, session, sigma

LAYOUTS = ("three-levels", "sdxl", "inpaint")


DISTURBANCES = ("calls", "edit", "raises", "new_weights", "new_unet", "outside")


@st.composite
def passes(draw):
    """A pass of 3 to 9 evaluations that suffers from at most two kinds of disturbance, but from these often."""
    parts = draw(st.integers(1, 3))
    disturbed = draw(st.lists(st.sampled_from(DISTURBANCES), max_size=2, unique=True))

    def sometimes(kind, usual, strategy):
        return draw(st.one_of(st.just(usual), strategy)) if kind in disturbed else usual

    orders = st.permutations(range(parts)).flatmap(lambda order: st.integers(1, parts).map(lambda n: order[:n]))
    evaluations = [
        {
            "calls": sometimes("calls", list(range(parts)), orders),
            "edit": sometimes("edit", None, st.integers(0, parts - 1)),
            "raises": sometimes("raises", None, st.sampled_from([RuntimeError, KeyboardInterrupt])),
            "new_weights": sometimes("new_weights", False, st.just(True)),
            "new_unet": sometimes("new_unet", False, st.just(True)),
            "outside": sometimes("outside", False, st.just(True)),
        }
        for _ in range(draw(st.integers(3, 9)))
    ]
    return {
        "layout": draw(st.sampled_from(LAYOUTS)),
        "interval": draw(st.sampled_from([3, 2, 4, 1])),
        "branch": draw(st.sampled_from([0, 5, 1, 3])),
        "deeper": draw(st.sampled_from([0, 2, 4])),
        "total": draw(st.sampled_from([len(evaluations), 1, 12])),
        "start": draw(st.sampled_from([0.0, 0.0, 0.25])),
        "end": draw(st.sampled_from([1.0, 1.0, 0.7])),
        "rows": draw(st.lists(st.integers(1, 2), min_size=parts, max_size=parts)),
        "same_latent": draw(st.booleans()),
        "evaluations": evaluations,
    }


PLAIN = {"calls": [0], "edit": None, "raises": None, "new_weights": False, "new_unet": False, "outside": False}


class Naive:
    """What DeepCache's rule gives: for each part what it was made of, and by branch the last feature.

    With a deeper branch every second full evaluation runs that instead, on what the full ones left.
    """

    def __init__(self, case):
        self.case, self.kept = case, {}

    def is_full(self, k):
        case = self.case
        first, stop = case["start"] * case["total"], case["end"] * case["total"]
        inside = [j for j in range(200) if j >= first - 1e-9 and (case["end"] == 1.0 or j < stop - 1e-9)]
        return k not in inside or (k - inside[0]) % (case["interval"] * len(self.branches)) == 0

    @property
    def branches(self):
        shallow, deeper = self.case["branch"], self.case["deeper"]
        return (shallow, deeper) if deeper > shallow and self.case["interval"] > 1 else (shallow,)

    def branch_at(self, k):
        """None for the whole UNet."""
        if self.is_full(k):
            return None
        last = max(j for j in range(k + 1) if self.is_full(j))
        return self.branches[-1] if (k - last) % self.case["interval"] == 0 else self.branches[0]

    def source(self, k):
        """The last evaluation that ran more than this one does."""
        ran = {j: 99 if self.branch_at(j) is None else self.branch_at(j) for j in range(k + 1)}
        return max(j for j in range(k) if ran[j] > ran[k])

    def keep(self, part, k, made_of, features):
        if part not in self.kept or self.kept[part][0] != made_of:
            self.kept[part] = (made_of, {})
        self.kept[part][1].update({b: (k, features[b]) for b in self.branches if b in features})

    def expect(self, unet, k, part, made_of, call):
        """The output that the rule gives, whether it is a cached one, and what there is to keep of it."""
        features, branch = {}, self.branch_at(k)
        was_made_of, kept = self.kept.get(part, (None, {}))
        if branch is None or was_made_of != made_of or branch not in kept or kept[branch][0] < self.source(k):
            return unets.by_hand(unet, self.branches[-1], kept=features, **call)[0], False, features
        output = unets.by_hand(unet, branch, kept[branch][1], kept=features, **call)[0]
        # A feature that a shallow call goes on from is as old as it was.
        return output, True, {b: feature for b, feature in features.items() if b < branch}


@given(passes())
@example(
    {
        "layout": "three-levels",
        "interval": 3,
        "branch": 0,
        "deeper": 0,
        "total": 9,
        "start": 0.0,
        "end": 1.0,
        "rows": [2],
        "same_latent": False,
        "evaluations": [PLAIN] * 9,
    }
)
@example(
    {
        "layout": "three-levels",
        "interval": 2,
        "branch": 0,
        "deeper": 2,
        "total": 9,
        "start": 0.0,
        "end": 1.0,
        "rows": [2],
        "same_latent": False,
        "evaluations": [PLAIN] * 9,
    }
)
def test_every_call_is_full_or_as_planned(case):
    with torch.no_grad():
        play(case)


@functools.cache
def pristine(layout, version):
    """Weights of one version; making a UNet anew for each example would take most of the time."""
    return {name: tensor.clone() for name, tensor in unets.shared_unet(layout, version).state_dict().items()}


def fresh(layout, version):
    unet = unets.shared_unet(layout, version)
    unet.load_state_dict(pristine(layout, version))
    return unet


def play(case):
    layout = case["layout"]
    unet = fresh(layout, 0)
    more = {name: case[name] for name in ("start", "end", "deeper")}
    cache, naive = session(case["interval"], case["branch"], case["total"], **more), Naive(case)
    traces = unets.traces(unet)
    channels = 4 if layout == "inpaint" else unets.LAYOUTS[layout]["in_channels"]
    latent = drifting(2 if case["same_latent"] else sum(case["rows"]), channels)
    arguments = [unets.inputs(layout, rows=rows, size=(8, 8), seed=i) for i, rows in enumerate(case["rows"])]
    # Where hosts make the same calls in the same order at each evaluation, doubt is no excuse for a full run.
    # A prompt that changes makes the others of its evaluation, and those of the next one, full too.
    regular = all(
        e["calls"] == list(range(len(case["rows"])))
        and not e["raises"]
        and (e["edit"] is None or len(case["rows"]) == 1)
        for e in case["evaluations"]
    )
    version = cached = 0

    def x_of(part, k):
        """The rows of this part (cond and uncond ask about the same ones), with an inpainting model's own channels."""
        first = 0 if case["same_latent"] else sum(case["rows"][:part])
        own = arguments[part]["x"][:, channels:]
        return torch.cat([scaled(latent(k)[first : first + case["rows"][part]], k), own], 1)

    ended = set()
    for k, evaluation in enumerate(case["evaluations"]):
        if evaluation["edit"] is not None:
            part = evaluation["edit"]
            arguments[part] = {**arguments[part], "context": arguments[part]["context"] + 1}
        version += evaluation["new_weights"] or evaluation["new_unet"]
        if evaluation["new_unet"]:
            unet = fresh(layout, version)
        elif evaluation["new_weights"]:
            unet.load_state_dict(pristine(layout, version))
        cache.attach(unet)
        cache.tick(lambda k=k: latent(k), sigma(k))
        for part in evaluation["calls"]:
            now = {**arguments[part], "x": x_of(part, k)}
            made_of = (version, float(arguments[part]["context"].sum()))
            if evaluation["raises"] and part == evaluation["calls"][-1]:
                raise_once(unet, evaluation["raises"], now)
                if evaluation["raises"] is RuntimeError:
                    naive.kept.clear()  # memory is freed; what a KeyboardInterrupt leaves is still true
                break
            output = unet(**now)
            ended.add(k)
            expected, planned, features = naive.expect(unet, k, part, made_of, now)
            if torch.equal(output, expected):
                cached += planned
                naive.keep(part, k, made_of, features)
                continue
            features = {}
            full, _ = unets.by_hand(unet, naive.branches[-1], kept=features, **now)
            assert planned and torch.equal(output, full), f"a wrong picture at evaluation {k}, part {part}"
            assert not regular, f"evaluation {k}, part {part} ran in full for no reason"
            naive.keep(part, k, made_of, features)
        if evaluation["outside"]:
            cache.pause()
            assert torch.equal(unet(**arguments[0]), unets.by_hand(unet, 0, **arguments[0])[0])
    report = cache.close()
    assert (report.evaluations, report.cached_calls) == (len(ended), cached)
    assert unets.traces(unet) == traces


def raise_once(unet, error, now):
    def fail(*_):
        handle.remove()
        raise error

    handle = unet.output_blocks[-1].register_forward_pre_hook(fail)
    try:
        unet(**now)
    except error:
        return
    raise AssertionError("the error did not reach the host")
