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


def body(page):
    return page.locator(f"{OURS}body")


def opened(page, url, tab="txt2img"):
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.goto(url, wait_until="domcontentloaded")
    expect(page.locator("#txt2img_generate")).to_be_visible(timeout=60_000)
    assert page.evaluate("window.gradio_config.version") == os.environ["DEEPCACHE_GRADIO"]
    if tab != "txt2img":
        page.locator("#tabs > .tab-nav button").get_by_text(tab).click()
    ours = f"#script_{tab}_deepcache_"
    return page.locator(f"{ours}enabled_accordion, {ours}enabled:has(> .label-wrap)").first


def test_opening_it_switches_nothing_on_and_the_tick_is_seen(page, url, page_errors):
    """With the host's own rule on ticks in an accordion's head, which the embedded page has."""
    accordion = opened(page, url)
    expect(page.locator("#txt2img_hr .input-accordion-checkbox")).to_be_hidden()  # the rule is there
    head = accordion.locator(".label-wrap").first
    head.click()
    tick = accordion.locator("input[type=checkbox]").first
    expect(tick).to_be_visible()
    expect(tick).not_to_be_checked()
    expect(body(page)).to_be_hidden()  # nothing of it has an effect
    tick.check()
    expect(page.locator(f"{OURS}preset")).to_be_visible()
    head.click()
    expect(tick).to_be_hidden()
    expect(head).to_contain_text("DeepCache: on")
    head.click()
    tick.uncheck()
    expect(body(page)).to_be_hidden()
    expect(head).not_to_contain_text("on")
    assert page_errors == []


def test_a_run_and_its_infotext(page, url, page_errors):
    accordion = opened(page, url)
    accordion.locator(".label-wrap").first.click()
    tick = page.locator(f"{OURS}enabled input")
    tick.check()
    expect(prose(page, "script_txt2img_deepcache_strip")).to_contain_text("The plan is made when the run begins")
    speed_up = page.locator(f"{OURS}speed_up input[type=number]")
    speed_up.fill("2.2")
    page.locator(f"{OURS}advanced .label-wrap").first.click()
    for name, value in (("steps", 14), ("width", 64), ("height", 64)):
        page.locator(f"#txt2img_{name} input[type=number]").fill(str(value))
    page.locator("#txt2img_generate").click()
    expect(page.locator("#txt2img_gallery img").first).to_be_visible(timeout=120_000)
    info = prose(page, "html_info_txt2img")
    expect(info).to_contain_text("DeepCache: 5 of 14 full")
    figures = prose(page, "script_txt2img_deepcache_last_run_table").locator("tbody td:nth-child(2)")
    expect(figures.nth(0)).to_have_text("14")
    expect(figures.nth(1)).to_have_text("5")
    expect(prose(page, "script_txt2img_deepcache_last_line")).to_contain_text("by the UNet's own times, 5 of 14 full")
    # Its text, read again, turns the accordion on as it was; one without DeepCache turns it off.
    text = "\n".join(info.locator("p").all_inner_texts())
    speed_up.fill("1.2")
    for pasted, on in (("a dog\nSteps: 9, Sampler: Euler, Seed: 1, Size: 64x64", False), (text, True)):
        page.locator("#txt2img_prompt textarea").fill(pasted)
        page.locator("#txt2img_paste").click()
        expect(tick).to_be_checked(checked=on)
        expect(body(page)).to_be_visible(visible=on)
    expect(page.locator(f"{OURS}speed_up input[type=number]")).to_have_value("2.2")
    assert page_errors == []


def test_the_control_tab(page, url, page_errors):
    """Its plan, its run and its *Measure this model* are its own: the script is told there that it is txt2img's."""
    accordion = opened(page, url, "control")
    ours = "script_control_deepcache_"
    accordion.locator(".label-wrap").first.click()
    page.locator(f"#{ours}enabled input").check()
    expect(prose(page, f"{ours}strip")).to_contain_text("The plan is made when the run begins")
    page.locator(f"#{ours}advanced .label-wrap").first.click()
    expect(page.locator(f"#{ours}passes")).to_be_hidden()
    page.locator("#control_enable_hr input").check()
    expect(page.locator(f"#{ours}passes")).to_be_visible()
    page.locator("#control_enable_hr input").uncheck()
    for name, value in (("steps", 14), ("width", 64), ("height", 64)):
        page.locator(f"#control_{name} input[type=number]").fill(str(value))
    page.locator("#control_generate").click()
    expect(page.locator("#control_gallery img").first).to_be_visible(timeout=120_000)
    expect(prose(page, f"{ours}last_line")).to_contain_text("by the UNet's own times, 8 of 14 full")
    page.evaluate("window.deepcacheGenerate = (tab) => { window.pressed = tab; }")
    page.locator(f"#{ours}measure_button").click()
    page.wait_for_function("window.pressed")
    assert page.evaluate("window.pressed") == "control"
    assert page_errors == []
