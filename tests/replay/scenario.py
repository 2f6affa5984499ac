"""One recording with several settings: how it is played, and the report line."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from . import fakehost, forge_player, reference, sdnext_player
from .caller import LetThrough
from .checker import FEW, NO_GAIN, Checker, Config, Result, Truths
from .models import Models, as_in_the_host
from .player import Player
from .recording import Generation, Recording, finished, load

CAUSES = {
    "cfg_end": "guidance ends in mid-run, and the batch with it",
    "animatediff_3_windows": "its windows move, so most parts are new at a cached evaluation",
    "ngms": "cond alone and cond with uncond take turns",
    "prompt_edit": "the prompt changes between two full evaluations",
    "refiner_inplace": "other weights between two full evaluations",
    "refiner_new_object": "another UNet between two full evaluations",
}
"""Why some scenarios cache fewer calls than the plan allows."""

WITHOUT = Config("without the extension", None, extension=False)
CONFIGS = (
    Config("disabled", None),
    Config("interval 1", 1),
    Config("copy, interval 3, branch 0", 3),
    Config("copy, interval 2, branch 3", 2, 3),
    Config("forecast, interval 3, branch 0", 3, 0, "forecast"),
    Config("auto, interval 5, branch 0", 5, 0, "auto"),
    Config("copy, interval 2, branches 0 and 3", 2, 0, deeper=3),
    Config("forecast, interval 2, branches 1 and 4", 2, 1, "forecast", deeper=4),
)
MAIN = CONFIGS[2]
SOME = (CONFIGS[1], MAIN, CONFIGS[7])
"""What `make test` plays: uncached, cached, and all at once."""
OTHERS = tuple(config for config in CONFIGS if config not in SOME)


@dataclass(frozen=True)
class Stage:
    """What a host's recordings are played on."""

    host: Callable[[], fakehost.Host] = fakehost.Host
    models: Callable[[], Models] = Models
    player: type[Player] = Player
    answer: Callable[..., reference.Answer] = reference.answer


def _forge(protocol: str) -> Stage:
    return Stage(
        forge_player.ForgeHost,
        lambda: forge_player.ForgeModels(protocol),
        forge_player.ForgePlayer,
        forge_player.answer,
    )


STAGES = {
    "a1111": Stage(),
    "forge": _forge("forge"),
    "reforge": _forge("reforge"),
    "sdnext": Stage(
        sdnext_player.SDNextHost, sdnext_player.SDNextModels, sdnext_player.SDNextPlayer, sdnext_player.answer
    ),
}


@dataclass
class Outcome:
    """One recording with all settings."""

    name: str
    results: list[Result] = field(default_factory=list)
    unread: tuple[str, ...] = ()

    @property
    def unplayed(self) -> list[str]:
        """Names of what could not be played as recorded."""
        return list(dict.fromkeys([*self.unread, *(name for result in self.results for name in result.unplayed)]))

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
        return text + (f"   not played: {', '.join(self.unplayed)}" if self.unplayed else "")


# Replays -----------------------------------------------------------------------------


def sequence(recording: Recording) -> list[Generation]:
    """The recording's generations made whole: an end that was not recorded, one more after a crash."""
    generations = [one if one.ended else finished(one) for one in recording.generations]
    if recording.truncated:
        generations[-1] = finished(recording.generations[-1])
    if generations[-1].crashed:
        generations += _next_generation(recording)
    return generations


def _next_generation(recording: Recording) -> list[Generation]:
    """The recorded one, if there is one, or else the crashed one once more, without the exception."""
    sibling = recording.path.with_name(f"after_{recording.path.name}")
    if sibling.exists():
        return load(sibling).generations
    crashed = recording.generations[-1]
    events = [{k: v for k, v in e.items() if k != "error"} for e in crashed.events if e["ev"] != "response"]
    if any(event.get("name") == "postprocess_batch" for event in events):  # a host that goes on after an exception
        return [replace(crashed, key=f"{crashed.key} again", events=events)]
    return [finished(replace(crashed, key=f"{crashed.key} again", events=events))]


def play(
    generations: list[Generation],
    config: Config,
    models: Models,
    truths: Truths,
    host: fakehost.Host,
    make_player: type[Player] = Player,
) -> Result:
    """The generations one after another in one host."""
    checker = Checker(config, models, truths)
    # After a crash p may live on, held by a traceback, or be gone when the next generation begins: try both.
    keep_p = config.interval == 2
    player = make_player(host, models, checker, config.args, keep_p=keep_p, left_out=truths.left_out)
    checker.mark_clean()
    for generation in generations:
        checker.generation_begins(generation)
        try:
            player.play(generation)
        except LetThrough as error:
            checker.fail(str(error))
            break
    checker.result.unplayed += player.unplayed
    checker.check_clean("in the end")
    for said in (line for line in host.log.said if FEW not in line and NO_GAIN not in line):
        checker.fail(f"logged: {said}")
    return checker.result


def replay(recording: Recording, configs: tuple[Config, ...] = CONFIGS) -> Outcome:
    """All settings, each in a new host; first without the extension, to prove the reference's forwards."""
    unended = [f"the end of {one.key}" for one in recording.generations if not (one.ended or recording.truncated)]
    outcome = Outcome(recording.name, unread=(*recording.unread, *unended))
    stage = STAGES.get(recording.host.split("-")[0])
    if stage is None:
        failed = Result(MAIN, failures=[f"there is no player for recordings of {recording.host}"])
        outcome.results.append(failed)
        return outcome
    generations = sequence(recording)
    models, truths = (
        stage.models(),
        Truths(frozenset(branch for config in configs for branch in config.branches), stage.answer),
    )
    with torch.no_grad(), as_in_the_host(), frozen():
        outcome.results.append(play(generations, WITHOUT, models, truths, stage.host(), stage.player))
        for config in configs:
            models.rewind()
            with fakehost.host_with_extension(stage.host) as host, new_tensors() as left:
                result = play(generations, config, models, truths, host, stage.player)
                if recording.crashed:
                    _compare_with_fresh(generations[-1], config, truths, result, stage)
                result.outputs.clear()
            if left and config.interval:
                result.failures.append(f"still held after the last generation: {len(left)}, {left[:5]}")
            outcome.results.append(result)
    outcome.results[0].outputs.clear()
    return outcome


def _compare_with_fresh(last: Generation, config: Config, truths: Truths, result: Result, stage: Stage) -> None:
    """The generation after a crash gives bit for bit what it gives in a fresh process."""
    with fakehost.host_with_extension(stage.host) as host:
        fresh = play([last], config, stage.models(), truths, host, stage.player)
    for key, output in fresh.outputs.items():
        if key not in result.outputs or not torch.equal(output, result.outputs[key]):
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
    """The list fills, at the end, with the shapes of tensors that were made inside and are alive."""
    left: list[str] = []
    gc.collect()
    gc.freeze()  # what is there by now is not looked at again
    yield left
    gc.collect()
    left += [str(tuple(thing.shape)) for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))
