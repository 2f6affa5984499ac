"""The pages: what they link to and name is there. No network: links to other places are not followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcache_ext.settings.fields import PRESETS

ROOT = Path(__file__).resolve().parents[1]
CODE = ("deepcache_ext", "scripts", "demo", "bench", "research", "train", "tests", "tools")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", ".github/**/*.md", "docs/**/*.md", *(f"{folder}/**/*.md" for folder in CODE))
    for path in ROOT.glob(pattern)
)
ENDINGS = "py|js|css|sh|md|json|toml|yml|png|safetensors"
NAMED = re.compile(rf"(?<![\w./-])[\w./-]*[\w-]\.(?:{ENDINGS})\b")
NOT_OURS = {"ui-config.json"}  # a file of the hosts'
FILES = {path.name for folder in (*CODE, "docs", "javascript") for path in (ROOT / folder).rglob("*.*")}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_links(page: str, text: str) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.resolve().relative_to(ROOT).as_posix())):
            yield link


def missing_files(text: str) -> Iterator[str]:
    """Files with their folder, from the repository's root or the engine's; by their names alone, anywhere."""
    for name in NAMED.findall(text):
        there = any((folder / name).exists() for folder in (ROOT, ROOT / "deepcache_ext"))
        if not (there or name in NOT_OURS or "NAME" in name or ("/" not in name and name in FILES)):
            yield name


def missing_tests(text: str) -> Iterator[str]:
    """Of names such as `test_x.py::test_y_*`, with `::test_z` behind it for another one of the same file."""
    file = ""
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(test_[\w*]+))?", text):
        file = name or file
        defined = rf"def {test.replace('*', r'[A-Za-z0-9_]*')}\("
        if test and not any(re.search(defined, path.read_text()) for path in (ROOT / "tests").rglob(file)):
            yield f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = text_of(page)
    assert not list(missing_links(page, text))
    if page != "CHANGELOG.md":  # it tells of what was
        assert not list(missing_files(re.sub(r"\]\([^)]*\)|https?://\S+", "", text)))
        assert not list(missing_tests(text))


def test_pages_that_the_code_names_are_there() -> None:
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in files for name in re.findall(r"\b(?:docs|research)/[\w/]+\.md", path.read_text("utf-8"))}
    assert named and {name for name in named if not (ROOT / name).exists()} == set()


def test_the_walk_through_one_generation_names_what_is_there() -> None:
    walk = text_of("CONTRIBUTING.md").partition("## One generation")[2].partition("\n## ")[0]
    stops = re.findall(r"`([\w/]+\.py)`((?: `\w+`)+)", walk)
    assert len(stops) > 15
    for path, names in stops:
        defined = set(re.findall(r"^ *(?:def|class) (\w+)", text_of(path), re.MULTILINE))
        assert set(re.findall(r"\w+", names)) <= defined, path


README_LINES = 110
DOCS = [page for page in PAGES if page.startswith("docs/")]
SPEED = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)x\b")
LIKENESS_OR_TIME = re.compile(r"(?<![\w.])([+-]?\d+(?:\.\d+)?) ?(?:dB|%|s|ms)(?!\w)|(?<=[( ])([+-]?\d+\.\d)(?=[ ;)])")
EVIDENCE = ("docs/evidence.md", "docs/speed.md")


def test_the_readme_is_short() -> None:
    assert text_of("README.md").count("\n") <= README_LINES


@pytest.mark.parametrize("page", DOCS)
def test_a_page_says_first_whom_it_is_for(page: str) -> None:
    first = next(line for line in text_of(page).splitlines()[1:] if line)
    assert re.match(r"For (whoever|users) ", first)


def figures(text: str) -> tuple[set[str], set[str]]:
    """Speed-ups; and likeness and times."""
    return set(SPEED.findall(text)), {one or other for one, other in LIKENESS_OR_TIME.findall(text)}


def figures_without_evidence(text: str) -> set[str]:
    """Those that no file of evidence has, nor a preset sets."""
    evidence = "\n".join(map(text_of, EVIDENCE))
    speeds = set(SPEED.findall(evidence)) | {f"{preset['speed_up']:g}" for preset in PRESETS.values()}
    numbers = set(re.findall(r"[+-]?\d+(?:\.\d+)?", evidence))
    told_speeds, told = figures(text)
    return (told_speeds - speeds) | (told - numbers)


def test_the_readmes_figures_are_those_of_the_evidence() -> None:
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text_of("README.md"))
    assert all(figures(text)) and figures_without_evidence(text) == set()


@pytest.mark.parametrize("words", ["runs 7.93x as fast", "| 99.9 (+99.8; –) |", "takes 4321 s", "77.77 dB"])
def test_a_figure_of_no_evidence_is_found(words: str) -> None:
    assert figures_without_evidence(words)


WORDS = re.compile(r"U-Net|whole evaluation|\bu-net\b")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in ("settings", "api", "safety"))])
def test_one_word_for_one_thing(page: str) -> None:
    """As the page and a picture's text have them."""
    assert not WORDS.search(text_of(page))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[x](docs/no-such.md)", missing_links("README.md", "[x](docs/no-such.md)")),
        ("[x](docs/speed.md#none)", missing_links("README.md", "[x](docs/speed.md#none)")),
        ("`plan/none.py`", missing_files("`plan/none.py`")),
        ("`none.py`", missing_files("`none.py`")),
        ("`test_pages.py::test_none`", missing_tests("`test_pages.py::test_none`")),
    ],
)
def test_what_is_not_there_is_found(text: str, found: Iterator[str]) -> None:
    assert len(list(found)) == 1, text
