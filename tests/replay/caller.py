"""Makes a recorded call on a real UNet: which one, with what arguments, and what becomes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from . import fakehost
from .judge import Judge, Key, Made
from .models import CONTROL_FORWARD, Control, Kind, Models, forward_name, set_forward
from .recording import CLASS_FORWARD, Event, Generation
from .watch import BlockWatch, Provoked


class LetThrough(Exception):
    """An error that came out of the extension, or out of a call that succeeds without it."""


@contextlib.contextmanager
def noticed(where: str) -> Iterator[None]:
    """What is raised inside, but for the recorded exception, becomes `LetThrough`."""
    try:
        yield
    except Provoked:
        raise
    except Exception as error:
        raise LetThrough(f"{where} raised {error!r}") from error


class Caller:
    """Makes calls one after another on the same models; `judge` is told of each.

    `unplayed` fills with the names of what cannot be played as recorded. `left_out`: calls that cannot be made at all;
    they are found without the extension, and then left out with it, too.
    """

    order: tuple[str, ...] = ("x", "timesteps", "context", "y")
    """The UNet's positional arguments."""

    constants: ClassVar[dict[str, Any]] = {}
    """Keywords that the host gives with always the same value."""

    def __init__(self, host: fakehost.Host, models: Models, judge: Judge, left_out: set[Key] | None) -> None:
        self.host, self.models, self.judge = host, models, judge
        self.left_out: set[Key] = set() if left_out is None else left_out
        self.unplayed: dict[str, None] = {}
        self._control = Control()
        self._watch: BlockWatch | None = None
        self._kind = Kind(4, 64, 0)
        self._kinds: dict[int, Kind] = {}
        self._number = -1

    def _cannot(self, what: str) -> None:
        """It cannot be played as recorded."""
        self.unplayed[what] = None

    # The model -----------------------------------------------------------------------------

    def _start_model(self, generation: Generation) -> None:
        """The model that is there when the generation begins; some model, where nothing tells of one."""
        calls = generation.calls()
        self._kinds = {call["id"]: self._kind_of(call) for call in reversed(calls)}
        if calls:
            self._use_numbers(calls[0]["id"], calls[0]["weights"])
        elif not self.host.has_model:
            self._use_numbers(max(self.models.current, 0), 0)

    @staticmethod
    def _kind_of(call: Event) -> Kind:
        return Kind.of(call)

    def _use_numbers(self, unet: int, weights: int) -> None:
        before = self.models.current
        self._kind = self._kinds.get(unet, self._kind)
        self.models.use(self._kind, unet, weights)
        if not self.host.has_model or before != unet:
            self.host.load_model(self.models.unet)

    def _forward(self, call: Event | None) -> None:
        """Bring the instance's `forward` to what was recorded: ControlNet's stands in for any foreign one."""
        recorded = call.get("instance_forward") if call else None
        if recorded not in (None, CLASS_FORWARD, CONTROL_FORWARD):
            self._cannot("unet.instance_forward")
        set_forward(self.models.unet, recorded, lambda: self._control)

    @property
    def _is_foreign(self) -> bool:
        """Whether another forward than the class's runs."""
        return forward_name(self.models.unet) == "foreign"

    def _watching(self) -> BlockWatch:
        if self._watch is None or self._watch.unet is not self.models.unet:
            self._stop_watching()
            self._watch = BlockWatch(self.models.unet)
        return self._watch

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    # The call -----------------------------------------------------------------------------

    def _output(self, key: Key, event: Event, given: dict[str, Any]) -> torch.Tensor | None:
        """What the call gives; None where it cannot be made. Raises `Provoked` where the recorded one raised."""
        if event.get("control"):
            self._cannot("unet.control")
        watch = self._watching()
        watch.ran.clear()
        watch.fail = "error" in event
        output = None if key in self.left_out else self._made(key, event, given)
        if "error" in event:
            if output is not None:
                raise LetThrough("the exception was swallowed")
            raise Provoked("provoked")
        return output

    def _made(self, key: Key, event: Event, given: dict[str, Any]) -> torch.Tensor | None:
        if self.host.script is not None:
            with noticed(f"call {key[1]}"):
                return self._run(event, given)
        try:
            output = self._run(event, given)
        except Provoked:
            raise
        except Exception as error:
            output, why = None, type(error).__name__
        else:
            why = "" if torch.isfinite(output).all() else "not finite"
        if not why:
            return output
        self.left_out.add(key)
        self._cannot(f"a call of x {event['x']}, context {event['context']} ({why})")
        return None

    def _run(self, event: Event, given: dict[str, Any]) -> torch.Tensor:
        """The call with as many positional arguments as recorded; what is not passed becomes None in `given`."""
        positional, named = self.order[: event["nargs"]], dict.fromkeys(event["kwargs"])
        known = {**given, **self.constants}
        unknown = [f"unet.kwargs.{name}" for name in named if name not in known]
        unknown += ["unet.nargs"] if event["nargs"] > len(self.order) else []
        for what in unknown:
            self._cannot(what)
        keywords = {name: known[name] for name in named if name in known and name not in positional}
        for name in given:
            given[name] = given[name] if name in positional or name in keywords else None
        return self.models.unet(*(given[name] for name in positional), **keywords)

    def _tell(self, key: Key, given: dict[str, Any], part: object, conditioning: object, output: torch.Tensor) -> None:
        """The judge of what was made. `part`: None outside any evaluation."""
        foreign = self._is_foreign
        self.judge.called(
            Made(
                key=key,
                part=None if part is None else (part, self._distinguishing(given)),
                conditioning=conditioning,
                weights=self.models.version,
                forward="foreign" if foreign else "own",
                arguments=given,
                control=self._control if foreign else None,
                unet=self.models.unet,
                output=output,
                ran=list(self._watching().ran),
            )
        )

    def _distinguishing(self, given: dict[str, Any]) -> object:
        """What of a call's arguments makes it another call: shapes of tensors, but for the timesteps."""
        found: dict[str, Any] = {}
        for name in ("x", "sample", "context", "encoder_hidden_states", "y", "added_cond_kwargs"):
            value = given.get(name)
            found.update(value if isinstance(value, dict) else {name: value})
        return tuple((name, tuple(value.shape)) for name, value in found.items() if value is not None)
