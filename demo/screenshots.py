"""`python -m demo.screenshots`: the accordion after a run, in both themes and in a narrow window, into docs/; more of
them, and those of other hosts (`--all`, `--host`), into demo/out/, to be looked at.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from demo.libraries import begin_again_with_those_of
from demo.webui.boot import boot
from demo.webui.hosts import HOSTS

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
OURS = "#script_txt2img_deepcache_"
SHOTS = (
    # name, dark, width of the window, whether Advanced is open, steps, hires
    ("light", False, 1280, False, 30, False),
    ("dark", True, 1280, False, 30, False),
    ("narrow", False, 420, True, 30, True),
)
MORE = (
    ("dark-narrow", True, 420, False, 8, False),
    ("wide-advanced", False, 1280, True, 30, True),
    ("dark-advanced", True, 1280, True, 30, True),
)
"""To be looked at; kept nowhere."""


def take(page: Any, url: str, shot: tuple[str, bool, int, bool, int, bool], path: Path) -> None:
    """One picture: set up by the controls as a user does, and a run made."""
    _, dark, width, advanced, steps, hires = shot
    page.set_viewport_size({"width": width, "height": 1600})
    page.goto(f"{url}/?__theme={'dark' if dark else 'light'}", wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_generate", timeout=60_000)
    page.wait_for_timeout(1000)
    whole = page.locator(f"{OURS}enabled_accordion, {OURS}enabled:not(:has({OURS}enabled))").first
    tick = page.locator(f"{OURS}enabled-visible-checkbox")
    if not tick.count():
        whole.locator(".label-wrap").first.click()
        tick = page.locator(f"{OURS}enabled input")
    tick.check()
    page.locator(f"{OURS}preset input[value=Balanced]").first.check()
    if hires:
        page.locator("#txt2img_hr-visible-checkbox, #txt2img_hr .label-wrap").first.click()
        page.locator("#txt2img_hires_steps input[type=number]").fill("15")
    page.locator("#txt2img_steps input[type=number]").fill(str(steps))
    if advanced:
        page.locator(f"{OURS}advanced .label-wrap").first.click()
    page.locator("#txt2img_generate").click()
    page.wait_for_selector("#txt2img_gallery img", timeout=240_000)
    page.wait_for_selector(f"{OURS}last_line p >> text=/Last run/", timeout=30_000)
    page.wait_for_timeout(2000)  # the accordions have come to rest
    page.mouse.move(0, 0)
    whole.scroll_into_view_if_needed()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.screenshot(path=path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.screenshots", description=__doc__)
    parser.add_argument("--host", choices=sorted(HOSTS), default="a1111")
    parser.add_argument("--all", action="store_true", help="more of them, into demo/out/")
    options = parser.parse_args()
    begin_again_with_those_of(options.host, "demo.screenshots")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser: none of {', '.join(BROWSERS)} is on the PATH", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    kept = options.host == "a1111" and not options.all
    with boot(host=options.host) as host, sync_playwright() as playwright:
        url = host.serve()
        running = playwright.chromium.launch(executable_path=browser, args=ARGS)
        for shot in SHOTS + (() if kept else MORE):
            page = running.new_page(device_scale_factor=1)
            # Nothing outside this machine is asked for.
            page.route(lambda address: not address.startswith(url), lambda route: route.abort())
            path = (
                ROOT / ("docs" if kept else "demo/out") / f"accordion-{'' if kept else f'{options.host}-'}{shot[0]}.png"
            )
            take(page, url, shot, path)
            print(f"saved {path.relative_to(ROOT)}", flush=True)
            page.close()
        running.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
