"""How long full and cached calls take, without making the host wait for a GPU."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..report.pass_report import PassReport
from .evaluation import Kind


class Stopwatch:
    """Times calls into a report: on the CPU at once, on CUDA by events that are read when the pass ends.

    Other devices run asynchronously and have no such events here: their calls are not timed.
    """

    def __init__(self, report: PassReport) -> None:
        self._report = report
        self._started: Any = None
        self._stream: Any = None
        self._events: list[tuple[Kind, Any, Any]] = []

    def start(self, x: torch.Tensor) -> None:
        if x.device.type == "cpu":
            self._started = time.perf_counter()
        elif x.device.type == "cuda":
            # Of the UNet's device, which need not be the current one (A1111's --device-id).
            self._stream = torch.cuda.current_stream(x.device)
            self._started = _event(self._stream)
        else:
            self._started = None

    def stop(self, kind: Kind) -> None:
        started, self._started = self._started, None
        if started is None:
            return
        if isinstance(started, float):
            self._book(kind, time.perf_counter() - started)
        else:
            self._events.append((kind, started, _event(self._stream)))

    def discard(self) -> None:
        """What was started is no call of either kind."""
        self._started = None

    def finish(self) -> None:
        """Read the events; waits for the device once."""
        for kind, start, stop in self._events:
            stop.synchronize()
            self._book(kind, start.elapsed_time(stop) / 1e3)
        self._events.clear()

    def _book(self, kind: Kind, seconds: float) -> None:
        booked = {
            Kind.FULL: self._report.full_seconds,
            Kind.CACHED: self._report.cached_seconds,
            Kind.MEDIUM: self._report.medium_seconds,
        }
        booked[kind].append(seconds)


def _event(stream: Any) -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event
