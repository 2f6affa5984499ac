"""`python -m demo.screenshots`: the accordion after a run, in both themes and in a narrow window, into docs/."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from demo.webui.boot import boot

DOCS = Path(__file__).resolve().parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
ACCORDION = "#script_txt2img_deepcache_enabled"
SHOTS = (
    # name, dark, width of the window, inner accordions that are open, with a hires pass
    ("light", False, 1280, ("last_run",), True),
    ("dark", True, 1280, ("last_run",), True),
    ("narrow", False, 420, ("advanced", "hires", "last_run"), True),
)


def take(page: Any, url: str, name: str, dark: bool, width: int, inner: tuple[str, ...], hires: bool) -> Path:
    """One picture: set up by the controls as a user does, a run made, and its table shown."""
    page.set_viewport_size({"width": width, "height": 1600})
    page.goto(f"{url}/?__theme={'dark' if dark else 'light'}", wait_until="domcontentloaded")
    page.wait_for_selector("div.prose#script_txt2img_deepcache_strip i", state="attached", timeout=60_000)
    page.locator(f"{ACCORDION}-visible-checkbox").check()
    page.locator("#script_txt2img_deepcache_preset").get_by_text("Balanced").first.click()
    if hires:
        page.locator("#txt2img_hr-visible-checkbox").check()
        page.locator("#txt2img_hires_steps input[type=number]").fill("15")
    page.locator("#txt2img_steps input[type=number]").fill("30")
    for one in inner:
        page.locator(f"#script_txt2img_deepcache_{one} .label-wrap").click()
    page.locator("#txt2img_generate").click()
    page.wait_for_selector("#txt2img_gallery img", timeout=120_000)
    table = "div.prose#script_txt2img_deepcache_last_run_table"
    page.wait_for_selector(f"{table} thead th:nth-child({3 if hires else 2})", timeout=30_000)
    page.wait_for_timeout(500)  # the accordions have come to rest
    page.locator("#txt2img_hr-visible-checkbox").scroll_into_view_if_needed()
    path = DOCS / f"accordion-{name}.png"
    page.locator(ACCORDION).screenshot(path=path)
    return path


def main() -> int:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser: none of {', '.join(BROWSERS)} is on the PATH", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    with boot() as host, sync_playwright() as playwright:
        url = host.serve()
        running = playwright.chromium.launch(executable_path=browser, args=ARGS)
        for shot in SHOTS:
            page = running.new_page(device_scale_factor=1)
            # Nothing outside this machine is asked for.
            page.route(lambda address: not address.startswith(url), lambda route: route.abort())
            print(f"saved {take(page, url, *shot).relative_to(DOCS.parent)}", flush=True)
            page.close()
        running.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
