"""Judges replays: calls against the reference, the infotext against what was seen, the end against before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import fakehost
from .judge import Key, Made
from .models import Models
from .recording import Event, Generation, in_timesteps
from .reference import WALKS, Answer, Rule, Verdict, answer, noise_level

FEW = "so few steps: caching may change the picture much"
NO_GAIN = "no speed-up: "

FORECAST_TOLERANCE = 3e-6
"""Of the largest value in the output: the reference adds up the same numbers in another order."""


CACHED, DEEPER, FULL = range(3)
"""What a call ran."""


@dataclass(frozen=True)
class Config:
    """Settings of a replay. `interval` None: the extension is off; `extension` False: it is not there; `deeper`: the
    branch that every second full evaluation runs instead.
    """

    name: str
    interval: int | None
    branch: int = 0
    estimator: str = "copy"
    extension: bool = True
    deeper: int | None = None

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,) if self.deeper is None else (self.branch, self.deeper)

    @property
    def args(self) -> tuple[Any, ...]:
        """The script's values, in the order of its controls."""
        if self.interval is None:
            return (False, "Custom", 3, 0, "copy")
        return (
            {
                "enabled": True,
                "cache_interval": self.interval,
                "cache_branch_id": self.branch,
                "estimator": self.estimator,
                "deeper_branch_id": self.deeper or 0,
            },
        )


@dataclass
class Result:
    """One replay. `error`: the largest difference from the reference, as a part of the largest value. `unplayed`: names
    of what could not be played as recorded.
    """

    config: Config
    cached: int = 0
    planned: int = 0
    why: Counter[str] = field(default_factory=Counter)
    error: float = 0.0
    failures: list[str] = field(default_factory=list)
    unplayed: list[str] = field(default_factory=list)
    outputs: dict[Key, torch.Tensor] = field(default_factory=dict)


class Truths:
    """What the whole UNet gives at each call, by the reference; the same with all settings. `left_out`: calls that
    cannot be made.
    """

    def __init__(self, branches: frozenset[int], answer: Callable[..., Answer] = answer) -> None:
        self._branches = branches
        self.answer = answer
        self._answers: dict[Key, Answer] = {}
        self.left_out: set[Key] = set()

    def of(self, made: Made) -> Answer:
        if made.key not in self._answers:
            self._answers[made.key] = self.answer(
                made.unet, made.arguments, control=made.control, branches=self._branches
            )
        return self._answers[made.key]


class Checker:
    """Judges a replay."""

    def __init__(self, config: Config, models: Models, truths: Truths) -> None:
        self.result = Result(config)
        self.models, self.truths = models, truths
        self.clean: dict[int, object] = {}
        self.rule = Rule(config.interval, config.estimator, config.branches) if config.interval else None
        self.passes: list[tuple[bool, list[list[int]]]] = []
        self._repeats: Counter[Hashable] = Counter()
        self._where = ""
        self._told: str | None = None
        self.has_gained = False

    def fail(self, what: str) -> None:
        self.result.failures.append(f"{self._where}: {what}")

    # What the player tells -----------------------------------------------------------------------------

    def generation_begins(self, generation: Generation) -> None:
        self._where, self.has_gained = generation.key, False
        self.forgets()

    def pass_begins(self, sampler: str, hires: bool) -> None:
        self.passes.append((hires, []))
        if self.rule:
            self.rule.begin_pass(sampler)

    def evaluation_begins(self, announced: Event) -> None:
        self.passes[-1][1].append([])
        self._repeats.clear()
        if self.rule:
            level = noise_level(announced["sigma"][0], in_timesteps(announced))
            total = announced["denoiser_total_steps"]
            self.rule.begin_evaluation(level, total, announced.get("levels", ()))

    def called(self, made: Made) -> None:
        self._where = f"{made.key[0]} call {made.key[1]}"
        self.result.outputs[made.key] = made.output
        truth, rule = self.truths.of(made), self.rule
        verdict = self._verdict(made, len(truth.features), rule) if rule and made.part is not None else None
        cached = self._was_cached(made, len(truth.features), verdict)
        if made.part is not None:
            deeper = rule is not None and rule.branch is not None and rule.branch != rule.branches[0]
            ran = FULL if not cached else DEEPER if deeper else CACHED
            self.has_gained |= cached
            self.passes[-1][1][-1].append(ran)
            if rule is not None:
                rule.called(ran == FULL)
        if rule is None or verdict is None:
            if cached:
                self.fail("cached where nothing may be")
            self._compare(made.output, truth.output, exact=True)
            return
        self._judge(made, truth, cached, verdict, rule)

    def batch_ends(self, p: fakehost.Processing) -> None:
        """The infotext says what was seen here: a full evaluation is one whose calls were all full."""
        told = p.extra_generation_params.get("DeepCache")
        self._told = (summary(self.passes) or self._told) if self.rule else None
        if self.result.config.extension and told != self._told:
            self.fail(f"the infotext says {told!r} instead of {self._told!r}")
        self.passes.clear()

    def forgets(self) -> None:
        self.passes.clear()
        self._told = None

    def generation_ends(self, p: fakehost.Processing) -> None:
        # The recordings are short runs, which an explicit interval is warned of.
        told = [comment for comment in p.comments if FEW not in comment and not self.may_say_so(comment)]
        if told:
            self.fail(f"comments under the picture: {told}")
        if self.rule is None and any(name.startswith("DeepCache") for name in p.extra_generation_params):
            self.fail("it is off and writes into the infotext")
        self.check_clean("after the generation")

    def may_say_so(self, line: str) -> bool:
        """Whether it tells why nothing was gained, and nothing was."""
        return NO_GAIN in line and not self.has_gained

    def raised(self) -> None:
        """Its evaluation is none, unless other calls of it ended. At interval 1 nobody looks at calls."""
        if self.rule and self.rule.interval == 1:
            self.passes[-1][1][-1] = [FULL]
        if self.rule:
            self.rule.drop()

    def crashed(self) -> None:
        self.check_clean("after the exception")

    # Checks -----------------------------------------------------------------------------

    def _verdict(self, made: Made, walks: int, rule: Rule) -> Verdict:
        unet: Any = made.unet
        rule.settles = len(unet.output_blocks) == 9 if rule.index == 0 else rule.settles
        part = (made.part, self._repeats[made.part])
        self._repeats[made.part] += 1
        return rule.verdict(part, (made.conditioning, made.weights, made.forward), walks)

    def _was_cached(self, made: Made, walks: int, verdict: Verdict | None) -> bool:
        unet: Any = made.unet
        count = len(unet.output_blocks)
        branch = self.rule.branch if self.rule and self.rule.branch is not None else self.result.config.branch
        inputs, outputs = [str(i) for i in range(count)], [str(i) for i in range(-count, 0)]
        whole, live = [*inputs, "m", *outputs] * walks, [*inputs[: branch + 1], *outputs[-branch - 1 :]] * walks
        if made.ran == ([*live, *whole] if verdict is not None and verdict.why == WALKS else whole):
            return False
        if made.ran != live:
            self.fail(f"ran neither all blocks nor just the live ones: {' '.join(made.ran)}")
        return True

    def _judge(self, made: Made, truth: Answer, cached: bool, verdict: Verdict, rule: Rule) -> None:
        config = self.result.config
        part = (made.part, self._repeats[made.part] - 1)
        making = (made.conditioning, made.weights, made.forward)
        if rule.branch is not None:
            self.result.planned += 1
            self.result.cached += cached
            if verdict.features is None:
                self.result.why[verdict.why] += 1
        if cached and verdict.features is None:
            self.fail(f"cached, but must be full: {verdict.why}")
        elif not cached and verdict.features is not None:
            self.fail("full, but its feature was at hand")
        if cached and verdict.features is not None:
            expected = self.truths.answer(
                made.unet,
                made.arguments,
                control=made.control,
                branch=rule.branch,
                features=verdict.features,
                branches=config.branches[:1],
            )
            self._compare(made.output, expected.output, exact=verdict.exact)
            if rule.branch == config.deeper:
                rule.remember(part, making, expected.features, verdict.exact)
        elif not cached:
            self._compare(made.output, truth.output, exact=True)
            if verdict.why != WALKS:
                rule.remember(part, making, truth.features)

    def _compare(self, got: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
        if got.shape != expected.shape or not torch.isfinite(got).all():
            self.fail(f"gave {tuple(got.shape)}, finite: {bool(torch.isfinite(got).all())}")
            return
        error = float((got - expected).abs().max() / expected.abs().max())
        self.result.error = max(self.result.error, error)
        if (exact and not torch.equal(got, expected)) or not error <= FORECAST_TOLERANCE:
            self.fail(f"differs from the reference by {error:.1e}")

    def mark_clean(self) -> None:
        self.clean = {id(unet): traces(unet) for unet in self.models.all()}

    def check_clean(self, when: str) -> None:
        for unet in self.models.all():
            before = self.clean.get(id(unet), traces(unet))
            if traces(unet) != before:
                self.fail(f"left on the UNet {when}: {traces(unet)}, before: {before}")


def traces(unet: nn.Module) -> object:
    """What could be left on a UNet: hooks, and names in its `__dict__`; `forward` is ControlNet's affair."""
    hooks = len(unet._forward_pre_hooks), len(unet._forward_hooks), len(unet._forward_hooks_with_kwargs)
    return hooks, frozenset(unet.__dict__) - {"forward"}


def summary(passes: list[tuple[bool, list[list[int]]]]) -> str:
    """As in the infotext: `3 of 8 full, hires 3 of 8 full + 1 medium + 1 mixed`."""
    parts = []
    for hires, prefix in ((False, ""), (True, "hires ")):
        ran = [set(one) for is_hires, those in passes if is_hires is hires for one in those if one]
        if ran:
            more = {
                "medium": sum(DEEPER in one and FULL not in one for one in ran),
                "mixed": sum(FULL in one and len(one) > 1 for one in ran),
            }
            told = "".join(f" + {count} {word}" for word, count in more.items() if count)
            parts.append(f"{prefix}{ran.count({FULL})} of {len(ran)} full{told}")
    return ", ".join(parts)
