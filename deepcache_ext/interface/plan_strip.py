"""The plan of a run as HTML: one cell for each evaluation, and the same in a few words for the accordion's head."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..plan.preview import PlannedPass, fraction, speed_up_of

UNKNOWN = "The plan is made when the run begins: before that, steps, sampler or checkpoint are not known here."


def strip(passes: Sequence[PlannedPass], problem: str = "") -> str:
    """A row of cells for each pass, dark for a full evaluation, half dark for a medium one, light for a
    cached one, and what it should gain.

    `problem`: why there is no plan, in words; shown in its place.
    """
    if problem or not passes:
        return f"<p class='deepcache-problem' role='status'>{escape(problem or UNKNOWN)}</p>"
    names = ["Hires pass" if one.hires else "First pass" if len(passes) > 1 else "Plan" for one in passes]
    return f"<div class='deepcache-strip'>{''.join(map(_pass, names, passes))}</div>"


def header(passes: Sequence[PlannedPass]) -> str:
    """For instance `2.0x, 13 of 30 full`, with a hires pass counted in; "" without a plan."""
    if not passes:
        return ""
    gain, kinds = speed_up_of(passes), [kind for one in passes for kind in one.kinds]
    return f"{'' if gain is None else f'{gain:.1f}x, '}{fraction(kinds)}"


def _pass(name: str, one: PlannedPass) -> str:
    kinds, branches, gain = one.kinds, one.branches, one.speed_up()
    words = one.fraction + ("" if gain is None else f", UNet about {gain:.1f}x as fast")
    if one.live_branches:
        words += f", branch {' and '.join(map(str, one.live_branches))}, {one.estimator.name}"
    kept = one.kept_bytes()
    if kept:
        words += f", keeps {kept / 2**20:.0f} MiB" if kept >= 2**20 else ", keeps less than 1 MiB"
    full = kinds.count("full")
    boxes = "".join(
        f"<i class='{kind}' title='{k}: {kind}{'' if branch is None else f', branch {branch}'}'></i>"
        for k, (kind, branch) in enumerate(zip(kinds, branches, strict=True))
    )
    said = one.remark or one.hint
    remark = f"<p class='deepcache-remark'>{escape(said)}</p>" if said else ""
    return (
        f"<div class='deepcache-pass' data-full='{full}' data-total='{len(kinds)}'>"
        f"<p><b>{name}</b> <span>{escape(words)}</span></p>"
        f"<div class='deepcache-cells' role='img' aria-label='{name}: {escape(words)}'>{boxes}</div>{remark}</div>"
    )
