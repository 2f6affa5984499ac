"""The accordion in a real browser on real Gradio."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from demo.webui.boot import boot

PICTURES = Path(__file__).resolve().parents[1] / "demo" / "out"


@pytest.fixture(scope="module")
def url():
    with boot(model="tinyA") as host:
        yield host.serve()


@pytest.fixture
def opened(page, url, page_errors):
    """The page, ready to be used. No script of the page may have failed in the end."""
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.goto(url, wait_until="domcontentloaded")
    expect(page.locator("#txt2img_generate")).to_be_visible(timeout=60_000)
    yield page
    assert page_errors == []


def ours(page, tab, name):
    return page.locator(f"#script_{tab}_deepcache_{name}")


def open_tab(page, tab):
    page.locator("#tabs > .tab-nav button").get_by_text(tab).click()
    expect(page.locator(f"#{tab}_generate")).to_be_visible()


def enable(page, tab):
    """By its box in the accordion's head, as a user does."""
    ours(page, tab, "enabled-visible-checkbox").check()
    expect(ours(page, tab, "preset")).to_be_visible()


def number(page, tab, name):
    return ours(page, tab, name).locator("input[type=number]")


def chosen(page, tab, name):
    return ours(page, tab, name).locator("input[type=radio]:checked").get_attribute("value")


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_accordion_is_there(opened, tab):
    open_tab(opened, tab)
    expect(ours(opened, tab, "preset")).to_be_hidden()
    enable(opened, tab)
    for name in ("cache_interval", "cache_branch_id", "estimator", "start", "end", "passes",
                 "hires_cache_interval", "hires_cache_branch_id"):
        expect(ours(opened, tab, name)).to_be_visible()
    assert "they change a little" in ours(opened, tab, "enabled").inner_text()
    PICTURES.mkdir(exist_ok=True)
    ours(opened, tab, "enabled").screenshot(path=PICTURES / f"accordion_{tab}.png")


def test_presets_set_the_controls_and_turn_to_custom(opened):
    enable(opened, "txt2img")
    assert chosen(opened, "txt2img", "preset") == "Balanced"
    ours(opened, "txt2img", "preset").get_by_text("Fast").click()
    expect(number(opened, "txt2img", "cache_interval")).to_have_value("5")
    number(opened, "txt2img", "cache_interval").fill("7")
    number(opened, "txt2img", "cache_interval").press("Tab")
    custom = ours(opened, "txt2img", "preset").locator("input[value=Custom]")
    expect(custom).to_be_checked()
    expect(number(opened, "txt2img", "cache_interval")).to_have_value("7")
    ours(opened, "txt2img", "preset").get_by_text("Quality").click()
    expect(number(opened, "txt2img", "cache_interval")).to_have_value("2")


def test_generate_with_it_on(opened):
    enable(opened, "txt2img")
    opened.locator("#txt2img_steps input[type=number]").fill("9")
    opened.locator("#txt2img_generate").click()
    expect(opened.locator("#txt2img_gallery img").first).to_be_visible(timeout=120_000)
    expect(opened.locator("div.prose#html_info_txt2img")).to_contain_text("DeepCache: 3 of 9 full", timeout=30_000)
    PICTURES.mkdir(exist_ok=True)
    opened.screenshot(path=PICTURES / "page.png")


def test_a_generation_without_it_does_not_mention_it(opened):
    opened.locator("#txt2img_steps input[type=number]").fill("4")
    opened.locator("#txt2img_generate").click()
    expect(opened.locator("div.prose#html_info_txt2img")).to_contain_text("Steps: 4", timeout=120_000)
    expect(opened.locator("div.prose#html_info_txt2img")).not_to_contain_text("DeepCache")


def test_what_cannot_be_used_is_said_under_the_picture(opened):
    """Start after end is the one thing that the controls allow and the settings do not."""
    enable(opened, "txt2img")
    number(opened, "txt2img", "start").fill("0.9")
    number(opened, "txt2img", "start").press("Tab")
    number(opened, "txt2img", "end").fill("0.2")
    number(opened, "txt2img", "end").press("Tab")
    opened.locator("#txt2img_steps input[type=number]").fill("4")
    opened.locator("#txt2img_generate").click()
    expect(opened.locator("div.prose#html_log_txt2img")).to_contain_text(
        "start = 0.9 is not allowed: a number from 0 to end (0.2)", timeout=120_000
    )
    expect(opened.locator("#txt2img_gallery img").first).to_be_visible()


def test_paste_switches_on_and_off(opened):
    infotext = (
        "a cat\nSteps: 9, Sampler: Euler, Seed: 1, Size: 64x64, DeepCache version: 1, DeepCache preset: Custom, "
        "DeepCache interval: 4, DeepCache branch: 2, DeepCache estimator: copy, DeepCache start: 0.25, "
        "DeepCache end: 1.0, DeepCache passes: first only, DeepCache hires interval: 0, DeepCache hires branch: -1"
    )
    opened.locator("#txt2img_prompt textarea").fill(infotext)
    opened.locator("#txt2img_paste").click()
    expect(ours(opened, "txt2img", "preset")).to_be_visible()
    expect(number(opened, "txt2img", "cache_interval")).to_have_value("4")
    expect(number(opened, "txt2img", "cache_branch_id")).to_have_value("2")
    expect(number(opened, "txt2img", "start")).to_have_value("0.25")
    assert chosen(opened, "txt2img", "preset") == "Custom"
    assert chosen(opened, "txt2img", "passes") == "first only"
    opened.locator("#txt2img_prompt textarea").fill("a dog\nSteps: 9, Sampler: Euler, Seed: 1, Size: 64x64")
    opened.locator("#txt2img_paste").click()
    expect(ours(opened, "txt2img", "preset")).to_be_hidden()
