"""docs/speed.md and docs/speed.json from what `bench.architectures` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from .calls import BY_HAND, HOOKED, PLAIN
from .cases import ON_CPU, ON_GPU, TINY, Case, reported
from .loops import Setting, compose, helpers
from .tables import markdown
from .timing import Ratio
from .twin_calls import OURS, PUBLISHED

SHARE_TARGET, FLOP_TARGET = 0.97, 0.90
LEAST_ROUNDS = 4
"""Below it a bootstrap knows too little of the noise: no interval is shown and no verdict is certain."""
TARGETED = ((3, 0), (5, 0))
"""Interval and branch of the settings that the targets speak of."""


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a setting of one case: the speed-ups of a loop, with their intervals."""
    case = case_named(found["case"])
    ours = found.get("webui") or found["twin"]
    names = (HOOKED, "copy") if "webui" in found else (OURS, OURS)
    rows = []
    for setting in case.architecture.settings:
        branch = str(setting.branch)
        loop = compose(setting, ours["full"], ours["cached"][branch], names, PLAIN, BY_HAND)
        twin = found["twin"]
        flops = found["flops"]
        others = reported(case, setting.interval, setting.branch)
        rows.append(
            {
                "case": found["case"],
                "setting": asdict(setting),
                "dtype": found["dtype"],
                "device": found["machine"]["device"],
                "gain": loop.gain,
                "by_hand": loop.by_hand,
                "share": loop.share,
                "helper": helpers(setting, twin["full"], twin["cached"][branch], PUBLISHED, PLAIN),
                "limit": setting.gain(flops["full"], flops["full"], flops["live"][branch]),
                "plain_seconds": median(ours["full"][PLAIN]),
                "cached_seconds": median(ours["cached"][branch][names[1]]),
                "kept_bytes": ours["kept_bytes"][branch],
                "memory": ours["memory"],
                "reported": None if others is None else {**asdict(others[0]), "same_size": others[1]},
            }
        )
    return rows


def case_named(name: str) -> Case:
    return next(case for case in (*ON_GPU, *ON_CPU, TINY) if case.name == name)


def write(work: Path, docs: Path) -> str:
    """Write both files from all cases in `work`; returns the text of the first."""
    order = [case.name for case in (*ON_GPU, *ON_CPU)]
    cases = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(work.glob("*.json"))]
    cases.sort(key=lambda found: (found["machine"]["device"], order.index(found["case"])))
    rows = [row for found in cases for row in rows_of(found)]
    text = report(cases, rows)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "speed.md").write_text(text, encoding="utf-8")
    figures = {"rows": rows, "cases": cases}
    plain = json.dumps(figures, indent=1, default=lambda ratio: ratio.as_json())
    (docs / "speed.json").write_text(plain + "\n", encoding="utf-8")
    return text


def report(cases: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    machines = sorted(
        {
            f"{m['name']} ({m['device']}), {m['threads']} thread{'s' * (m['threads'] != 1)}, torch {m['torch']}"
            for m in (found["machine"] for found in cases)
        }
    )
    doubts = [f"- {found['case']}: {doubt}" for found in cases for doubt in found["doubts"]]
    on_gpu = any(found["machine"]["device"] == "cuda" for found in cases)
    parts = [
        "# Speed on the architectures at full size",
        "For whoever wants to know what a full and a cached call take, and how near that is to what is possible."
        + ("" if on_gpu else " **No GPU was measured yet**: `make gpu` does it in at most nine minutes, on one card."),
        "Written by `python -m bench.architectures`. The published architectures with random weights: no time depends "
        "on what a UNet has learned. The loops are not run as a whole: their speed-ups are put together from the "
        "medians of full and cached calls that took turns in one process; in brackets the 95 % interval, a bootstrap "
        "over the rounds. On a CPU it is processor time on one thread, for the machine did other work meanwhile; on a "
        "GPU the device's own time. Text encoders, the sampler and the decoder are not in these figures.",
        "- *ours*: in the WebUI's layouts (ldm, sgm) through a session; nets that only diffusers has through its "
        "`DeepCache` interface. Estimator: copy.\n"
        "- *by hand allows*: the speed-up with a forward of the live blocks written out by hand at cached evaluations, "
        "and uncached calls at the others. *share*: ours as a part of it; target 97 % at interval 3 and 5, branch 0.\n"
        "- *FLOPs allow*: counted by torch, attention included; target 90 % of it on a CPU. No strict limit: the deep "
        "blocks, which have most of the weights, can run at a lower rate than the live ones.\n"
        "- *helper*: DeepCacheSDHelper 0.1.1 on the diffusers UNet of the same size, over that UNet's uncached calls.\n"
        "- *reported*: what the method's authors give, on their GPUs: a CPU's ratio is no repetition of it.",
        "Machine: " + "; ".join(machines) + "." + _load(cases),
        "## Speed-up of the loop",
        *speed_table(rows),
        "## Targets",
        "\n".join(targets(rows)),
        "## Calls and memory",
        *_calls_table(cases, rows),
        "Peak: the GPU's allocated memory, or on a CPU the whole process with its weights, of one uncached call and "
        "of a full and a cached one of ours. Kept: one copied feature.",
    ]
    if not rows:
        parts.append("Nothing has been measured yet.")
    elif doubts:
        parts += ["## Do not trust", "\n".join(doubts)]
    else:
        parts.append("Checked: every call ran as it was meant to, and gave what the forwards by hand give.")
    parts += ["## Not run here", "\n".join(_missing(cases))]
    return "\n\n".join(parts) + "\n"


def _load(cases: Sequence[Mapping[str, Any]]) -> str:
    """On a CPU, what else the machine did."""
    loads = [f["machine"]["load"] for f in cases if f["machine"]["device"] == "cpu"]
    if not loads:
        return ""
    cores = max(f["machine"]["cpus"] for f in cases)
    return (
        f" Its load was {min(loads):.0f} to {max(loads):.0f} on {cores} cores. Where there were fewer than "
        f"{LEAST_ROUNDS} rounds (see the last table), no interval is shown. A share above 100 % is noise: our full "
        "call does the same work as an uncached one and copies a feature."
    )


def _missing(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    done = {(found["case"], found["machine"]["device"]) for found in cases}
    lines = []
    for device, all_of_them in (("cuda", ON_GPU), ("cpu", ON_CPU)):
        left = [case.name for case in all_of_them if (case.name, device) not in done]
        if left:
            some = " (no GPU was at hand)" if device == "cuda" and len(left) == len(ON_GPU) else ""
            lines.append(f"- {device}{some}: {', '.join(left)}")
    return lines or ["nothing"]


def title(case: Case) -> str:
    frames = f", {case.frames} frames" if case.frames > 1 else ""
    return f"{case.architecture.title} {case.height}x{case.width}, {case.pictures}{frames}"


def times(found: Ratio) -> str:
    if found.samples < LEAST_ROUNDS:
        return f"{found.value:.2f}x"
    return f"{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}]"


def percent(found: Ratio) -> str:
    if found.samples < LEAST_ROUNDS:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _setting(row: Mapping[str, Any]) -> str:
    setting = Setting(**row["setting"])
    return f"{setting.steps}, I={setting.interval} b={setting.branch}"


def speed_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = (
        "pixels, pictures",
        "device",
        "steps, setting",
        "ours",
        "by hand allows",
        "share",
        "FLOPs allow",
        "of it",
        "helper",
        "reported",
    )
    lines = []
    for row in rows:
        share, gain, known = row["share"], row["gain"], row["reported"]
        others = "" if known is None else f"{known['speed_up']:.2f}x ({known['where']})"
        lines.append(
            (
                title(case_named(row["case"])),
                f"{row['device']}, {row['dtype']}",
                _setting(row),
                times(gain),
                times(row["by_hand"]),
                percent(share),
                f"{row['limit']:.2f}x",
                f"{gain.value / row['limit']:.0%}",
                times(row["helper"]),
                others,
            )
        )
    return ["\n".join(markdown(head, lines))]


def targets(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each target beside what was measured, with a word on whether the interval would allow the other verdict."""
    lines = []
    for row in rows:
        setting, name = row["setting"], f"{title(case_named(row['case']))}, {row['device']}, {_setting(row)}"
        share, gain, known = row["share"], row["gain"], row["reported"]
        if (setting["interval"], setting["branch"]) in TARGETED:
            lines.append(f"- {name}: at least 97 % of what calls by hand allow: {_verdict(share, SHARE_TARGET)}")
            if row["device"] == "cpu":
                part = Ratio(*(x / row["limit"] for x in (gain.value, gain.low, gain.high)), gain.samples)
                lines.append(f"- {name}: at least 90 % of what FLOPs allow: {_verdict(part, FLOP_TARGET)}")
        if known is not None:
            what = f"{known['speed_up']:.2f}x" + ("" if known["same_size"] else f" (of {known['where']})")
            met = "not below it" if gain.value >= known["speed_up"] else "below it"
            met += ", on another device" if row["device"] == "cpu" else ""
            lines.append(f"- {name}: reported {what}: {gain.value:.2f}x, {met}")
    return lines


def _verdict(found: Ratio, target: float) -> str:
    unsure = " (not certain: see the interval)" if found.low < target <= found.high else ""
    if found.samples < LEAST_ROUNDS:
        unsure = f" (not certain: {found.samples} rounds)"
    return f"{found.value:.1%}, {'reached' if found.value >= target else 'missed'}{unsure}"


def _calls_table(cases: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = (
        "pixels, pictures",
        "device",
        "branch",
        "uncached s",
        "cached s",
        "ratio of FLOPs",
        "rounds full, cached",
        "peak uncached, ours GiB",
        "kept MiB",
    )
    lines = []
    for found in cases:
        ours, flops = found.get("webui") or found["twin"], found["flops"]
        for branch, live in flops["live"].items():
            row = next(
                r
                for r in rows
                if r["case"] == found["case"]
                and r["device"] == found["machine"]["device"]
                and str(r["setting"]["branch"]) == branch
            )
            peaks = ", ".join("–" if p is None else f"{p / 2**30:.2f}" for p in ours["memory"].values())
            counts = f"{len(ours['full'][PLAIN])}, {len(ours['cached'][branch][BY_HAND])}"
            lines.append(
                (
                    title(case_named(found["case"])),
                    f"{row['device']}, {found['dtype']}",
                    branch,
                    f"{row['plain_seconds']:.4g}",
                    f"{row['cached_seconds']:.4g}",
                    f"{live / flops['full']:.3f}",
                    counts,
                    peaks,
                    f"{row['kept_bytes'] / 2**20:.1f}",
                )
            )
    return ["\n".join(markdown(head, lines))]
