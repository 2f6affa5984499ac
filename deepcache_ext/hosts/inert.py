"""What stands for an adapter on a host that is not known, or that lacks what its adapter needs: it caches nothing, and
says so wherever caching is asked for. Imports nothing of any host.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..measure.store import Profiles
from ..plan.preview import PassAhead
from ..report.run_report import RunOutcome
from ..settings.fields import SettingsError
from ..settings.settings import Settings, parse
from .generations import kind_of

log = logging.getLogger("deepcache")


class Inert:
    """Has what an `Adapter` has for the script. `inactive`: why nothing is cached, in words."""

    def __init__(
        self, inactive: str, profiles: Profiles, pastes_updates_only: bool = False, hides_ticks: bool = False
    ) -> None:
        self.inactive, self.profiles, self.pastes_updates_only = inactive, profiles, pastes_updates_only
        self.hides_ticks = hides_ticks
        self.disabled = False
        self.trusted: Collection[str] = ()
        self.last_run: RunOutcome | None = None

    def before_process(self, p: Any, args: Sequence[Any]) -> None:
        try:
            settings = parse(args)
        except SettingsError:
            settings = Settings(enabled=False)
        self.last_run = RunOutcome(kind_of(p), settings, inactive=self.inactive)
        if settings.enabled and not self.disabled:
            log.warning("not active: %s", self.inactive)
            p.extra_generation_params["DeepCache"] = f"not active: {self.inactive}"

    def foresee(self, values: Mapping[str, Any]) -> list[PassAhead]:
        return []

    def branches(self) -> int:
        return 0

    def refused(self) -> str:
        return ""  # `inactive` says it

    def measure(self, p: Any, args: Sequence[Any], asked: Any) -> None:
        """There is nothing to measure."""

    def before_sampling(self, p: Any, args: Sequence[Any]) -> None:
        """There is nothing to begin."""

    def nothing(self, *_: Any) -> None:
        """There is nothing to end, to drop or to take off."""

    after_sampling = after_batch = after_process = nothing
    on_cfg_denoiser = on_cfg_after_cfg = on_model_loaded = on_script_unloaded = nothing
