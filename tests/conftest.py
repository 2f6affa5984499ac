"""What all tests share: quiet and bounded libraries, what `make test` takes, the UNet that must look untouched, and a
real browser that reaches only this machine.
"""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

# Before anything imports gradio or huggingface_hub, which read these once.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
with socket.create_server(("127.0.0.1", 0)) as _free:
    # Processes that test at the same time begin to look for a free port at different places.
    os.environ["GRADIO_SERVER_PORT"] = str(_free.getsockname()[1])

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import sampling

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Route

# The tests' UNets are too small to share: with two threads on a busy machine they take a hundred times as long.
torch.set_num_threads(1)

# Same examples in every run; UNets on a busy CPU have no useful deadline.
# Search further with: pytest --hypothesis-profile=explore
settings.register_profile(
    "all", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("all"), max_examples=10)
settings.register_profile("explore", deadline=None, max_examples=1000, database=None)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--disable-sync",
]
LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1"}

FAST = "not slow"
"""The expression after `-m` by which `make test` chooses."""
TIME = Path(__file__).parents[1] / ".test-time"
BEGAN = pytest.StashKey[float]()


# What runs where --------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGAN] = time.monotonic()
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("fast" if config.option.markexpr == FAST else "all")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sampling.mark_slow(items, complete=not any("::" in argument for argument in config.args))
    for item in items:
        if "chromium" in item.fixturenames:
            item.add_marker("browser")
        if not item.get_closest_marker("xdist_group") and _has_module_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _has_module_fixture(item: Any) -> bool:
    """A host, for instance, which the tests of a module share: they go to one process."""
    found = item._fixtureinfo.name2fixturedefs.values()
    return any(fixtures[-1].scope == "module" for fixtures in found)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Note how long `make test` took; not if it was a part of it, or if anything failed."""
    whole = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    if whole and config.option.markexpr == FAST and exitstatus == 0 and not config.option.collectonly:
        processes = len(config.option.tx) or 1
        passed = len(terminalreporter.stats.get("passed", ()))
        seconds = time.monotonic() - config.stash[BEGAN]
        line = f"{seconds:.0f} seconds on {processes} cores, {passed} passed, {datetime.date.today()}"
        TIME.write_text(line + "\n", encoding="utf-8")


# Around each test -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A program that a test runs may have chosen other threads, or switched gradients off for good."""
    yield
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def quiet(no_grad: None) -> Iterator[None]:
    """Without gradients, and without the warnings of diffusers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def unet() -> Iterator[torch.nn.Module]:
    """A UNet of the smallest layout that must look untouched when the test is over."""
    from tests import driver, unets  # not for tests of settings alone

    unet = unets.make(driver.LAYOUT)
    before = unets.traces(unet)
    yield unet
    assert unets.traces(unet) == before


# The browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the machine's own Chromium. Without one: skip, or fail on CI."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(BROWSERS)} is on the PATH"
        if os.environ.get("DEEPCACHE_CI") or os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """For one module: while it is there, Playwright has an event loop in this thread, and `asyncio.run` would fail."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGS)
        yield running
        running.close()


@pytest.fixture
def page_errors() -> list[str]:
    """Filled by `page`: the errors its console showed and the exceptions its scripts did not catch."""
    return []


@pytest.fixture
def page(browser: Browser, page_errors: list[str]) -> Iterator[Page]:
    """A page of its own context. Requests that leave this machine are aborted, their errors not counted.

    Use `page.goto(url, wait_until="domcontentloaded")`: aborted requests may delay "load".
    """
    blocked: set[str] = set()

    def only_local(route: Route) -> None:
        url = route.request.url
        parts = urlsplit(url)
        if parts.scheme in ("data", "blob", "about") or parts.hostname in LOCAL_HOSTS:
            route.continue_()
        else:
            blocked.add(url)
            route.abort()

    def on_console(message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        where = message.location.get("url", "")
        if where not in blocked and not any(url in message.text for url in blocked):
            page_errors.append(f"{message.text} ({where})")

    context = browser.new_context(service_workers="block")
    context.route("**/*", only_local)
    page = context.new_page()
    page.on("console", on_console)
    page.on("pageerror", lambda error: page_errors.append(str(error)))
    yield page
    context.close()
