"""From what the page's controls hold, or what a request says, to the plan of each pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..foresight import PassAhead, PlannedPass, planned
from ..settings import Settings, SettingsError, parse

Foresee = Callable[[Mapping[str, Any]], list[PassAhead]]
"""A host's: from values by the names of its API (`steps`, `sampler_name`, ...) to the passes they ask for. Raises
`SettingsError` for a value that cannot be used. An empty list: the host cannot tell.
"""


def passes_of(settings: Settings, values: Mapping[str, Any], foresee: Foresee) -> list[PlannedPass]:
    """The plan of each pass, as if enabled; none where it cannot be known before the run. Raises `SettingsError`."""
    passes = foresee(values)
    if settings.strategy == "weighted" and any(ahead.early for ahead in passes):
        return []
    return [planned(replace(settings, enabled=True), ahead) for ahead in passes]


def of_page(args: Sequence[Any], values: Mapping[str, Any], foresee: Foresee) -> tuple[list[PlannedPass], str]:
    """As `passes_of`, from the script's own arguments; what is wrong with them comes in words."""
    try:
        return passes_of(parse(args), values, foresee), ""
    except SettingsError as error:
        return [], str(error)
