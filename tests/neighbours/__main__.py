"""`python -m tests.neighbours`: each neighbour in each embedded host, cached, full, and why.

Real runs of the counterparts, 9 evaluations, every third one full. `--hosts a1111` takes one host.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from bench.tables import markdown, row
from demo.webui.boot import boot
from tests import neighbours
from tests.driver import TRUSTED
from tests.hosts.test_compatibility import BESIDE
from tests.neighbours import forge

REQUEST = {"prompt": "a cat", "steps": 9, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
SETTINGS = {"enabled": True, "cache_interval": 3, "cache_branch_id": 1, "estimator": "copy"}

UNKNOWN = {
    "a hook on the middle block": neighbours.watched_middle,
    "blocks that count their calls": neighbours.counting_blocks,
}
"""Whom nobody calls harmless."""

ON_FORGE = {
    "Spectrum": forge.spectrum,
    "a forecaster that nobody knows": forge.forecaster_without_a_name,
    "MultiDiffusion": forge.forge_tiles,
    "LoRA on the fly": lambda host: forge.online_lora(host, 0.8),
}


def cases(name: str) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """Of one host: who, its context manager, what the request has besides, and whether the user trusts it."""
    yield "nobody", None, {}, True
    if name == "a1111":
        for who, (neighbour, changes) in BESIDE.items():
            yield who, neighbour, changes, True
        yield "latents that are rolled", neighbours.rolled, {}, True
    if name == "forge":
        for who, neighbour in ON_FORGE.items():
            yield who, neighbour, {"width": 128}, True
    for who, neighbour in UNKNOWN.items():
        yield who, neighbour, {}, False


def outcome(host: Any, neighbour: Any, changes: dict[str, Any], trusted: bool) -> tuple[str, str, str]:
    """Cached evaluations, full ones, and why those are more than planned."""
    found = (one.module for one in host.module("scripts").scripts_data if one.path.endswith("deepcache.py"))
    adapter = next(found).host
    adapter.trusted = TRUSTED if trusted else ()
    request = {**REQUEST, **changes, "alwayson_scripts": {"DeepCache": {"args": [SETTINGS]}}}
    if neighbour is None:
        host.txt2img(**request)
    else:
        with neighbour(host):
            host.txt2img(**request)
    run = adapter.last_run
    reports = [one.report for one in run.passes]
    why = [one.off for one in reports if one.off] + [f"{n}: {reason}" for one in reports for n, reason in one.reasons()]
    cached = sum(one.evaluations - one.full_evaluations for one in reports)
    return (
        str(cached),
        str(sum(one.full_evaluations for one in reports)),
        "; ".join(why or filter(None, [run.inactive])),
    )


def main() -> None:
    parser = argparse.ArgumentParser("tests.neighbours", description=__doc__)
    parser.add_argument("--hosts", default="a1111,forge,sdnext")
    warnings.simplefilter("ignore")
    print("\n".join(markdown(("neighbour", "host", "cached", "full", "why"))), flush=True)
    for name in parser.parse_args().hosts.split(","):
        with boot(model="tinyA", host=name) as host:
            logging.getLogger("deepcache").setLevel(logging.CRITICAL)
            host.txt2img(**REQUEST)
            for who, neighbour, changes, trusted in cases(name):
                print(row((who, name, *outcome(host, neighbour, changes, trusted))), flush=True)


if __name__ == "__main__":
    main()
