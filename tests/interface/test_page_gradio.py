"""The page's tests once more, on the Gradio of another host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHERS = (
    ("3.43.2", "a1111", "test_page.py"),
    ("3.43.2", "sdnext", "page_sdnext.py"),
    ("4.40.0", "forge", "test_page.py"),
)


@pytest.mark.parametrize(("version", "host", "tests"), OTHERS)
def test_the_page_there(version: str, host: str, tests: str, browser: object) -> None:
    """`browser` only skips, or fails, where there is none."""
    folder = Path(sys.prefix) / f"gradio-{version}"
    assert folder.is_dir(), "make setup installs it"
    env = {**os.environ, "PYTHONPATH": str(folder), "DEEPCACHE_GRADIO": version, "DEEPCACHE_HOST": host}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/interface/{tests}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert "skipped" not in ran.stdout
