"""A name that extensions import."""

from __future__ import annotations


class StableDiffusionModelHijack:
    comments: list[str]

    def __init__(self) -> None:
        self.comments = []
        self.extra_generation_params: dict = {}

    def clear_comments(self) -> None:
        self.comments.clear()
        self.extra_generation_params.clear()


model_hijack = StableDiffusionModelHijack()
