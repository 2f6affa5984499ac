"""How long calls took, where a device runs them later: its own events, on the stream that the call is given to."""

from types import SimpleNamespace

import torch

from deepcache_ext.report.pass_report import PassReport
from deepcache_ext.session.evaluation import Kind
from deepcache_ext.session.stopwatch import Stopwatch


def test_on_the_device_of_the_call_and_not_on_the_current_one(monkeypatch):
    recorded, clock = [], iter((0.0, 3.0, 10.0, 12.0))

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing

        def record(self, stream):
            recorded.append(stream)
            self.at = next(clock)

        def synchronize(self):
            pass

        def elapsed_time(self, later):
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    report, second = PassReport(), SimpleNamespace(device=torch.device("cuda:1"))
    watch = Stopwatch(report)
    for kind in (Kind.FULL, Kind.CACHED):
        watch.start(second)
        watch.stop(kind)
    watch.finish()
    assert recorded == ["stream of cuda:1"] * 4
    assert (report.full_seconds, report.cached_seconds) == ([0.003], [0.002])
