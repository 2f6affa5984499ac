"""What is going on: one job at a time, its steps, and the wish to stop it."""

from __future__ import annotations

import time
from typing import Any


class State:
    """Read by progress bars and extensions, written by processing and samplers."""

    def __init__(self) -> None:
        self.server_start = time.time()
        self.time_start: float | None = None
        self.textinfo: str | None = None
        self.id_live_preview = 0
        self.current_image = None
        self._clear("")

    def _clear(self, job: str) -> None:
        self.job, self.job_no, self.job_count = job, 0, -1
        self.job_timestamp = time.strftime("%Y%m%d%H%M%S")
        self.sampling_step = self.sampling_steps = 0
        self.processing_has_refined_job_count = False
        self.skipped = self.interrupted = self.stopping_generation = False
        self.current_latent: Any = None

    def begin(self, job: str = "(unknown)") -> None:
        self._clear(job)
        self.time_start = time.time()

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def nextjob(self) -> None:
        self.job_no += 1
        self.sampling_step = 0

    def interrupt(self) -> None:
        self.interrupted = True

    def skip(self) -> None:
        self.skipped = True

    def stop_generating(self) -> None:
        self.stopping_generation = True

    def progress(self) -> float:
        """Done part of the job, 0 to 1: whole passes, and steps of the one that runs."""
        passes = max(self.job_count, 1)
        part = self.job_no / passes
        if self.sampling_steps:
            part += self.sampling_step / self.sampling_steps / passes
        return min(part, 1.0) if self.job else 0.0

    def dict(self) -> dict[str, Any]:
        names = (
            "skipped",
            "interrupted",
            "stopping_generation",
            "job",
            "job_count",
            "job_timestamp",
            "job_no",
            "sampling_step",
            "sampling_steps",
        )
        return {name: getattr(self, name) for name in names}
