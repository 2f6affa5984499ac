"""The host's settings page: what is global. Everything about a picture is in the accordion and in its infotext."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from .console import LEVELS

SECTION = ("deepcache", "DeepCache")
DISABLE = "deepcache_disable"
LOG_LEVEL = "deepcache_log_level"
TRUSTED = "deepcache_trusted"
AS_STARTED = "as started"
"""Of the log level: what `--deepcache-log-level` says."""


def add_options(shared: Any, changed: Callable[[], None]) -> None:
    """Add our options to `shared.opts`; `changed` is called whenever one of them is set."""
    for key, info in (
        (
            DISABLE,
            shared.OptionInfo(
                False,
                "Switch DeepCache off everywhere",
                section=SECTION,
                onchange=changed,
            ).info("whatever the accordion, a script or the API says; the same as --deepcache-disable"),
        ),
        (
            LOG_LEVEL,
            shared.OptionInfo(
                AS_STARTED,
                "What DeepCache says in the console",
                gr.Radio,
                {"choices": [AS_STARTED, *LEVELS]},
                section=SECTION,
                onchange=changed,
            ).info("INFO is a line for each pass with times and reasons; the same as --deepcache-log-level"),
        ),
        (
            TRUSTED,
            shared.OptionInfo(
                "",
                "Other extensions whose code in the UNet may be skipped",
                section=SECTION,
                onchange=changed,
            ).info(
                "names as DeepCache gives them when it steps aside, with commas between; only code that may be skipped"
            ),
        ),
    ):
        shared.opts.add_option(key, info)


def trusted(shared: Any) -> tuple[str, ...]:
    """Names of other people's code in the UNet that the user calls harmless."""
    return tuple(name.strip(" `") for name in str(_value(shared, TRUSTED) or "").split(",") if name.strip(" `"))


def switched_off(shared: Any) -> bool:
    """By the command line or on the settings page."""
    return bool(getattr(shared.cmd_opts, "deepcache_disable", False) or _value(shared, DISABLE))


def log_level(shared: Any) -> str:
    """As set on the settings page, or else by the command line."""
    level = _value(shared, LOG_LEVEL)
    return str(level) if level in LEVELS else str(getattr(shared.cmd_opts, "deepcache_log_level", "WARNING"))


def _value(shared: Any, key: str) -> Any:
    """Also before the options have been added, as with the API alone: the host has read its file of settings."""
    return getattr(shared.opts, "data", {}).get(key)
