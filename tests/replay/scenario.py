"""One recording against the reference, with several settings: what is checked, and the report line."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import fakehost
from .models import Models, as_in_the_host
from .player import Made, Player, finished
from .recording import Event, Generation, Recording, load
from .reference import Answer, Rule, answer, noise_level

CAUSES = {
    "animatediff_3_windows": "its windows move, so most parts are new at a cached evaluation",
    "ngms": "cond alone and cond with uncond take turns",
    "prompt_edit": "the prompt changes between two full evaluations",
    "refiner_inplace": "other weights between two full evaluations",
    "refiner_new_object": "another U-Net between two full evaluations",
}
"""Why some scenarios cache fewer calls than the plan allows."""

FORECAST_TOLERANCE = 2e-5
"""Of the largest value in the output: the reference and the extension add up the same numbers in other orders."""


@dataclass(frozen=True)
class Config:
    """Settings of one replay. `interval` None: the extension is off; `extension` False: it is not even there."""

    name: str
    interval: int | None
    branch: int = 0
    estimator: str = "copy"
    extension: bool = True

    @property
    def args(self) -> tuple[Any, ...]:
        """The script's values, in the order of its controls."""
        if self.interval is None:
            return (False, "Custom", 3, 0, "copy")
        return (True, "Custom", self.interval, self.branch, self.estimator)


WITHOUT = Config("without the extension", None, extension=False)
CONFIGS = (
    Config("disabled", None),
    Config("interval 1", 1),
    Config("copy, interval 3, branch 0", 3),
    Config("copy, interval 2, branch 3", 2, 3),
    Config("forecast, interval 3, branch 0", 3, 0, "forecast"),
    Config("auto, interval 3, branch 0", 3, 0, "auto"),
)
MAIN = CONFIGS[2]


@dataclass
class Result:
    """One replay. `errors`: the largest difference from the reference, relative to the output's largest value."""

    config: Config
    cached: int = 0
    planned: int = 0
    why: Counter[str] = field(default_factory=Counter)
    error: float = 0.0
    failures: list[str] = field(default_factory=list)
    outputs: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)


@dataclass
class Outcome:
    """One recording with all settings."""

    name: str
    results: list[Result] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [f"{result.config.name}: {failure}" for result in self.results for failure in result.failures]

    @property
    def main(self) -> Result:
        return next(result for result in self.results if result.config is MAIN)

    def line(self) -> str:
        main = self.main
        exact = max(result.error for result in self.results if result.config.estimator == "copy")
        text = f"{self.name:<30} cached {main.cached:>2} of {main.planned:>2} planned   max error {exact:.1e}"
        text += f"   {'FAILED' if self.failures else 'ok'}"
        if main.cached < main.planned:
            counted = ", ".join(f"{count} {why}" for why, count in main.why.items())
            text += f"   ({CAUSES.get(self.name, 'by the reference')}: {counted})"
        return text


class Truths:
    """What the whole U-Net gives at each call, by the reference; the same with all settings."""

    def __init__(self, branches: frozenset[int]) -> None:
        self._branches = branches
        self._answers: dict[tuple[str, int], Answer] = {}

    def of(self, made: Made) -> Answer:
        if made.key not in self._answers:
            self._answers[made.key] = answer(
                made.unet, made.arguments, control=made.control, branches=self._branches
            )
        return self._answers[made.key]


class Checker:
    """Judges a replay."""

    def __init__(self, config: Config, models: Models, truths: Truths) -> None:
        self.result = Result(config)
        self.models, self.truths = models, truths
        self.clean: dict[int, object] = {}
        self.rule = Rule(config.interval, config.estimator) if config.interval else None
        self.passes: list[tuple[bool, list[bool]]] = []
        self._repeats: Counter[Hashable] = Counter()
        self._where = ""

    def fail(self, what: str) -> None:
        self.result.failures.append(f"{self._where}: {what}")

    # What the player tells ------------------------------------------------------------------------------------

    def generation_begins(self, generation: Generation) -> None:
        self._where = generation.key
        self.passes.clear()

    def pass_begins(self, sampler: str, hires: bool) -> None:
        self.passes.append((hires, []))
        if self.rule:
            self.rule.begin_pass(sampler)

    def evaluation_begins(self, announced: Event) -> None:
        self.passes[-1][1].append(False)
        self._repeats.clear()
        if self.rule:
            in_timesteps = announced["denoiser_class"] == "CFGDenoiserTimesteps"
            self.rule.begin_evaluation(noise_level(announced["sigma"][0], in_timesteps))

    def called(self, made: Made) -> None:
        self._where = f"{made.key[0]} call {made.key[1]}"
        self.result.outputs[made.key] = made.output
        truth = self.truths.of(made)
        cached = self._was_cached(made, len(truth.features))
        if not cached and made.part is not None:
            self.passes[-1][1][-1] = True
        if self.rule is None or made.part is None:
            if cached:
                self.fail("cached where nothing may be")
            self._compare(made.output, truth.output, exact=True)
            return
        self._judge(made, truth, cached, self.rule)

    def batch_ends(self, p: fakehost.Processing) -> None:
        """The infotext says what was seen here: a full evaluation is one with any full call."""
        told = p.extra_generation_params.get("DeepCache")
        expected = summary(self.passes) if self.rule else None
        if self.result.config.extension and told != expected:
            self.fail(f"the infotext says {told!r} instead of {expected!r}")
        self.passes.clear()

    def generation_ends(self, p: fakehost.Processing) -> None:
        if p.comments:
            self.fail(f"comments under the picture: {p.comments}")
        if self.rule is None and any(name.startswith("DeepCache") for name in p.extra_generation_params):
            self.fail("it is off and writes into the infotext")
        self.check_clean("after the generation")

    def crashed(self) -> None:
        self.check_clean("after the exception")

    # Checks ---------------------------------------------------------------------------------------------------

    def _was_cached(self, made: Made, walks: int) -> bool:
        unet: Any = made.unet
        count, branch = len(unet.output_blocks), self.result.config.branch
        inputs, outputs = [str(i) for i in range(count)], [str(i) for i in range(-count, 0)]
        if made.ran == [*inputs, "m", *outputs] * walks:
            return False
        if made.ran != [*inputs[: branch + 1], *outputs[-branch - 1 :]] * walks:
            self.fail(f"ran neither all blocks nor just the live ones: {' '.join(made.ran)}")
        return True

    def _judge(self, made: Made, truth: Answer, cached: bool, rule: Rule) -> None:
        config = self.result.config
        part = (made.part, self._repeats[made.part])
        self._repeats[made.part] += 1
        making = (made.conditioning, made.weights, made.forward)
        verdict = rule.verdict(part, making)
        if not rule.planned_full:
            self.result.planned += 1
            self.result.cached += cached
            if verdict.features is None:
                self.result.why[verdict.why] += 1
        if cached and verdict.features is None:
            self.fail(f"cached, but must be full: {verdict.why}")
        elif not cached and verdict.features is not None:
            self.fail("full, but its feature was at hand")
        if cached and verdict.features is not None:
            expected = answer(
                made.unet, made.arguments, control=made.control, branch=config.branch, features=verdict.features
            )
            self._compare(made.output, expected.output, exact=verdict.exact)
        elif not cached:
            self._compare(made.output, truth.output, exact=True)
            rule.remember(part, making, [kept[config.branch] for kept in truth.features])

    def _compare(self, got: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
        if got.shape != expected.shape or not torch.isfinite(got).all():
            self.fail(f"gave {tuple(got.shape)}, finite: {bool(torch.isfinite(got).all())}")
            return
        error = float((got - expected).abs().max() / expected.abs().max())
        self.result.error = max(self.result.error, error)
        if (exact and not torch.equal(got, expected)) or error > FORECAST_TOLERANCE:
            self.fail(f"differs from the reference by {error:.1e}")

    def mark_clean(self) -> None:
        self.clean = {id(unet): traces(unet) for unet in self.models.all()}

    def check_clean(self, when: str) -> None:
        for unet in self.models.all():
            before = self.clean.get(id(unet), traces(unet))
            if traces(unet) != before:
                self.fail(f"left on the U-Net {when}: {traces(unet)}, before: {before}")


def traces(unet: nn.Module) -> object:
    """What could be left on a U-Net: hooks on it, and names in its `__dict__`; `forward` is ControlNet's affair."""
    hooks = len(unet._forward_pre_hooks), len(unet._forward_hooks), len(unet._forward_hooks_with_kwargs)
    return hooks, frozenset(unet.__dict__) - {"forward"}


def summary(passes: list[tuple[bool, list[bool]]]) -> str:
    """As in the infotext: `3 of 8 full, hires 3 of 8 full`."""
    parts = []
    for hires, prefix in ((False, ""), (True, "hires ")):
        evaluations = [full for is_hires, those in passes if is_hires is hires for full in those]
        if evaluations:
            parts.append(f"{prefix}{sum(evaluations)} of {len(evaluations)} full")
    return ", ".join(parts)


# Replays ------------------------------------------------------------------------------------------------------


def sequence(recording: Recording) -> list[Generation]:
    """The recording's generations, made whole: an end that was cut off, and one more generation after a crash."""
    generations = list(recording.generations)
    if recording.truncated:
        generations[-1] = finished(generations[-1])
    if recording.crashed and "error" in generations[-1].calls()[-1]:
        generations += _next_generation(recording)
    return generations


def _next_generation(recording: Recording) -> list[Generation]:
    """The recorded one, if there is one, or else the crashed one once more, without the exception."""
    sibling = recording.path.with_name(f"after_{recording.path.name}")
    if sibling.exists():
        return load(sibling).generations
    crashed = recording.generations[-1]
    events = [{k: v for k, v in e.items() if k != "error"} for e in crashed.events if e["ev"] != "response"]
    return [finished(replace(crashed, key=f"{crashed.key} again", events=events))]


def play(
    generations: list[Generation], config: Config, models: Models, truths: Truths, host: fakehost.Host
) -> Result:
    """The generations one after another in one host."""
    checker = Checker(config, models, truths)
    # After a crash p may live on, held by a traceback, or be gone when the next generation begins: try both.
    player = Player(host, models, checker, config.args, keep_p=config.interval == 2)
    checker.mark_clean()
    for generation in generations:
        checker.generation_begins(generation)
        player.play(generation)
    checker.check_clean("in the end")
    for said in host.log.said:
        checker.fail(f"logged: {said}")
    return checker.result


def replay(recording: Recording, configs: tuple[Config, ...] = CONFIGS) -> Outcome:
    """All settings, each in a host of its own; first without the extension, to prove the reference's forwards."""
    outcome = Outcome(recording.name)
    if recording.host.split("-")[0] != "a1111":
        failed = Result(MAIN, failures=[f"there is no player for recordings of {recording.host}"])
        outcome.results.append(failed)
        return outcome
    generations = sequence(recording)
    models, truths = Models(), Truths(frozenset(config.branch for config in configs))
    with torch.no_grad(), as_in_the_host(), frozen():
        outcome.results.append(play(generations, WITHOUT, models, truths, fakehost.Host()))
        for config in configs:
            models.rewind()
            with fakehost.host_with_extension() as host, new_tensors() as left:
                result = play(generations, config, models, truths, host)
                if recording.crashed:
                    _compare_with_fresh(generations[-1], config, truths, result)
                result.outputs.clear()
            if left and config.interval:
                result.failures.append(f"still held after the last generation: {len(left)} tensors, {left[:5]}")
            outcome.results.append(result)
    outcome.results[0].outputs.clear()
    return outcome


def _compare_with_fresh(last: Generation, config: Config, truths: Truths, result: Result) -> None:
    """The generation after a crash gives bit for bit what it gives in a fresh process."""
    with fakehost.host_with_extension() as host:
        fresh = play([last], config, Models(), truths, host)
    for key, output in fresh.outputs.items():
        if not torch.equal(output, result.outputs[key]):
            result.failures.append(f"{key[0]} call {key[1]}: not as in a fresh process")


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Spares the collector what was there before: a process with all of torch in it is slow to search."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def new_tensors() -> Iterator[list[str]]:
    """The list fills, at the end, with the shapes of the tensors that were made inside and are still alive."""
    left: list[str] = []
    gc.collect()
    gc.freeze()  # what is there by now is not looked at again
    yield left
    gc.collect()
    left += [str(tuple(thing.shape)) for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))
