"""Something goes wrong in one call of a recorded generation; the next generation must not know.

Each fault is played in a host of its own: the generation with the fault, then the same one without (and now and then
one with the extension off), which must equal that of a fresh process bit for bit, call by call. After each nothing may
be left on the UNet.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from deepcache_ext.plan import estimators
from deepcache_ext.session import decisions, open_call, slots
from deepcache_ext.unet import controlnet, ldm
from tests.replay import fakehost
from tests.replay.checker import FEW, Config, traces
from tests.replay.judge import Made
from tests.replay.models import Models, as_in_the_host
from tests.replay.player import Player
from tests.replay.recording import Event, Generation, finished, load
from tests.replay.scenario import WITHOUT, frozen, new_tensors
from tests.replay.watch import Interrupted, Provoked

OURS: tuple[tuple[type, str], ...] = (
    (slots.Slots, "start_evaluation"),
    (slots.Slots, "place"),
    (slots.Slots, "find"),
    (slots.Slots, "keep"),
    (controlnet.ControlledLadder, "call"),
    (controlnet.ControlledLadder, "up_full"),
    (controlnet.ControlledLadder, "up_cached"),
    (ldm.Ladder, "up_full"),
    (ldm.Ladder, "up_cached"),
    (estimators.Copy, "estimate"),
    (open_call.PlainCall, "end"),
    (open_call.ObservedCall, "end"),
    (open_call.CachedCall, "end"),
    (decisions.Decisions, "keep"),
)
"""Functions of our own that may fail within a call."""

CONFIG = Config("copy, interval 3, branch 0", 3)
OFF = Config("disabled", None)


# The faults -----------------------------------------------------------------------------


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@contextlib.contextmanager
def _hooked(register: Callable[..., Any], error: BaseException) -> Iterator[None]:
    handle = register(_raising(error))
    try:
        yield
    finally:
        handle.remove()


def in_the_unet(unet: Any, _: int) -> Any:
    """Before the first block."""
    return _hooked(unet.time_embed.register_forward_pre_hook, Provoked("provoked"))


def in_a_block(unet: Any, _: int) -> Any:
    """In the last block, which every call runs; as out of memory is."""
    return _hooked(unet.output_blocks[-1].register_forward_pre_hook, Provoked("CUDA out of memory"))


def at_the_keyboard(unet: Any, _: int) -> Any:
    """Ctrl-C in a block: no hook after the call is run."""
    return _hooked(unet.output_blocks[-1].register_forward_pre_hook, Interrupted())


def in_a_hook_before(unet: Any, _: int) -> Any:
    """In another extension's hook on the UNet, after ours has put the shadows up."""
    return _hooked(unet.register_forward_pre_hook, Provoked("provoked"))


def in_a_hook_after(unet: Any, _: int) -> Any:
    """In another extension's hook on the UNet, behind ours."""
    return _hooked(unet.register_forward_hook, Provoked("provoked"))


@contextlib.contextmanager
def in_our_own_code(_: Any, number: int) -> Iterator[None]:
    """In one of our functions: the first to the eighth that the call runs, or its last. The generation goes on."""
    left = [number % 8]

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Behind a call that keeps nothing, no other function of ours runs.
            last = function.__name__ == "end" and not isinstance(args[0], open_call.ObservedCall)
            left[0] = -1 if last and left[0] >= 0 else left[0] - 1
            if left[0] == -1:
                raise ArithmeticError("provoked")
            return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in OURS:
            stack.enter_context(mock.patch.object(owner, name, failing(vars(owner)[name])))
        yield


CRASHES = (in_the_unet, in_a_block, at_the_keyboard, in_a_hook_before, in_a_hook_after)
KINDS: dict[str, Callable[[Any, int], Any] | None] = {
    **{kind.__name__.replace("_", " "): kind for kind in CRASHES},
    "in our own code": in_our_own_code,
    "in another's callback": None,
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which call of the generation."""

    kind: str
    call: int

    @property
    def crashes(self) -> bool:
        return KINDS[self.kind] in CRASHES


# Playing -----------------------------------------------------------------------------


class FaultyPlayer(Player):
    """A player that makes a fault happen in one call."""

    fault: Fault | None = None

    def _run(self, event: Event, given: dict[str, Any]) -> torch.Tensor:
        fault = self.fault
        if fault is None or self._number != fault.call:
            return super()._run(event, given)
        kind = KINDS[fault.kind]
        if kind is None:
            return super()._run(event, given)
        with kind(self.models.unet, fault.call):
            return super()._run(event, given)

    def _goes_on(self, rest: list[Event]) -> bool:
        """Here the recording goes on, but the generation is over."""
        return False

    def _begin_evaluation(self, event: Event, rest: list[Event]) -> None:
        fault = self.fault
        others: list[Any] = self.host.callbacks.setdefault("cfg_denoiser", [])
        if fault is None or fault.kind != "in another's callback" or self._number + 1 != fault.call:
            super()._begin_evaluation(event, rest)
            return
        # The host reports what a callback raises and goes on with the next one; ours may come before or after it.
        other = guarded(_raising(ArithmeticError("provoked")))
        others.insert(fault.call % 2 * len(others), other)
        super()._begin_evaluation(event, rest)
        others.remove(other)


def guarded(callback: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        with contextlib.suppress(Exception):
            callback(*args)

    return call


@dataclass
class Watcher:
    """A judge that compares with what a fresh process gave, and looks at what is left."""

    clean: dict[int, object]
    models: Models
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    sure_after_a_crash: bool = True

    def called(self, made: Made) -> None:
        self.outputs[made.key[1]] = made.output

    def crashed(self) -> None:
        if self.sure_after_a_crash:
            self.look("after the exception")

    def generation_ends(self, p: fakehost.Processing) -> None:
        self.look("after the generation")

    def look(self, when: str) -> None:
        for unet in self.models.all():
            before = self.clean.setdefault(id(unet), traces(unet))
            if traces(unet) != before:
                self.failures.append(f"left on the UNet {when}: {traces(unet)}, before: {before}")

    def pass_begins(self, sampler: str, hires: bool) -> None: ...
    def evaluation_begins(self, announced: Event) -> None: ...
    def batch_ends(self, p: fakehost.Processing) -> None: ...


class Ground:
    """One generation of a recording, with what it gives in a fresh process: the ground to compare faults with."""

    def __init__(self, generation: Generation, models: Models) -> None:
        self.models = models
        events = [{k: v for k, v in e.items() if k != "error"} for e in generation.events if e["ev"] != "response"]
        whole = replace(generation, events=events)
        ended = any(e.get("name") == "postprocess" for e in events)
        self.generation = whole if ended else finished(whole)
        self.calls = len(self.generation.calls())
        self.cached = self._fresh(CONFIG)
        self.plain = self._fresh(WITHOUT)

    def _fresh(self, config: Config) -> dict[int, torch.Tensor]:
        self.models.rewind()
        watcher = Watcher({}, self.models)
        host: Any = fakehost.host_with_extension() if config.extension else contextlib.nullcontext(fakehost.Host())
        with host as running:
            Player(running, watcher.models, watcher, config.args).play(self.generation)
        assert not watcher.failures, watcher.failures
        return watcher.outputs

    def inject(self, fault: Fault) -> list[str]:
        """Play the fault and what comes after it; returns what was wrong."""
        models = self.models
        models.rewind()
        watcher = Watcher({id(unet): traces(unet) for unet in models.all()}, models)
        with fakehost.host_with_extension() as host:
            # Whoever else listens (pytest does) would hold the frames of an error, and so its tensors.
            logging.getLogger("deepcache").propagate = False
            # A crashed generation's p may live on, held by a traceback, or be gone when the next one begins. If it
            # lives, and no hook of ours was told of the error, ours are on the UNet until then.
            leaks = fault.call % 2 == 1
            watcher.sure_after_a_crash = not (leaks and fault.kind in ("at the keyboard", "in a hook after"))
            player = FaultyPlayer(host, models, watcher, CONFIG.args, keep_p=leaks)
            player.fault = fault
            try:
                player.play(self.generation)
            except Exception as error:
                watcher.failures.append(f"the error reached the host: {error!r}")
            if not fault.crashes:
                self._compare_faulty(fault, watcher)
            player.fault = None
            for config, expected in ((CONFIG, self.cached), (OFF, self.plain)):
                if config is OFF and fault.call % 4:
                    continue
                watcher.outputs.clear()
                player.args = config.args
                player.play(self.generation)
                watcher.failures += self._differences(watcher.outputs, f"{config.name} after it", expected)
            watcher.look("in the end")
            own = fault.kind == "in our own code"
            said = [
                line for line in host.log.said if FEW not in line and not (own and "error inside DeepCache" in line)
            ]
            watcher.failures += [f"logged: {line}" for line in said]
        return watcher.failures

    def _compare_faulty(self, fault: Fault, watcher: Watcher) -> None:
        """With a fault of our own each call is as planned or whole; with another's callback nothing changes at all."""
        both = (self.cached, self.plain) if fault.kind == "in our own code" else (self.cached,)
        watcher.failures += self._differences(watcher.outputs, "the faulty one", *both)

    def _differences(self, got: dict[int, torch.Tensor], what: str, *allowed: dict[int, torch.Tensor]) -> list[str]:
        if sorted(got) != sorted(self.cached):
            return [f"{what}: made {len(got)} of {self.calls} calls"]
        wrong = [n for n, output in got.items() if not any(torch.equal(output, those[n]) for those in allowed)]
        return [f"{what}: other outputs at the calls {wrong}"] if wrong else []


# All of it -----------------------------------------------------------------------------


@dataclass
class Tally:
    """How many faults of each kind were injected, which did not survive, and what was wrong."""

    injected: Counter[str] = field(default_factory=Counter)
    lost: list[Fault] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        kinds = [f"  {count:5} {kind}" for kind, count in self.injected.items()]
        head = f"{self.injected.total()} faults injected, {self.injected.total() - len(self.lost)} survived"
        return [head, *kinds, *self.failures]


def recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def places(paths: list[Path]) -> list[tuple[Path, int, Fault]]:
    """Every fault that there is: recording, number of the generation in it, kind and call."""
    return [
        (path, number, Fault(kind, call))
        for path in paths
        for number, generation in enumerate(load(path).generations)
        for kind in KINDS
        for call in range(len(generation.calls()))
    ]


def run(paths: list[Path], sample: int | None = None, seed: int = 0, say: Callable[[str], None] = print) -> Tally:
    """Inject every fault at every call of the recordings; or `sample` of them, drawn by `seed`, eight a recording (a
    recording costs more than a fault).
    """
    if sample is None:
        chosen = places(paths)
    else:
        draw = random.Random(seed)
        chosen = places(draw.sample(paths, min(len(paths), math.ceil(sample / 8))))
        chosen = sorted(draw.sample(chosen, sample), key=lambda place: place[:2])
    wanted: dict[Path, list[tuple[int, Fault]]] = {}
    for path, number, fault in chosen:
        wanted.setdefault(path, []).append((number, fault))
    tally = Tally()
    with torch.no_grad(), as_in_the_host(), frozen():
        for path, those in wanted.items():
            lost = len(tally.lost)
            _inject_all(path, those, tally)
            say(f"{path.stem:<30} {len(those):4} faults, {len(those) - len(tally.lost) + lost} survived")
    return tally


def _inject_all(path: Path, faults: list[tuple[int, Fault]], tally: Tally) -> None:
    generations, grounds = load(path).generations, {}
    for number, fault in faults:
        if number not in grounds:
            grounds[number] = Ground(generations[number], Models())
        tally.injected[fault.kind] += 1
        with new_tensors() as left:
            wrong = grounds[number].inject(fault)
        wrong += [f"{len(left)} tensors still held: {left[:5]}"] if left else []
        tally.lost += [fault] if wrong else []
        tally.failures += [f"{path.stem}/{number}, call {fault.call}, {fault.kind}: {what}" for what in wrong]
