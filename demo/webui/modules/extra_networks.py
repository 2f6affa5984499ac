"""LoRA and the like. This host has none; the hook fires where the host would activate them."""

from __future__ import annotations

from typing import Any


def activate(p: Any, extra_network_data: dict) -> None:
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(
            p,
            batch_number=p.iteration,
            prompts=p.prompts,
            seeds=p.seeds,
            subseeds=p.subseeds,
            extra_network_data=extra_network_data,
        )
