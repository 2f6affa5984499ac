"""`python -m research.motion`: how much of the angle that `session.motion` allows is used, by every sampler of the
embedded hosts.

Each is run once (guidance 7, 30 steps, every second evaluation cached with a forecast, so that all of them are looked
at), on random weights or on another of the demo's checkpoints. The largest share of the allowed angle is told, and how
many evaluations were taken for another picture: an alarm, of which there should be none.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

from bench.tables import markdown, row
from demo.webui.boot import boot
from demo.webui.hosts import HOSTS

SETTINGS = {"enabled": True, "cache_interval": 2, "estimator": "forecast", "start": 0.0, "end": 1.0}


@dataclass
class Seen:
    """What one run used: by evaluation, the angle and what was allowed, in radians."""

    angles: list[tuple[float, float]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return max((turned / allowed for turned, allowed in self.angles), default=0.0)

    @property
    def alarms(self) -> int:
        return sum(turned > allowed for turned, allowed in self.angles)


def runs(name: str, options: argparse.Namespace) -> Iterator[tuple[str, str, Seen]]:
    """Sampler, schedule, and what was seen, of one host."""
    size, steps = options.size, options.steps
    with boot(model=options.model, host=name) as host:
        host.txt2img(prompt="a red apple", steps=2, width=size, height=size)
        motion = sys.modules["deepcache_ext.session.motion"].Motion  # the host's, which loads modules anew
        every = [one.name for one in host.module("sd_samplers").all_samplers]
        for sampler in options.samplers.split(",") if options.samplers else every:
            for schedule in options.schedules.split(","):
                seen = Seen()

                def watch(_: object, turned: float, allowed: float, seen: Seen = seen) -> bool:
                    seen.angles.append((turned, allowed))
                    return turned <= allowed

                with mock.patch.object(motion, "_is_within", watch):
                    host.txt2img(
                        prompt="a red apple",
                        negative_prompt="a house",
                        seed=3,
                        steps=steps,
                        cfg_scale=7,
                        width=size,
                        height=size,
                        sampler_name=sampler,
                        scheduler=schedule,
                        alwayson_scripts={"DeepCache": {"args": [SETTINGS]}},
                    )
                yield sampler, schedule, seen


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("research.motion", description=__doc__)
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--model", default="tinyA")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--schedules", default="Automatic")
    parser.add_argument("--samplers", default="", help="default: all of the host's")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    print("\n".join(markdown(("host", "sampler", "schedule", "looked at", "alarms", "used at most"))), flush=True)
    for name in options.hosts.split(","):
        for sampler, schedule, seen in runs(name, options):
            told = (name, sampler, schedule, str(len(seen.angles)), str(seen.alarms), f"{seen.share:.2f}")
            print(row(told), flush=True)


if __name__ == "__main__":
    main()
