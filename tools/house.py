"""`make house`: the rooms with their sizes, what breaks a limit, the import contracts, and the last `make test`.

With `--write` the short form goes into CONTRIBUTING.md too, between its marks. Always ends well: `make lint` and the
tests are what a change must pass.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.tables import columns, markdown

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "deepcache_ext"
ROOMS = ("settings", "unet", "plan", "report", "session", "measure", "python", "interface", "hosts")
"""Of the engine, each after all that it may know."""
AROUND = ("scripts", "demo", "bench", "research", "train", "tests", "tools")
LIMITS = {"module": 350, "class": 250, "function": 60}
"""Lines, with docstrings and blank ones; of a function without its docstring, which may tell of many arguments. Files
of tests may be longer: nobody reads them from top to bottom.
"""
TEST_TIME = ".test-time"
"""Written at the end of `make test`: one line, such as `214 seconds on 2 cores, 812 passed, 2026-01-31`."""
PAGE = "CONTRIBUTING.md"
MARKS = ("<!-- house: make house ARGS=--write -->", "<!-- end of house -->")


@dataclass(frozen=True)
class Part:
    """A module, class or function: `where` is its file, with its name behind it; of `lines` lines."""

    kind: str
    where: str
    lines: int

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2].rpartition(":")[2]

    @property
    def is_too_long(self) -> bool:
        return self.lines > LIMITS[self.kind] and not (self.kind == "module" and self.where.startswith("tests/"))


@dataclass
class Room:
    """A folder of modules. `knows`: the rooms and the larger packages that it imports."""

    name: str
    parts: list[Part] = field(default_factory=list)
    knows: set[str] = field(default_factory=set)

    def of(self, kind: str) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]

    def largest(self, kind: str) -> str:
        """Its name and lines, "" where there is none."""
        found = max(self.of(kind), key=lambda part: part.lines, default=None)
        return f"{found.name} {found.lines}" if found else ""

    @property
    def lines(self) -> int:
        return sum(part.lines for part in self.of("module"))


def rooms(root: Path = ROOT) -> list[Room]:
    """Those of the engine, what lies in its own folder first, and then those around it."""
    found = [room(ENGINE, (root / ENGINE).glob("*.py"), root)]
    found += [room(f"{ENGINE}/{name}", (root / ENGINE / name).rglob("*.py"), root) for name in ROOMS]
    found += [room(name, (root / name).rglob("*.py"), root) for name in AROUND]
    return [one for one in found if one.parts]


def room(name: str, files: Iterable[Path], root: Path = ROOT) -> Room:
    made = Room(name)
    for file in sorted(files):
        text = file.read_text(encoding="utf-8")
        tree, where = ast.parse(text), file.relative_to(root)
        made.parts.append(Part("module", where.as_posix(), len(text.splitlines())))
        made.parts += _parts(tree, where.as_posix())
        made.knows |= _known(tree, where)
    made.knows.discard(name.removeprefix(f"{ENGINE}/"))
    return made


def _parts(tree: ast.AST, where: str) -> Iterator[Part]:
    for node in ast.walk(tree):
        kind = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}.get(type(node))
        if kind is not None:
            told = ast.get_docstring(node, clean=False) if kind == "function" else None  # type: ignore[arg-type]
            lines = node.end_lineno - node.lineno + 1 - len((told or "").splitlines())  # type: ignore[attr-defined]
            yield Part(kind, f"{where}:{node.name}", lines)  # type: ignore[attr-defined]


def _known(tree: ast.AST, where: Path) -> set[str]:
    """Rooms, and of other packages those that say on which floor a room lies."""
    telling = {"torch", "numpy", "gradio", "fastapi", "modules", *AROUND}
    known: set[str] = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = where.parts[: -node.level] if node.level else ()
            names = [".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names]
        for first, *rest in (name.split(".") for name in names):
            known |= {first} & telling
            known |= {rest[0]} & {*ROOMS, "public"} if first == ENGINE and rest else set()
    return known


HEAD = ("room", "modules", "lines", "largest module", "largest class", "longest function")


def sizes(found: Sequence[Room]) -> list[list[str]]:
    """For each room what `HEAD` says."""
    return [[f"{one.name}/", str(len(one.of("module"))), str(one.lines), *map(one.largest, LIMITS)] for one in found]


def breaches(found: Sequence[Room]) -> list[str]:
    """What is longer than it may be, the worst first."""
    long = [part for one in found for part in one.parts if part.is_too_long]
    long.sort(key=lambda part: part.lines / LIMITS[part.kind], reverse=True)
    return [f"{part.kind} {part.where}: {part.lines} lines, at most {LIMITS[part.kind]}" for part in long]


def contracts(root: Path = ROOT) -> list[str]:
    """Each import contract with KEPT or BROKEN, as import-linter says it, and what breaks it."""
    program = Path(sys.executable).parent / "lint-imports"
    if not program.exists():
        return ["not known: import-linter is not installed"]
    said = subprocess.run([program, "--no-logo"], cwd=root, capture_output=True, text=True, check=False)
    told = said.stdout.splitlines()
    kept = [line for line in told if line.endswith((" KEPT", " BROKEN"))]
    if not kept:
        return [f"not known: lint-imports ended with {said.returncode}: {(said.stderr or said.stdout).strip()[-300:]}"]
    first = next((k for k, line in enumerate(told) if line.startswith("Broken contracts")), len(told))
    return kept + [f"  {line}" for line in told[first + 1 :] if line.strip("- ")]


def test_time(root: Path = ROOT) -> str:
    path = root / TEST_TIME
    return path.read_text(encoding="utf-8").strip() if path.exists() else "not measured yet in this folder"


def short(found: Sequence[Room], root: Path = ROOT) -> list[str]:
    """For CONTRIBUTING.md: the engine's rooms, and a line for each of the rest."""
    engine = [one for one in found if one.name.startswith(ENGINE)]
    long, told = breaches(engine), contracts(root)
    kept = sum(line.endswith(" KEPT") for line in told)
    words = (
        f"Above the limits ({_limits()}): {'; '.join(long) or 'nothing'}. "
        f"Import contracts: {kept} of {sum(line.endswith((' KEPT', ' BROKEN')) for line in told)} kept. "
        f"Last `make test`: {test_time(root)}."
    )
    return [*markdown(HEAD, sizes(engine)), "", *textwrap.wrap(words, 118, break_on_hyphens=False)]


def _limits() -> str:
    return ", ".join(f"{kind} {most}" for kind, most in LIMITS.items())


def written(page: str, lines: Sequence[str]) -> str:
    """The page with these lines between the marks. Raises `ValueError` where they are not there."""
    before, first, rest = page.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"{PAGE} has no place for the house: {MARKS[0]} ... {MARKS[1]}")
    return "\n".join([before + first, "", *lines, "", last + after])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make house", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put the short form into {PAGE}")
    options = parser.parse_args(argv)
    found = rooms()
    known = [[*row, ", ".join(sorted(one.knows))] for row, one in zip(sizes(found), found, strict=True)]
    for title, lines in (
        ("Rooms (lines with docstrings and blank ones)", columns((*HEAD, "knows"), known)),
        (f"Above the limits ({_limits()} lines)", breaches(found) or ["nothing"]),
        ("Import contracts", contracts()),
        ("The last `make test`", [test_time()]),
    ):
        print("\n".join([title, "", *lines, ""]))
    if options.write:
        page = ROOT / PAGE
        page.write_text(written(page.read_text(encoding="utf-8"), short(found)), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
