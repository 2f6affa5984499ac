"""The accordion on SD.Next's page, where no plan is known before a run. Run by test_page_gradio.py."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect

from demo.webui.boot import boot

expect.set_options(timeout=20_000)
OURS = "#script_txt2img_deepcache_"


@pytest.fixture(scope="module")
def url():
    with boot(model="tinyA", host="sdnext") as host:
        yield host.serve()


def prose(page, elem_id):
    return page.locator(f"div.prose#{elem_id}, #{elem_id} div.prose")


def test_a_run_and_its_infotext(page, url, page_errors):
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.goto(url, wait_until="domcontentloaded")
    expect(page.locator("#txt2img_generate")).to_be_visible(timeout=60_000)
    assert page.evaluate("window.gradio_config.version") == os.environ["DEEPCACHE_GRADIO"]
    page.locator(f"{OURS}enabled-visible-checkbox").check()
    expect(prose(page, "script_txt2img_deepcache_strip")).to_contain_text("The plan is made when the run begins")
    page.locator(f"{OURS}strategy").first.get_by_text("uniform", exact=True).click()
    page.locator(f"{OURS}cache_interval input[type=number]").fill("3")
    page.locator(f"{OURS}last_run .label-wrap").click()
    for name, value in (("steps", 14), ("width", 64), ("height", 64)):
        page.locator(f"#txt2img_{name} input[type=number]").fill(str(value))
    page.locator("#txt2img_generate").click()
    expect(page.locator("#txt2img_gallery img").first).to_be_visible(timeout=120_000)
    info = prose(page, "html_info_txt2img")
    expect(info).to_contain_text("DeepCache: 5 of 14 full")
    figures = prose(page, "script_txt2img_deepcache_last_run_table").locator("tbody td:nth-child(2)")
    expect(figures.nth(0)).to_have_text("14")
    expect(figures.nth(1)).to_have_text("5")
    # Its text, read again, turns the accordion on as it was; one without DeepCache turns it off.
    text = "\n".join(info.locator("p").all_inner_texts())
    for pasted, on in (("a dog\nSteps: 9, Sampler: Euler, Seed: 1, Size: 64x64", False), (text, True)):
        page.locator("#txt2img_prompt textarea").fill(pasted)
        page.locator("#txt2img_paste").click()
        expect(page.locator(f"{OURS}enabled-visible-checkbox")).to_be_checked(checked=on)
    assert page_errors == []
