"""Prompts as conditioning: AND, [from:to:when], and the tensors for a step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_EDIT = re.compile(r"\[([^\[\]:]*):([^\[\]:]*):([0-9.]+)\]")
_WEIGHT = re.compile(r"^(.*?)\s*(?::\s*([-+]?[0-9.]+))?\s*$", re.DOTALL)


class SdConditioning(list):
    """Prompts that know the picture's size, for SDXL."""

    def __init__(self, prompts: Sequence[str], width: int = 0, height: int = 0) -> None:
        super().__init__(prompts)
        self.width, self.height = width, height


class DictWithShape(dict):
    """SDXL's conditioning; its shape is that of the text."""

    @property
    def shape(self) -> torch.Size:
        return self["crossattn"].shape


@dataclass
class ScheduledPromptConditioning:
    end_at_step: int
    cond: Any


@dataclass
class ComposableScheduledPromptConditioning:
    schedules: list[ScheduledPromptConditioning]
    weight: float = 1.0


@dataclass
class MulticondLearnedConditioning:
    shape: tuple
    batch: list[list[ComposableScheduledPromptConditioning]]


def schedule(prompt: str, steps: int) -> list[tuple[int, str]]:
    """[(last step, text)...]: `[a:b:0.5]` is a until half of the steps, then b."""

    def switch(match: re.Match) -> int:
        when = float(match[3])
        return int(when * steps if when < 1 else when)

    ends = sorted({min(switch(m), steps) for m in _EDIT.finditer(prompt)} | {steps})
    return [(end, _EDIT.sub(lambda m, end=end: m[1] if end <= switch(m) else m[2], prompt)) for end in ends if end]


def get_learned_conditioning(model: Any, prompts: SdConditioning, steps: int) -> list:
    """For each prompt its schedule of tensors [tokens, width]."""
    made: dict[str, list] = {}
    for prompt in prompts:
        if prompt not in made:
            texts = schedule(prompt, steps)
            conds = model.get_learned_conditioning([text for _, text in texts], prompts.width, prompts.height)
            made[prompt] = [ScheduledPromptConditioning(end, conds[i]) for i, (end, _) in enumerate(texts)]
    return [made[prompt] for prompt in prompts]


def get_multicond_learned_conditioning(model: Any, prompts: SdConditioning, steps: int) -> MulticondLearnedConditioning:
    """For each prompt its parts (joined by AND), each with a weight and a schedule."""
    batch = []
    for prompt in prompts:
        parts = [_WEIGHT.match(part) for part in re.split(r"\bAND\b", prompt)]
        texts = SdConditioning([part[1].strip() for part in parts], prompts.width, prompts.height)
        learned = get_learned_conditioning(model, texts, steps)
        weights = [float(part[2]) if part[2] else 1.0 for part in parts]
        batch.append([ComposableScheduledPromptConditioning(*pair) for pair in zip(learned, weights, strict=True)])
    return MulticondLearnedConditioning((len(prompts),), batch)


def _at(schedules: list[ScheduledPromptConditioning], step: int) -> Any:
    return next((entry.cond for entry in schedules if step <= entry.end_at_step), schedules[-1].cond)


def _stack(conds: list[Any]) -> Any:
    if isinstance(conds[0], dict):
        return DictWithShape({key: _stack([cond[key] for cond in conds]) for key in conds[0]})
    # Shorter texts are drawn out by their last token.
    longest = max(cond.shape[0] for cond in conds)
    if conds[0].dim() == 2:
        conds = [torch.vstack([cond, cond[-1:].repeat(longest - cond.shape[0], 1)]) for cond in conds]
    return torch.stack(conds)


def reconstruct_cond_batch(c: list, current_step: int) -> Any:
    """[B, tokens, width] for a step (or a dict of tensors for SDXL)."""
    return _stack([_at(schedules, current_step) for schedules in c])


def reconstruct_multicond_batch(c: MulticondLearnedConditioning, current_step: int) -> tuple[list, Any]:
    """For each picture [(row, weight)...], and the rows [all parts, tokens, width]."""
    rows: list[Any] = []
    index = []
    for parts in c.batch:
        index.append([(len(rows) + i, part.weight) for i, part in enumerate(parts)])
        rows += [_at(part.schedules, current_step) for part in parts]
    return index, _stack(rows)
