"""`make constraints`: requirements/constraints.txt from the short lists beside it, for Python 3.10 and 3.11.

pip resolves the lists with each Python, and installs nothing. What was pinned stays, as far as the lists allow; with
`--newest` everything becomes as new as they allow. Run `make test` on both Pythons before it is committed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
FILE = REQUIREMENTS / "constraints.txt"
VERSIONS = ("3.10", "3.11")
APART = ("constraints.txt", "no-deps.txt", "gradio-*.txt")
"""Not resolved together with the others."""
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")
"""What torch brings on Linux and pins itself."""
HEAD = """\
# Every package of the lists beside this file, and what they need, with the versions that were tried
# together. Two lines for a package whose newest release left Python 3.10 behind. The packages of
# no-deps.txt are pinned there; the CUDA packages that torch brings on Linux are pinned by torch itself.
# Written by `make constraints`.
"""
Pins = Mapping[str, str]


def lists(folder: Path = REQUIREMENTS) -> list[Path]:
    apart = {path for pattern in APART for path in folder.glob(pattern)}
    return sorted(path for path in folder.glob("*.txt") if path not in apart)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def resolved(python: str, kept: Path | None) -> dict[str, str]:
    """What pip would install for the lists; `kept`: constraints that hold on. Raises CalledProcessError."""
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--report", "-"]
    command += [part for path in lists() for part in ("-r", str(path))]
    command += ["-c", str(kept)] if kept else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    return pins_of(json.loads(done.stdout))


def pins_of(report: Mapping[str, list]) -> dict[str, str]:
    """Name and version, without the mark of a build ("+cpu"), of pip's report."""
    found = {normal(one["metadata"]["name"]): one["metadata"]["version"].split("+")[0] for one in report["install"]}
    return {name: version for name, version in found.items() if not OF_TORCH.match(name)}


def merged(old: Pins, new: Pins) -> str:
    """The file's text, of what Python 3.10 takes and of what 3.11 takes."""
    lines = []
    for name in sorted({*old, *new}):
        if old.get(name) == new.get(name):
            lines.append(f"{name}=={old[name]}")
            continue
        for pins, side in ((old, "<"), (new, ">=")):
            if name in pins:
                lines.append(f'{name}=={pins[name]} ; python_version {side} "{VERSIONS[1]}"')
    return HEAD + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.constraints", description=__doc__)
    parser.add_argument("--newest", action="store_true", help="as new as the lists allow; default: keep what is pinned")
    for version in VERSIONS:
        parser.add_argument(f"--python{version}", default=f"python{version}", help="default: %(default)s")
    options = vars(parser.parse_args(argv))
    try:
        found = [resolved(options[f"python{version}"], None if options["newest"] else FILE) for version in VERSIONS]
    except subprocess.CalledProcessError as error:
        print(f"pip found no versions that fit together: {error.cmd[0]} ended with {error.returncode}", file=sys.stderr)
        return 1
    FILE.write_text(merged(*found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
