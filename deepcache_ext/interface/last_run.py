"""What the latest run did: in a line, and as a small table in HTML."""

from __future__ import annotations

from html import escape

from ..plan.preview import fraction
from ..report.pass_report import Reason, together
from ..report.run_report import PassOutcome, RunOutcome, reached, spent

NOTHING = "Nothing has been made yet."
TRUST = "If you know that it is harmless, you can say so on the settings page, under DeepCache"


def line(run: RunOutcome | None) -> str:
    """What was saved, by the UNet's own times; or that nothing was, and why."""
    if run is None:
        return ""
    said, gained = verdict(run)
    kind = "note" if gained or not (run.settings.enabled or run.error) else "nothing"
    return f"<p class='deepcache-{kind}' role='status'><b>Last run</b> {escape(said)}.</p>"


def verdict(run: RunOutcome) -> tuple[str, bool]:
    """The same as plain text, and whether there was anything to gain."""
    if run.error:
        return f"made without caching: {run.error}", False
    if not run.settings.enabled:
        return "DeepCache was off", False
    kinds = [kind for one in run.passes for kind in one.report.kinds]
    if set(kinds) <= {"full"}:
        return f"No speed-up: {_why_none(run)}", False
    told, times = fraction(kinds), [spent(one.report) for one in run.passes]
    less = sum(one.report.full_evaluations > one.report.planned_full for one in run.passes) and _most_frequent(run)
    less = f"; less than planned: {less}" if less else ""
    if None in times:
        return f"{told}; how long it took was not measured{less}", True
    took, instead = (sum(pair[k] for pair in times if pair is not None) for k in (0, 1))
    digits = 1 if min(took, instead) >= 1 else 2
    saved = f"{took:.{digits}f} s instead of {instead:.{digits}f} s by the UNet's own times, {told}"
    return (f"{saved}{less}", True) if took < instead else (f"No time saved: {saved}{less}", False)


def _why_none(run: RunOutcome) -> str:
    off = next((one.report.off for one in run.passes if one.report.off), "")
    remark = next((one.planned.remark for one in run.passes if one.planned.remark), "")
    nothing = "as things were set, the full UNet ran at every step" if run.passes else "no pass was to be cached"
    return run.inactive or _with_advice(off) or _most_frequent(run) or remark or nothing


def _with_advice(why: str) -> str:
    """What is in backticks is another extension's code, as the settings page takes it."""
    return f"{why}. {TRUST}" if "`" in why else why


def _most_frequent(run: RunOutcome) -> str:
    """Why calls ran in full."""
    whole = together([one.report for one in run.passes])
    if not whole.misses:
        return ""
    why = whole.reasons()[0][1]
    return f"{why}. {TRUST}" if whole.misses.most_common(1)[0][0] is Reason.PATCHED else why


def table(run: RunOutcome | None) -> str:
    """A column for the first and for the hires pass, batches counted together; below it why calls ran in full."""
    if run is None:
        return _line(NOTHING)
    if run.error:
        return _line(f"{run.kind}: made without caching: {run.error}")
    if not run.settings.enabled:
        return _line(f"{run.kind}: DeepCache was off.")
    columns, notes = [], [run.measured] if run.measured else []
    notes += [f"not active: {run.inactive}"] if run.inactive else []
    for hires in (False, True):
        those = [one for one in run.passes if one.report.hires is hires]
        if those:
            columns.append(_column(those, hires))
            notes += _notes(those, hires)
    if not columns:
        return _line(f"{run.kind}: {f'not active: {run.inactive}' if run.inactive else 'no pass was to be cached'}.")
    rows = [
        row
        for row in zip((f"Last run, {run.kind}", *ROWS), *columns, strict=True)
        if row[0] not in SOMETIMES or any(cell != "0" for cell in row[1:])
    ]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    said = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f"<table class='deepcache-table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (
        f"<ul class='deepcache-reasons'>{said}</ul>" if said else ""
    )


ROWS = ("steps", "full", "medium", "mixed", "cached", "UNet's speed-up, planned", "UNet's speed-up, reached")


SOMETIMES = ("medium", "mixed")
"""Rows that are left out where nothing was."""


def _column(those: list[PassOutcome], hires: bool) -> list[str]:
    whole = together([one.report for one in those])
    name = "hires pass" if hires else "first pass"
    counts = (
        whole.evaluations,
        whole.full_evaluations,
        whole.medium_evaluations,
        whole.mixed_evaluations,
        whole.cached_evaluations,
    )
    return [
        f"{len(those)} {name}es" if len(those) > 1 else name,
        *map(str, counts),
        _times(those[0].planned.speed_up()),
        _times(reached(whole)),
    ]


def _notes(those: list[PassOutcome], hires: bool) -> list[str]:
    which = "hires pass: " if hires else ""
    reasons = together([one.report for one in those]).reasons()
    notes = [f"{which}{count} calls of the UNet in full: {reason}" for count, reason in reasons]
    notes += [f"{which}off: {one.report.off}" for one in those if one.report.off]
    return notes + [f"{which}{one.planned.remark}" for one in those if one.planned.remark]


def _times(gain: float | None) -> str:
    return "not measured" if gain is None else f"{gain:.2f}x"


def _line(text: str) -> str:
    return f"<p class='deepcache-note'>{escape(text)}</p>"
