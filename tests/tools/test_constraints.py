"""`make constraints`: what is written of what pip finds, and that the file fits the short lists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tools import constraints


def test_one_line_where_both_pythons_agree_else_one_each() -> None:
    text = constraints.merged({"a": "1", "b": "1", "old": "3"}, {"a": "1", "b": "2", "new": "4"})
    assert text.startswith(constraints.HEAD)
    assert text[len(constraints.HEAD) :].splitlines() == [
        "a==1",
        'b==1 ; python_version < "3.11"',
        'b==2 ; python_version >= "3.11"',
        'new==4 ; python_version >= "3.11"',
        'old==3 ; python_version < "3.11"',
    ]


def test_pips_report_is_read() -> None:
    found = [("Foo_Bar", "1.0"), ("torch", "2.13.0+cpu"), ("nvidia-cudnn-cu13", "9"), ("triton", "3")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in found]}
    assert constraints.pins_of(report) == {"foo-bar": "1.0", "torch": "2.13.0"}


def test_what_pip_cannot_resolve_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, str]:
        raise subprocess.CalledProcessError(1, ["python3.10"])

    file = tmp_path / "constraints.txt"
    file.write_text("as it was")
    monkeypatch.setattr(constraints, "FILE", file)
    monkeypatch.setattr(constraints, "resolved", fail)
    assert constraints.main([]) == 1
    assert "python3.10" in capsys.readouterr().err and file.read_text() == "as it was"


def pins(path: Path) -> set[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return {re.sub(r"\s+", " ", line) for line in lines if line}


def test_the_file_has_every_pin_of_the_lists() -> None:
    known = pins(constraints.FILE)
    names = [path.name for path in constraints.lists()]
    assert names == ["dev.txt", "host-a1111.txt", "peers.txt"]
    for path in constraints.lists():
        assert pins(path) <= known, path.name
