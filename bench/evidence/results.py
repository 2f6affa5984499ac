"""Finished pictures in a file of lines: what is there is not made again."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

Key = tuple[str, int, float, str, int, str]
"""Sampler, steps, guidance, arm, seed, prompt."""


def key_of(record: dict[str, Any]) -> Key:
    return (record["sampler"], record["steps"], record["guidance"], record["arm"], record["seed"], record["prompt"])


class Results:
    """Each record is one line, on the disk as soon as it is added; a line cut off by a crash is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._keys: set[Key] = set()
        text = self.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def read(self) -> str:
        """Take in what the file holds by now: other runs may write to it, too."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                self._note(json.loads(line))
            except ValueError:
                continue
        return text

    def _note(self, record: dict[str, Any]) -> None:
        if key_of(record) not in self._keys:
            self._keys.add(key_of(record))
            self.records.append(record)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, records: list[dict[str, Any]]) -> None:
        """All of one generation, in one go."""
        self._file.write("".join(json.dumps(record) + "\n" for record in records))
        self._file.flush()
        for record in records:
            self._note(record)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
