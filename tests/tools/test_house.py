"""`make house`: what it counts and what it says, of a small house and of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import house


@pytest.fixture
def small(tmp_path: Path) -> Path:
    plan = tmp_path / house.ENGINE / "plan"
    plan.mkdir(parents=True)
    long_class = ["class Long:", *["    x = 1"] * house.LIMITS["class"]]
    long_function = ["def long():", *["    x = 1"] * (house.LIMITS["function"] - 1)]
    lines = ["import numpy", "from ..settings import fields", *long_class, *long_function]
    (plan / "plan.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (plan / "__init__.py").write_text("", encoding="utf-8")
    return tmp_path


def test_rooms_are_counted(small: Path) -> None:
    (room,) = house.rooms(small)
    assert (room.name, room.lines, room.knows) == ("deepcache_ext/plan", 2 + 251 + 60, {"numpy", "settings"})
    assert [room.largest(kind) for kind in house.LIMITS] == ["plan.py 313", "Long 251", "long 60"]
    assert house.sizes([room]) == [["deepcache_ext/plan/", "2", "313", "plan.py 313", "Long 251", "long 60"]]


def test_what_is_a_line_too_long_is_named(small: Path) -> None:
    assert house.breaches(house.rooms(small)) == [
        "class deepcache_ext/plan/plan.py:Long: 251 lines, at most 250"  # the function has as many as it may
    ]


def test_the_engine_keeps_its_limits() -> None:
    assert not house.breaches([one for one in house.rooms() if one.name.startswith(house.ENGINE)])


def test_the_last_test_run_is_told(small: Path) -> None:
    assert house.test_time(small) == "not measured yet in this folder"
    (small / house.TEST_TIME).write_text("214 seconds on 2 cores, 812 passed, 2026-01-31\n", encoding="utf-8")
    assert house.test_time(small) == "214 seconds on 2 cores, 812 passed, 2026-01-31"


def test_a_broken_contract_is_told(small: Path) -> None:
    (small / house.ENGINE / "__init__.py").write_text("import json\n", encoding="utf-8")
    (small / "pyproject.toml").write_text(
        f"""[tool.importlinter]
root_package = "{house.ENGINE}"
include_external_packages = true
""",
        encoding="utf-8",
    )
    contract = """[[tool.importlinter.contracts]]
name = "{}"
type = "forbidden"
source_modules = ["deepcache_ext"]
forbidden_modules = ["{}"]
"""
    with (small / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(contract.format("No JSON", "json") + contract.format("No CSV", "csv"))
    told = house.contracts(small)
    assert told[:2] == ["No JSON BROKEN", "No CSV KEPT"]
    assert any("deepcache_ext -> json" in line for line in told[2:])


def test_the_page_takes_the_house_between_its_marks() -> None:
    first, last = house.MARKS
    assert house.written(f"a\n{first}\nold\n{last}\nb", ["new"]) == f"a\n{first}\n\nnew\n\n{last}\nb"
    with pytest.raises(ValueError, match="no place"):
        house.written("a", ["new"])


def test_all_rooms_are_known() -> None:
    assert {path.parent.name for path in (house.ROOT / house.ENGINE).glob("*/__init__.py")} == set(house.ROOMS)
    folders = {path.name for path in house.ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == {house.ENGINE, *house.AROUND}
