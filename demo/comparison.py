"""The same picture with and without DeepCache, over HTTP: how long, how much of the UNet ran, how much it differs."""

from __future__ import annotations

import base64
import io
import json
import re
import statistics
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from deepcache_ext.report.psnr import psnr

# No proxy: the server is this process.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SHEET = Path(__file__).resolve().parent / "out" / "side_by_side.png"


class NotActive(RuntimeError):
    """The answer does not say that DeepCache ran."""


STEADY = 1.25
"""The ratios of pairs differ by no more than this on a machine that has nothing else to do. Chosen by hand."""


@dataclass
class Outcome:
    """`pairs`: seconds of whole pictures, without and with, made one after the other. `unet`: how many times faster the
    UNet was in each cached run, by its own times; empty where it was not timed. Evaluations of the cached run; PSNR in
    dB between the two pictures.
    """

    pairs: list[tuple[float, float]]
    unet: list[float]
    full: int
    evaluations: int
    psnr: float
    pictures: tuple[Image.Image, Image.Image]

    @property
    def plain_seconds(self) -> float:
        return statistics.median(plain for plain, _ in self.pairs)

    @property
    def cached_seconds(self) -> float:
        return statistics.median(cached for _, cached in self.pairs)

    @property
    def ratios(self) -> list[float]:
        return [plain / cached for plain, cached in self.pairs]

    @property
    def limit(self) -> float:
        """No speed-up is above it: there cached evaluations would take no time at all."""
        return self.evaluations / max(self.full, 1)

    @property
    def is_busy(self) -> bool:
        """Whether something else on this machine decided on the seconds of whole pictures."""
        return max(self.ratios) > min(min(self.ratios) * STEADY, self.limit)

    @property
    def speed_up(self) -> str:
        """By the UNet's own times, or else of the whole picture; "not measured" where it could be anything."""
        if self.unet:
            return f"{min(statistics.median(self.unet), self.limit):.2f}x of the UNet, by its own times"
        return "not measured" if self.is_busy else f"{statistics.median(self.ratios):.2f}x of the whole picture"

    def table(self) -> str:
        rows = [
            ("", "seconds", "full", "cached", "PSNR"),
            ("without DeepCache", f"{self.plain_seconds:.2f}", str(self.evaluations), "0", ""),
            (
                "with DeepCache",
                f"{self.cached_seconds:.2f}",
                str(self.full),
                str(self.evaluations - self.full),
                f"{self.psnr:.1f} dB",
            ),
        ]
        lines = [f"{a:<20}{b:>9}{c:>7}{d:>8}{e:>10}" for a, b, c, d, e in rows]
        if self.is_busy:
            lines.append("The machine was busy: the seconds of whole pictures do not compare.")
        summary = f"speed-up: {self.speed_up}  full: {self.full}/{self.evaluations}  PSNR: {self.psnr:.1f} dB"
        return "\n".join([*lines, summary])


def generate(url: str, request: dict[str, Any]) -> tuple[float, Image.Image, dict[str, Any]]:
    """Seconds, picture and `info` of one txt2img call."""
    body = json.dumps(request).encode()
    post = urllib.request.Request(f"{url}/sdapi/v1/txt2img", body, {"Content-Type": "application/json"})
    begun = time.perf_counter()
    try:
        with OPENER.open(post) as answer:
            received = answer.read()
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the host answered {error.code}: {error.read().decode(errors='replace')}") from error
    seconds = time.perf_counter() - begun
    known = json.loads(received)
    return seconds, Image.open(io.BytesIO(base64.b64decode(known["images"][0]))), json.loads(known["info"])


def unet_speed_up(url: str) -> list[float]:
    """What the extension's report says of the latest run's one pass; nothing where it was not timed."""
    with OPENER.open(f"{url}/deepcache/v1/report") as answer:
        passes = (json.loads(answer.read())["last_run"] or {}).get("passes", [])
    return [one["speed_up"] for one in passes if one["speed_up"] is not None]


def compare(url: str, request: dict[str, Any], deepcache: dict[str, Any], repeats: int = 3) -> Outcome:
    """Alternate the two, so that whatever else the machine does meets both; medians of `repeats`."""
    requests = {
        False: request,
        True: request | {"alwayson_scripts": {"DeepCache": {"args": [{"enabled": True, **deepcache}]}}},
    }
    for which in (False, True):  # warm up: the first calls allocate
        generate(url, requests[which] | {"steps": 4})
    pairs: list[tuple[float, float]] = []
    unet: list[float] = []
    pictures: dict[bool, Image.Image] = {}
    told: dict[str, Any] = {}
    for repeat in range(repeats):
        seconds: dict[bool, float] = {}
        for which in (False, True) if repeat % 2 == 0 else (True, False):
            seconds[which], pictures[which], info = generate(url, requests[which])
            words = "with" if which else "without"
            print(f"  pair {repeat + 1} of {repeats}, {words}: {seconds[which]:.2f} s", flush=True)
            if which:
                told = info["extra_generation_params"]
                unet += unet_speed_up(url)
        pairs.append((seconds[False], seconds[True]))
    counted = re.match(r"(\d+) of (\d+) full", str(told.get("DeepCache", "")))
    if not counted:
        raise NotActive(f"no count of full evaluations in the infotext: {told}")
    return Outcome(
        pairs,
        unet,
        int(counted[1]),
        int(counted[2]),
        psnr(pictures[False], pictures[True]),
        (pictures[False], pictures[True]),
    )


def side_by_side(outcome: Outcome, path: Path = SHEET) -> Path:
    """Both pictures with a line of text above each."""
    left, right = outcome.pictures
    head, gap = 24, 8
    sheet = Image.new("RGB", (left.width + gap + right.width, left.height + head), "white")
    draw = ImageDraw.Draw(sheet)
    for x, picture, text in (
        (0, left, f"without: {outcome.plain_seconds:.2f} s"),
        (left.width + gap, right, f"DeepCache: {outcome.cached_seconds:.2f} s, {outcome.psnr:.1f} dB"),
    ):
        draw.text((x + 4, 6), text, fill="black")
        sheet.paste(picture, (x, head))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
