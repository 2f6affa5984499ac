"""The plan of a run as HTML: one cell for each evaluation and a sentence, and the same in a few words for the head.

An evaluation is called a step, as users know it, unless the sampler makes more of them than there are steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..plan.preview import PlannedPass, fraction, speed_up_of

UNKNOWN = "The plan is made when the run begins. Last run says afterwards what came of it."
NOTHING = "No speed-up"


def strip(passes: Sequence[PlannedPass], problem: str = "", asked: Mapping[str, Any] | None = None) -> str:
    """A row of cells for each pass, dark for a full evaluation, half dark for a medium one, light for a
    cached one, and a sentence on what it should gain.

    `problem`: why there is no plan, in words; shown in its place. `asked`: the host's own controls, by the names of its
    API.
    """
    if problem or not passes:
        return f"<p class='deepcache-problem' role='status'>{escape(problem)}</p>" if problem else _note(UNKNOWN)
    names = ["Hires pass" if one.hires else "First pass" if len(passes) > 1 else "Plan" for one in passes]
    rows = [_pass(name, one, unit(one, asked or {})) for name, one in zip(names, passes, strict=True)]
    return f"<div class='deepcache-strip'>{''.join(rows)}</div>"


def header(passes: Sequence[PlannedPass]) -> str:
    """For instance `2.1x, 13 of 30 full`, with a hires pass counted in; "" without a plan."""
    if not passes:
        return ""
    gain, kinds = speed_up_of(passes), [kind for one in passes for kind in one.kinds]
    if set(kinds) <= {"full"}:
        return NOTHING.lower()
    return f"{'' if gain is None else f'{gain:.1f}x, '}{fraction(kinds)}"


def detail(passes: Sequence[PlannedPass]) -> str:
    """What a plan does beneath its sentence: which branches run, on what, and how much memory it takes."""
    said = []
    for one in passes:
        if not one.live_branches:
            continue
        name = "hires pass: " if one.hires else ""
        words = f"{name}branch {' and '.join(map(str, one.live_branches))}, {one.estimator.name}"
        kept = one.kept_bytes()
        if kept:
            words += f", keeps {kept / 2**20:.0f} MiB" if kept >= 2**20 else ", keeps less than 1 MiB"
        said.append(words)
    return _note(f"This plan: {'; '.join(said)}.") if said else ""


def unit(one: PlannedPass, asked: Mapping[str, Any]) -> str:
    """What its evaluations are called."""
    steps = (one.hires and asked.get("hr_second_pass_steps")) or asked.get("steps") or 0
    return "evaluations" if 0 < steps < one.ahead.evaluations else "steps"


def _sentence(one: PlannedPass, unit: str) -> str:
    kinds, gain = one.kinds, one.speed_up()
    full, medium = kinds.count("full"), kinds.count("medium")
    if full == len(kinds):
        return f"{NOTHING}: {one.remark or f'as things are set, all {full} {unit} run the full UNet'}."
    some = f", {medium} a medium part of it" if medium else ""
    faster = "" if gain is None else f": about {gain:.1f}x as fast"
    return f"{full} of {len(kinds)} {unit} run the full UNet{some}{faster}."


def _pass(name: str, one: PlannedPass, unit: str) -> str:
    kinds, words = one.kinds, _sentence(one, unit)
    nothing = words.startswith(NOTHING)
    boxes = "".join(
        f"<i class='{kind}' title='{k}: {kind}{'' if branch is None else f', branch {branch}'}'></i>"
        for k, (kind, branch) in enumerate(zip(kinds, one.branches, strict=True))
    )
    said = "" if nothing else one.remark or one.hint
    remark = f"<p class='deepcache-remark'>{escape(said[:1].upper() + said[1:])}.</p>" if said else ""
    return (
        f"<div class='deepcache-pass' data-full='{kinds.count('full')}' data-total='{len(kinds)}'>"
        f"<p{' class=deepcache-nothing role=status' if nothing else ''}><b>{name}</b> <span>{escape(words)}</span></p>"
        f"<div class='deepcache-cells' role='img' aria-label='{name}: {escape(words)}'>{boxes}</div>{remark}</div>"
    )


def _note(text: str) -> str:
    return f"<p class='deepcache-note'>{escape(text)}</p>"
