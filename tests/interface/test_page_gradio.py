"""The page's tests once more, on the Gradio of another host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERY, FAST, SLOW = "", "not slow", "slow"
"""Which of the file's tests, as pytest's `-m` says it."""


@pytest.mark.parametrize(
    ("version", "host", "tests", "which"),
    [
        pytest.param("3.43.2", "sdnext", "page_sdnext.py", EVERY),
        pytest.param("4.40.0", "forge", "test_page.py", FAST),
        pytest.param("4.40.0", "forge", "test_page.py", SLOW, marks=pytest.mark.slow),
        pytest.param("3.43.2", "a1111", "test_page.py", EVERY, marks=pytest.mark.slow),
    ],
)
def test_the_page_there(version: str, host: str, tests: str, which: str, chromium: str) -> None:
    """`chromium` only skips, or fails, where there is none."""
    folder = Path(sys.prefix) / f"gradio-{version}"
    assert folder.is_dir(), "make setup installs it"
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env = {**ours, "PYTHONPATH": str(folder), "DEEPCACHE_GRADIO": version, "DEEPCACHE_HOST": host}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, f"tests/interface/{tests}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert "skipped" not in ran.stdout
