"""What the latest run did, as a small table in HTML."""

from __future__ import annotations

from html import escape

from ..report.pass_report import together
from ..report.run_report import PassOutcome, RunOutcome, reached

NOTHING = "Nothing has been made yet."


def table(run: RunOutcome | None) -> str:
    """A column for the first and for the hires pass, batches counted together; below it why calls ran in full."""
    if run is None:
        return _line(NOTHING)
    if run.error:
        return _line(f"{run.kind}: made without caching: {run.error}")
    if not run.settings.enabled:
        return _line(f"{run.kind}: DeepCache was off.")
    columns, notes = [], [run.calibrated] if run.calibrated else []
    notes += [f"not active: {run.inactive}"] if run.inactive else []
    for hires in (False, True):
        those = [one for one in run.passes if one.report.hires is hires]
        if those:
            columns.append(_column(those, hires))
            notes += _notes(those, hires)
    if not columns:
        return _line(f"{run.kind}: {f'not active: {run.inactive}' if run.inactive else 'no pass was to be cached'}.")
    rows = [
        one for one in zip((run.kind, *ROWS), *columns, strict=True) if one[0] != "mixed" or any(map(_some, one[1:]))
    ]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    said = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f"<table class='deepcache-table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (
        f"<ul class='deepcache-reasons'>{said}</ul>" if said else ""
    )


ROWS = ("evaluations", "full", "medium", "mixed", "cached", "UNet's speed-up, planned", "UNet's speed-up, reached")


def _some(cell: str) -> bool:
    return cell != "0"


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
    notes = [f"{which}{count} calls in full: {reason}" for count, reason in reasons]
    notes += [f"{which}off: {one.report.off}" for one in those if one.report.off]
    return notes + [f"{which}{one.planned.remark}" for one in those if one.planned.remark]


def _times(gain: float | None) -> str:
    return "not measured" if gain is None else f"{gain:.2f}x"


def _line(text: str) -> str:
    return f"<p class='deepcache-note'>{escape(text)}</p>"
