"""Run by the host at start-up. There is nothing to install; it says so if torch is too old."""

import importlib.metadata
import re

OLDEST = (2, 0)


def main() -> None:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        print(f"DeepCache needs torch {OLDEST[0]}.{OLDEST[1]} or newer and found {version}: it will not work.")


main()
