"""The wheel for Python programs: what is in it, what it says of itself, and that it works with nothing else of ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest

import deepcache_ext

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
for name in ("gradio", "fastapi", "modules"):
    sys.modules[name] = None  # an import of it fails
sys.path.insert(0, sys.argv[1])
import diffusers, torch, deepcache_ext
from deepcache_ext import DeepCache, DeepCacheSDHelper
assert deepcache_ext.__file__.startswith(sys.argv[1])
torch.set_num_threads(1)
unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1,
    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2).eval()
x = torch.randn(1, 3, 8, 8)
with torch.no_grad(), DeepCache(unet, cache_interval=2, cache_branch_id=0, estimator="copy") as cache:
    for t in torch.tensor([901, 701, 501, 301]):
        x = x - 0.1 * unet(x, t).sample
assert cache.report().passes[-1].cached_calls == 2, cache.report()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from the files that it needs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "LICENSE", "MANIFEST.in", "docs/package.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "deepcache_ext", folder / "deepcache_ext", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w"]
    subprocess.run([*pip, folder / "dist", folder], check=True, capture_output=True, timeout=120)
    (built,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_it_holds_what_python_programs_need(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "deepcache_ext/py.typed" in names and "deepcache_ext/python/deepcache.py" in names
    rooms = {name.split("/")[1] for name in names if name.count("/") == 2 and ".dist-info" not in name}
    assert rooms == {"measure", "plan", "python", "report", "session", "settings", "unet"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"deepcache_ext"}


def test_it_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    told = message_from_string(wheel.read(metadata).decode())
    assert told["Version"] == deepcache_ext.__version__
    assert told["Requires-Dist"] == "torch>=2.0" and told.get_all("Requires-Dist")[1:] == ["numpy"]
    assert len(told.get_all("Project-URL")) == 4
    links = re.findall(r"\]\(([^)]*)\)", told.get_payload())
    assert links and all(link.startswith("https://") for link in links)


def test_it_works_by_itself(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_addresses_are_of_one_repository_and_lead_to_files() -> None:
    index = json.loads((ROOT / "docs/extension-index.json").read_text())
    assert len(index["description"]) < 120
    home = index["url"].removesuffix(".git")
    for page in ("pyproject.toml", "docs/package.md"):
        links = re.findall(r"https://github\.com/[^\s\")]+", (ROOT / page).read_text())
        assert links and all(link.startswith(home) for link in links), page
        files = [link.removeprefix(f"{home}/blob/main/") for link in links if "/blob/" in link]
        assert files and all((ROOT / file).is_file() for file in files), page


def test_the_version_stands_in_one_place() -> None:
    assert deepcache_ext.__version__ not in (ROOT / "pyproject.toml").read_text()
