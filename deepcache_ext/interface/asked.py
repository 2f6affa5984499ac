"""From what the page's controls hold, or what a request says, to the plan of each pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..measure.store import Profiles
from ..plan.preview import PassAhead, PlannedPass
from ..settings.fields import AS_FIRST_PASS_BRANCH, SettingsError
from ..settings.settings import Settings, parse

Foresee = Callable[[Mapping[str, Any]], list[PassAhead]]
"""A host's: from values by the names of its API (`steps`, `sampler_name`, ...) to the passes they ask for. Raises
`SettingsError` for a value that cannot be used. An empty list: the host cannot tell.
"""


def passes_of(
    settings: Settings, values: Mapping[str, Any], foresee: Foresee, profiles: Profiles | None = None
) -> list[PlannedPass]:
    """The plan of each pass, as if enabled; none where it cannot be known before the run. Raises `SettingsError`, for a
    branch too that the loaded model has not: with that the run would go uncached.
    """
    passes = foresee(values)
    own = replace(settings, enabled=True)
    if any(ahead.early and settings.for_pass(ahead.hires).strategy == "weighted" for ahead in passes):
        return []
    plans, known = [], profiles or Profiles()
    for ahead in passes:
        own, one = known.planned(own, ahead)  # as in a run, the hires pass has what became of the settings
        _check_branches(own, one)
        plans.append(one)
    return plans


def _check_branches(settings: Settings, one: PlannedPass) -> None:
    depth = one.ahead.depth
    if not depth or not one.plan.caches or max(one.plan.branches) < depth:
        return
    listed = settings.strategy == "custom" and "/" in settings.full_evaluations
    name = "full_evaluations" if listed else "deeper_branch_id"
    if min(one.plan.branches) >= depth:
        own = one.hires and settings.hires_cache_branch_id != AS_FIRST_PASS_BRANCH
        name = "hires_cache_branch_id" if own else "cache_branch_id"
    raise SettingsError(name, getattr(settings, name), f"the loaded model's branches are 0 to {depth - 1}")


def of_page(
    args: Sequence[Any], values: Mapping[str, Any], foresee: Foresee, profiles: Profiles | None = None
) -> tuple[list[PlannedPass], str]:
    """As `passes_of`, from the script's own arguments; what is wrong with them comes in words."""
    try:
        return passes_of(parse(args), values, foresee, profiles), ""
    except SettingsError as error:
        return [], str(error)
