"""The same picture with and without DeepCache, over HTTP: how long, how much of the U-Net ran, how much it differs."""

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

OUT = Path(__file__).resolve().parent / "out"


class NotActive(RuntimeError):
    """The answer does not say that DeepCache ran."""


@dataclass
class Outcome:
    """Medians in seconds; evaluations of the cached run; PSNR in dB between the two pictures."""

    plain_seconds: float
    cached_seconds: float
    full: int
    evaluations: int
    psnr: float
    pictures: tuple[Image.Image, Image.Image]

    @property
    def speed_up(self) -> float:
        return self.plain_seconds / self.cached_seconds

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
        summary = f"speed-up: {self.speed_up:.2f}x  full: {self.full}/{self.evaluations}  PSNR: {self.psnr:.1f} dB"
        return "\n".join([*lines, summary])


def generate(url: str, request: dict[str, Any]) -> tuple[float, Image.Image, dict[str, Any]]:
    """Seconds, picture and `info` of one txt2img call."""
    body = json.dumps(request).encode()
    post = urllib.request.Request(f"{url}/sdapi/v1/txt2img", body, {"Content-Type": "application/json"})
    # No proxy: the server is this process.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    begun = time.perf_counter()
    try:
        with opener.open(post) as answer:
            received = answer.read()
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the host answered {error.code}: {error.read().decode(errors='replace')}") from error
    seconds = time.perf_counter() - begun
    known = json.loads(received)
    return seconds, Image.open(io.BytesIO(base64.b64decode(known["images"][0]))), json.loads(known["info"])


def compare(url: str, request: dict[str, Any], deepcache: dict[str, Any], repeats: int = 3) -> Outcome:
    """Alternate the two, so that whatever else the machine does meets both; medians of `repeats`."""
    requests = {
        False: request,
        True: request | {"alwayson_scripts": {"DeepCache": {"args": [{"enabled": True, **deepcache}]}}},
    }
    for which in (False, True):  # warm up: the first calls allocate
        generate(url, requests[which] | {"steps": 4})
    seconds: dict[bool, list[float]] = {False: [], True: []}
    pictures: dict[bool, Image.Image] = {}
    told: dict[str, Any] = {}
    for repeat in range(repeats):
        for which in (False, True) if repeat % 2 == 0 else (True, False):
            took, pictures[which], info = generate(url, requests[which])
            seconds[which].append(took)
            print(f"  pair {repeat + 1} of {repeats}, {'with' if which else 'without'}: {took:.2f} s", flush=True)
            if which:
                told = info["extra_generation_params"]
    counted = re.match(r"(\d+) of (\d+) full", str(told.get("DeepCache", "")))
    if not counted:
        raise NotActive(f"no count of full evaluations in the infotext: {told}")
    return Outcome(
        statistics.median(seconds[False]),
        statistics.median(seconds[True]),
        int(counted[1]),
        int(counted[2]),
        psnr(pictures[False], pictures[True]),
        (pictures[False], pictures[True]),
    )


def side_by_side(outcome: Outcome, path: Path = OUT / "side_by_side.png") -> Path:
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
