"""What the latest run did, as a small table in HTML."""

from __future__ import annotations

from collections import Counter
from html import escape

from ..report.pass_report import PassReport, Reason
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
    rows = list(zip((run.kind, *ROWS), *columns, strict=True))
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    said = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f"<table class='deepcache-table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (
        f"<ul class='deepcache-reasons'>{said}</ul>" if said else ""
    )


ROWS = ("evaluations", "full", "deeper", "cached", "UNet's speed-up, planned", "UNet's speed-up, reached")


def _column(those: list[PassOutcome], hires: bool) -> list[str]:
    reports = [one.report for one in those]
    total, full = sum(r.evaluations for r in reports), sum(r.full_evaluations for r in reports)
    deeper = sum(r.deeper_evaluations for r in reports)
    name = "hires pass" if hires else "first pass"
    return [
        f"{len(those)} {name}es" if len(those) > 1 else name,
        str(total),
        str(full),
        str(deeper),
        str(total - full - deeper),
        _times(those[0].planned.speed_up()),
        _times(reached(_together(reports))),
    ]


def _notes(those: list[PassOutcome], hires: bool) -> list[str]:
    which = "hires pass: " if hires else ""
    misses: Counter[Reason] = sum((one.report.misses for one in those), Counter())
    notes = [f"{which}{count} calls in full: {reason.value}" for reason, count in misses.most_common()]
    notes += [f"{which}off: {one.report.off}" for one in those if one.report.off]
    return notes + [f"{which}{one.planned.remark}" for one in those if one.planned.remark]


def _together(reports: list[PassReport]) -> PassReport:
    return PassReport(
        full_calls=sum(r.full_calls for r in reports),
        cached_calls=sum(r.cached_calls for r in reports),
        deeper_calls=sum(r.deeper_calls for r in reports),
        deeper_seconds=[s for r in reports for s in r.deeper_seconds],
        full_seconds=[s for r in reports for s in r.full_seconds],
        cached_seconds=[s for r in reports for s in r.cached_seconds],
    )


def _times(gain: float | None) -> str:
    return "not measured" if gain is None else f"{gain:.2f}x"


def _line(text: str) -> str:
    return f"<p class='deepcache-note'>{escape(text)}</p>"
