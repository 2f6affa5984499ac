"""`python -m tests.replay DIR`: a report line for each recording in DIR; exit code 1 when any fails."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from .recording import load
from .scenario import recordings, replay


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m tests.replay DIR [SCENARIO ...]", file=sys.stderr)
        return 2
    folder, wanted = Path(arguments[0]), arguments[1:]
    paths = [path for path in recordings(folder) if not wanted or path.stem in wanted]
    if not paths:
        print(f"no recordings in {folder}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # the UNets' libraries are old
    passed = 0
    for path in paths:
        try:
            outcome = replay(load(path))
        except Exception as error:
            print(f"{path.stem:<30} FAILED   the replay itself broke: {error!r}", flush=True)
            continue
        passed += not outcome.failures
        print(outcome.line(), flush=True)
        for failure in outcome.failures[:5]:
            print(f"    {failure}")
        if len(outcome.failures) > 5:
            print(f"    ... and {len(outcome.failures) - 5} more")
    print(f"{passed} passed, {len(paths) - passed} failed")
    return 0 if passed == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
