"""The embedded A1111 as it stands beside other extensions, and the picture that their tests ask it for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from demo.webui.boot import Host, boot
from tests.driver import TRUSTED

REQUEST = {"prompt": "a cat", "steps": 7, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
SETTINGS = {
    "enabled": True,
    "preset": "Custom",
    "cache_interval": 3,
    "cache_branch_id": 2,
    "estimator": "copy",
    "start": 0.0,
    "end": 1.0,
    "passes": "both",
    "hires_cache_interval": 0,
    "hires_cache_branch_id": -1,
}
ONE = {**SETTINGS, "cache_interval": 1}


@contextmanager
def running() -> Iterator[Host]:
    with boot(model="tinyA") as host:
        # As a user says it on the settings page: the counterparts of other extensions are the tests' own.
        host_module(host).trusted = TRUSTED
        yield host


def host_module(host: Host) -> Any:
    """Our adapter in it."""
    found = (one.module for one in host.module("scripts").scripts_data if one.path.endswith("deepcache.py"))
    return next(found).host


def make(host: Host, settings: dict[str, Any] | None = SETTINGS, **changes: Any) -> Any:
    scripts = {"alwayson_scripts": {"DeepCache": {"args": [settings]}}} if settings else {}
    return host.txt2img(**{**REQUEST, **changes, **scripts})
