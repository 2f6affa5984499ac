"""The accordion in a real browser on real Gradio."""

from __future__ import annotations

import os
import re
import sys
import threading
import time

import pytest
from playwright.sync_api import expect

from deepcache_ext.interface.shown import UNSET, effective
from deepcache_ext.settings.fields import FIELD, FIELDS
from demo.webui.boot import boot

expect.set_options(timeout=20_000)  # plans come from the server, and the machine may be busy

GRADIO = os.environ.get("DEEPCACHE_GRADIO", "3.41.2")
HOST = os.environ.get("DEEPCACHE_HOST", "a1111")

OBEYED = {
    "weighted": {"speed_up"},
    "uniform": {"cache_interval"},
    "non-uniform": {"cache_interval", "center", "power"},
    "custom": {"full_evaluations"},
}
STALE = 4.5
ALWAYS = {"cache_branch_id", "estimator", "start", "end", "deeper_branch_id_unset"}
SLIDERS_OF_BOXES = {"deeper_branch_id", "hires_speed_up", "hires_cache_interval", "hires_cache_branch_id"}
BOXES_OF_HIRES = {"hires_speed_up_unset", "hires_cache_branch_id_unset"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with boot(model="tinyA", host=HOST, arguments=["--models-dir", str(folder)]) as host:
        # Where its ui-config.json is of an earlier version, the host puts in what was the preset's value then.
        for control in host.module("shared").demo.blocks.values():
            if control.elem_id == "script_img2img_deepcache_speed_up":
                control.value = STALE
        if host.module("shared").sd_model is host.module("sd_model").AT_FIRST:
            # Forge loads its checkpoint for the first picture; before that a plan has no figures.
            host.txt2img(prompt="a cat", steps=1, width=64, height=64)
        yield host.serve()


@pytest.fixture
def opened(page, url, page_errors):
    """The page, ready to be used. No script of the page may have failed in the end."""
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.goto(url, wait_until="domcontentloaded")
    expect(page.locator("#txt2img_generate")).to_be_visible(timeout=60_000)
    # The first plan has come: from here on everything follows what is done here.
    expect(cells(page, "txt2img")).to_have_count(20)
    yield page
    assert page_errors == []


def ours(page, tab, name):
    return page.locator(f"#script_{tab}_deepcache_{name}").first


def shown(page, tab, name):
    """What Gradio shows as HTML."""
    return prose(page, f"script_{tab}_deepcache_{name}")


def prose(page, elem_id):
    """Gradio 3 gives the id to the text too, Gradio 4 only to what is around it."""
    return page.locator(f"div.prose#{elem_id}, #{elem_id} div.prose")


def cells(page, tab, kind=""):
    return shown(page, tab, "strip").locator(f".deepcache-cells i{kind}")


def open_tab(page, tab):
    page.locator("#tabs > .tab-nav button").get_by_text(tab).click()
    expect(page.locator(f"#{tab}_generate")).to_be_visible()


def enable(page, tab):
    """By its box in the accordion's head, as a user does."""
    ours(page, tab, "enabled-visible-checkbox").check()
    expect(ours(page, tab, "preset")).to_be_visible()


def open_inner(page, tab, *names):
    """Gradio 4 may draw the accordion anew just then, on a busy machine after the click: closed."""
    for name in names or ("advanced",):
        head = ours(page, tab, name).locator(".label-wrap")
        for _ in range(5):
            if "open" not in (head.get_attribute("class") or "").split():
                head.click()
            page.wait_for_timeout(200)
        expect(head).to_have_class(re.compile(r"\bopen\b"))


def number(page, tab, name):
    return ours(page, tab, name).locator("input[type=number]")


def type_number(page, place, value):
    place.fill(str(value))
    place.press("Tab")


def choose(page, tab, name, choice):
    ours(page, tab, name).get_by_text(choice, exact=True).click()


def chosen(page, tab, name):
    return ours(page, tab, name).locator("input[type=radio]:checked").get_attribute("value")


def generate(page, tab="txt2img", **steps):
    """A small picture: the plan does not depend on its size."""
    for name, value in {"width": 64, "height": 64, **steps}.items():
        type_number(page, page.locator(f"#{tab}_{name} input[type=number]"), value)
    page.locator(f"#{tab}_generate").click()


def paste(page, text, tab="txt2img"):
    page.locator(f"#{tab}_prompt textarea").fill(text)
    page.locator(f"#{tab}_paste").click()


def test_it_is_the_gradio_that_is_meant(opened):
    assert opened.evaluate("window.gradio_config.version") == GRADIO


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_only_what_the_strategy_obeys_is_there(opened, tab):
    open_tab(opened, tab)
    expect(ours(opened, tab, "preset")).to_be_hidden()
    enable(opened, tab)
    assert chosen(opened, tab, "preset") == "Quality"
    assert "they change a little" in ours(opened, tab, "enabled").inner_text()
    expect(ours(opened, tab, "cache_branch_id")).to_be_hidden()
    open_inner(opened, tab)
    for strategy in ("uniform", "custom", "non-uniform", "weighted"):
        choose(opened, tab, "strategy", strategy)
        for name in ALWAYS | OBEYED[strategy]:
            expect(ours(opened, tab, name)).to_be_visible()
        for name in set().union(*OBEYED.values(), SLIDERS_OF_BOXES, BOXES_OF_HIRES, {"passes"}) - OBEYED[strategy]:
            expect(ours(opened, tab, name)).to_be_hidden()


def test_what_is_to_be_seen_is_what_has_an_effect(opened):
    """By `shown.effective`, which test_shown.py holds against the plans that come of each control."""
    enable(opened, "txt2img")
    open_inner(opened, "txt2img")
    state = {field.name: field.default for field in FIELDS}

    def check(hires=False):
        wanted = effective(state, hires)
        for name in FIELD:
            if name != "enabled":
                place = ours(opened, "txt2img", f"{name}_unset" if name in UNSET else name)
                expect(place).to_be_visible(visible=name in wanted)

    check()
    opened.locator("#txt2img_hr-visible-checkbox").check()
    check(hires=True)
    for strategy in ("uniform", "custom"):
        choose(opened, "txt2img", "strategy", strategy)
        state["strategy"] = strategy
        check(hires=True)
    state["full_evaluations"] = "0-5, 9/5"
    ours(opened, "txt2img", "full_evaluations").locator("input, textarea").first.fill("0-5, 9/5")
    check(hires=True)
    choose(opened, "txt2img", "passes", "hires only")
    state["passes"] = "hires only"
    check(hires=True)
    opened.locator("#txt2img_hr-visible-checkbox").uncheck()
    check()


def test_at_first_sight_there_is_one_slider(opened):
    enable(opened, "txt2img")
    inside = ours(opened, "txt2img", "enabled")
    expect(inside.locator("input[type=range]:visible")).to_have_count(1)
    expect(ours(opened, "txt2img", "speed_up")).to_be_visible()
    expect(inside.locator("fieldset:visible")).to_have_count(1)
    expect(inside.locator("button:visible:not(.label-wrap)")).to_have_count(0)
    expect(shown(opened, "txt2img", "strip").locator("p")).to_have_text(
        "Plan 11 of 20 steps run the full UNet: about 1.7x as fast."
    )


def test_what_the_hires_pass_has_of_its_own(opened):
    """A box says "same as first pass"; without it the slider is there, at the first pass's value."""
    enable(opened, "txt2img")
    open_inner(opened, "txt2img")
    opened.locator("#txt2img_hr-visible-checkbox").check()
    same = ours(opened, "txt2img", "hires_speed_up_unset").locator("input")
    expect(same).to_be_checked()
    expect(ours(opened, "txt2img", "hires_cache_interval_unset")).to_be_hidden()
    same.uncheck()
    expect(number(opened, "txt2img", "hires_speed_up")).to_have_value("1.6")
    plan = shown(opened, "txt2img", "strip").locator(".deepcache-pass")
    expect(plan).to_have_count(2)
    expect(plan.nth(1)).to_contain_text("11 of 20 steps")
    type_number(opened, number(opened, "txt2img", "hires_speed_up"), 2.5)
    expect(plan.nth(1)).to_contain_text("7 of 20 steps run the full UNet: about 2.5x as fast")
    same.check()
    expect(plan.nth(1)).to_contain_text("11 of 20 steps")
    expect(ours(opened, "txt2img", "hires_speed_up")).to_be_hidden()
    # A text brings both with it.
    paste(opened, INFOTEXT.replace("strategy: custom", "strategy: weighted, DeepCache hires speed up: 2.2"))
    expect(number(opened, "txt2img", "hires_speed_up")).to_have_value("2.2")
    choose(opened, "txt2img", "passes", "both")
    expect(same).not_to_be_checked()
    # Nothing of it has an effect where that pass is not cached, nor where there is none.
    choose(opened, "txt2img", "passes", "first only")
    expect(same).to_be_hidden()
    opened.locator("#txt2img_hr-visible-checkbox").uncheck()
    expect(ours(opened, "txt2img", "passes")).to_be_hidden()


def test_medium_steps_are_of_no_preset(opened):
    enable(opened, "txt2img")
    open_inner(opened, "txt2img")
    none = ours(opened, "txt2img", "deeper_branch_id_unset").locator("input")
    none.uncheck()
    expect(number(opened, "txt2img", "deeper_branch_id")).to_have_value("5")
    expect(ours(opened, "txt2img", "preset").locator("input[value=Custom]")).to_be_checked()
    expect(shown(opened, "txt2img", "strip")).to_contain_text("a medium part of it")
    choose(opened, "txt2img", "preset", "Quality")
    expect(none).to_be_checked()
    expect(ours(opened, "txt2img", "deeper_branch_id")).to_be_hidden()


def test_where_nothing_is_gained_the_page_says_so_and_why(opened):
    enable(opened, "txt2img")
    generate(opened, steps=8)
    expect(shown(opened, "txt2img", "header")).to_have_text("no speed-up")
    few = "No speed-up: nothing is skipped in a run of fewer than 12 steps."
    expect(shown(opened, "txt2img", "strip")).to_contain_text(f"Plan {few}")
    expect(shown(opened, "txt2img", "last_line")).to_contain_text(f"Last run {few}", timeout=120_000)


def test_presets_set_the_controls_and_turn_to_custom(opened):
    enable(opened, "txt2img")
    speed_up = number(opened, "txt2img", "speed_up")
    expect(speed_up).to_have_value("1.6")
    choose(opened, "txt2img", "preset", "Fast")
    expect(speed_up).to_have_value("2.6")
    type_number(opened, speed_up, 3.5)
    expect(ours(opened, "txt2img", "preset").locator("input[value=Custom]")).to_be_checked()
    expect(speed_up).to_have_value("3.5")
    open_inner(opened, "txt2img")
    choose(opened, "txt2img", "strategy", "uniform")
    expect(ours(opened, "txt2img", "cache_interval")).to_be_visible()
    expect(speed_up).to_be_hidden()
    choose(opened, "txt2img", "preset", "Quality")
    expect(speed_up).to_be_visible()
    expect(speed_up).to_have_value("1.6")
    assert chosen(opened, "txt2img", "strategy") == "weighted"
    expect(ours(opened, "txt2img", "cache_interval")).to_be_hidden()


@pytest.mark.slow
def test_a_preset_stands_whatever_the_host_has_kept_of_its_controls(opened, url):
    page = opened
    sent = page.request.get(f"{url}/config").json()["components"]
    sent = [one["props"] for one in sent if one["props"].get("elem_id") == "script_img2img_deepcache_speed_up"]
    assert [one["value"] for one in sent] == [STALE]
    open_tab(page, "img2img")
    enable(page, "img2img")
    assert chosen(page, "img2img", "preset") == "Quality"
    expect(number(page, "img2img", "speed_up")).to_have_value("1.6")


def test_the_plan_follows_our_controls_and_the_hosts(opened):
    head = shown(opened, "txt2img", "header")
    expect(head).to_have_text("")
    enable(opened, "txt2img")
    expect(head).to_have_text("1.7x, 11 of 20 full")
    expect(cells(opened, "txt2img", ".full")).to_have_count(11)
    open_inner(opened, "txt2img")
    choose(opened, "txt2img", "strategy", "uniform")
    type_number(opened, number(opened, "txt2img", "cache_interval"), 5)
    expect(cells(opened, "txt2img", ".full")).to_have_count(4)
    expect(cells(opened, "txt2img").nth(5)).to_have_class("full")
    type_number(opened, opened.locator("#txt2img_steps input[type=number]"), 40)
    expect(head).to_have_text("3.8x, 8 of 40 full")
    # Two evaluations a step, the last with one.
    opened.locator("#txt2img_sampling input").click()
    opened.locator("ul.options li[aria-label='Heun']").click()
    expect(cells(opened, "txt2img")).to_have_count(79)
    expect(shown(opened, "txt2img", "strip")).to_contain_text("16 of 79 evaluations run the full UNet")
    opened.locator("#txt2img_hr-visible-checkbox").check()
    expect(shown(opened, "txt2img", "strip")).to_contain_text("Hires pass")
    expect(cells(opened, "txt2img")).to_have_count(79 + 79)
    choose(opened, "txt2img", "passes", "first only")
    expect(shown(opened, "txt2img", "strip").locator(".deepcache-pass").nth(1)).to_contain_text(
        "No speed-up: as things are set, all 79 evaluations run the full UNet"
    )
    # The head tells it where the accordion is closed too, and is empty when it is off.
    expect(head).to_be_visible()
    ours(opened, "txt2img", "enabled-visible-checkbox").uncheck()
    expect(ours(opened, "txt2img", "preset")).to_be_hidden()
    expect(head).to_have_text("")


def test_a_change_while_an_answer_is_due_is_asked_for_after_it(opened, monkeypatch):
    """Gradio 4 drops a press while an answer is due, and in Gradio 3 the later answer would come first."""
    enable(opened, "txt2img")
    expect(shown(opened, "txt2img", "header")).to_have_text("1.7x, 11 of 20 full")
    asked = threading.Event()

    def slow(*given):
        monkeypatch.undo()
        asked.set()
        time.sleep(2)
        return strip(*given)

    module = sys.modules["deepcache_ext.interface.plan_strip"]  # the host's own
    strip = module.strip
    monkeypatch.setattr(module, "strip", slow)
    type_number(opened, number(opened, "txt2img", "speed_up"), 2.6)
    for _ in range(100):
        opened.wait_for_timeout(100)  # the browser's requests go through this thread
        if asked.is_set():
            break
    assert asked.is_set()
    type_number(opened, opened.locator("#txt2img_steps input[type=number]"), 33)
    expect(cells(opened, "txt2img")).to_have_count(33)
    opened.wait_for_timeout(3000)
    expect(cells(opened, "txt2img")).to_have_count(33)


@pytest.mark.slow
def test_the_plan_of_img2img_counts_its_part_of_the_steps(opened):
    open_tab(opened, "img2img")
    enable(opened, "img2img")
    expect(cells(opened, "img2img")).to_have_count(16)
    type_number(opened, opened.locator("#img2img_denoising_strength input[type=number]"), 0.2)
    expect(cells(opened, "img2img")).to_have_count(5)
    expect(shown(opened, "img2img", "strip")).to_contain_text("nothing is skipped in a run of fewer than 12 steps")


def test_generate_tells_what_it_did(opened):
    enable(opened, "txt2img")
    generate(opened, steps=14)
    expect(opened.locator("#txt2img_gallery img").first).to_be_visible(timeout=120_000)
    expect(prose(opened, "html_info_txt2img")).to_contain_text("DeepCache: 8 of 14 full", timeout=30_000)
    heads = shown(opened, "txt2img", "last_run_table").locator("thead th")
    saved = r"\d+\.\d+ s instead of \d+\.\d+ s by the UNet's own times, 8 of 14 full\."
    expect(shown(opened, "txt2img", "last_line")).to_have_text(re.compile(f"^Last run (No time saved: )?{saved}$"))
    open_inner(opened, "txt2img")
    expect(heads).to_have_text(["Last run, txt2img", "first pass"])
    figures = shown(opened, "txt2img", "last_run_table").locator("tbody td:nth-child(2)")
    expect(figures).to_have_text(["14", "8", "6", "1.65x", re.compile(r"^\d+\.\d\dx$")])
    lines = figures.first.evaluate("e => [getComputedStyle(e).borderLeftWidth, getComputedStyle(e).borderBottomWidth]")
    assert lines == ["0px", "1px"]
    assert shown(opened, "txt2img", "header").inner_text() == "1.7x, 8 of 14 full"
    # It is the same in the other tab; and the next one takes its place.
    expect(shown(opened, "img2img", "last_run_table").locator("thead th")).to_have_count(2)
    choose(opened, "txt2img", "preset", "Fast")
    opened.locator("#txt2img_hr-visible-checkbox").check()
    generate(opened, steps=14)
    expect(heads).to_have_text(["Last run, txt2img", "first pass", "hires pass"], timeout=120_000)


@pytest.mark.slow
def test_measure_makes_a_profile_and_goes_on_with_it(opened, monkeypatch):
    press = sys.modules["deepcache_ext.interface.measure"].Requests.press  # the host's own
    monkeypatch.setattr(press, "__defaults__", (1,))  # fewer pictures, for time
    for name, value in {"width": 64, "height": 64, "steps": 14}.items():
        type_number(opened, opened.locator(f"#txt2img_{name} input[type=number]"), value)
    enable(opened, "txt2img")
    open_inner(opened, "txt2img")
    status = shown(opened, "txt2img", "measured")
    expect(status).to_contain_text("tinyA: not measured yet.")
    expect(status).to_contain_text("in the time of about 6 uncached ones")
    button = ours(opened, "txt2img", "measure_button")
    expect(button).to_have_text("Measure this model")
    button.click()
    found = r"measured with Euler, 14 steps; for samplers that add noise, such as Euler a, not yet\. What lies deep"
    expect(status).to_contain_text(re.compile(found), timeout=120_000)
    info = prose(opened, "html_info_txt2img")
    expect(info).to_contain_text("DeepCache strategy: custom", timeout=60_000)
    # What was chosen stays so; Generate goes by the measurement, and does not measure once more, though the button's
    # word is still on the page.
    assert chosen(opened, "txt2img", "strategy") == "weighted" and chosen(opened, "txt2img", "preset") == "Quality"
    expect(shown(opened, "txt2img", "strip")).to_contain_text("As measured on this model.")
    opened.locator("#txt2img_generate").click()
    type_number(opened, opened.locator("#txt2img_steps input[type=number]"), 15)
    expect(cells(opened, "txt2img")).to_have_count(15)
    expect(shown(opened, "txt2img", "strip")).to_contain_text("As measured on this model.")
    expect(status).to_contain_text("measured with Euler, 14 steps")


@pytest.mark.slow
def test_a_generation_without_it_does_not_mention_it(opened):
    generate(opened, steps=4)
    expect(prose(opened, "html_info_txt2img")).to_contain_text("Steps: 4", timeout=120_000)
    expect(prose(opened, "html_info_txt2img")).not_to_contain_text("DeepCache")
    expect(shown(opened, "txt2img", "last_line")).to_contain_text("Last run DeepCache was off.")
    expect(shown(opened, "txt2img", "last_run_table")).to_contain_text("DeepCache was off")


@pytest.mark.slow
def test_compare_from_the_script_dropdown(opened):
    """One picture without, one for each preset and one for a typed line, and the sheet of all before them."""
    opened.locator("#txt2img_script_container #script_list input, #script_list input").first.click()
    opened.locator("ul.options li[aria-label='DeepCache: compare']").first.click()
    typed = opened.locator("#script_txt2img_deepcache_compare_typed textarea, [id$=compare_typed] textarea").first
    expect(typed).to_be_visible(timeout=30_000)
    typed.fill("cache_interval=2, estimator=copy")
    generate(opened, steps=14)
    expect(opened.locator("#txt2img_gallery img").nth(5)).to_be_visible(timeout=120_000)
    expect(prose(opened, "html_info_txt2img")).to_contain_text("Steps: 14", timeout=30_000)
    expect(shown(opened, "txt2img", "header")).to_have_text("")


@pytest.mark.slow
def test_what_cannot_be_used_is_said_before_and_after(opened):
    """Start after end, and what is typed for full evaluations, are what the controls allow and the settings do not."""
    enable(opened, "txt2img")
    open_inner(opened, "txt2img")
    choose(opened, "txt2img", "strategy", "custom")
    ours(opened, "txt2img", "full_evaluations").locator("input, textarea").first.fill("0-3, <b>x</b>")
    expect(shown(opened, "txt2img", "strip")).to_contain_text("full_evaluations = '0-3, <b>x</b>' is not allowed")
    choose(opened, "txt2img", "strategy", "weighted")
    type_number(opened, number(opened, "txt2img", "start"), 0.9)
    type_number(opened, number(opened, "txt2img", "end"), 0.2)
    problem = "start = 0.9 is not allowed: a number from 0 to end (0.2)"
    expect(shown(opened, "txt2img", "strip")).to_contain_text(problem)
    generate(opened, steps=4)
    expect(prose(opened, "html_log_txt2img")).to_contain_text(problem, timeout=120_000)
    expect(opened.locator("#txt2img_gallery img").first).to_be_visible()
    expect(shown(opened, "txt2img", "last_run_table")).to_contain_text(problem)


INFOTEXT = (
    "a cat\nSteps: 9, Sampler: Euler, Seed: 1, Size: 64x64, DeepCache version: 2, DeepCache preset: Custom, "
    "DeepCache interval: 4, DeepCache branch: 2, DeepCache estimator: copy, DeepCache start: 0.25, "
    "DeepCache end: 1.0, DeepCache passes: first only, DeepCache hires interval: 0, DeepCache hires branch: -1, "
    'DeepCache strategy: custom, DeepCache full evaluations: "0-2, 5"'
)


@pytest.mark.sample("txt2img")
@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_paste_switches_on_and_off(opened, tab):
    open_tab(opened, tab)
    paste(opened, INFOTEXT, tab)
    expect(ours(opened, tab, "preset")).to_be_visible()
    open_inner(opened, tab)
    expect(number(opened, tab, "cache_branch_id")).to_have_value("2")
    expect(number(opened, tab, "start")).to_have_value("0.25")
    expect(ours(opened, tab, "full_evaluations").locator("input, textarea").first).to_have_value("0-2, 5")
    assert [chosen(opened, tab, name) for name in ("preset", "strategy")] == ["Custom", "custom"]
    if tab == "txt2img":
        opened.locator("#txt2img_hr-visible-checkbox").check()
        expect(ours(opened, tab, "passes").locator("input:checked")).to_have_value("first only")
    paste(opened, "a dog\nSteps: 9, Sampler: Euler, Seed: 1, Size: 64x64", tab)
    expect(ours(opened, tab, "preset")).to_be_hidden()


@pytest.mark.slow
def test_a_pasted_text_of_a_newer_version_or_with_wrong_values_is_noted(opened):
    paste(opened, INFOTEXT.replace("version: 2", "version: 99").replace("interval: 4", "interval: many"))
    notice = shown(opened, "txt2img", "notice")
    expect(notice).to_contain_text("written by a newer version (99)")
    expect(notice).to_contain_text("cache_interval = 'many' is not allowed")
    paste(opened, INFOTEXT)
    expect(notice).to_have_text("")


@pytest.mark.slow
def test_keyboard(opened):
    """Enable, another preset and the inner accordions without a mouse."""
    ours(opened, "txt2img", "enabled-visible-checkbox").focus()
    opened.keyboard.press("Space")
    expect(ours(opened, "txt2img", "preset")).to_be_visible()
    ours(opened, "txt2img", "preset").locator("input[value=Quality]").focus()
    # In Gradio 4 every choice is a stop of its own.
    for key in ("Tab", "Space") if GRADIO.startswith("4.") else ("ArrowRight",):
        opened.keyboard.press(key)
    expect(number(opened, "txt2img", "speed_up")).to_have_value("2")
    expect(shown(opened, "txt2img", "header")).to_contain_text("2.0x")
    ours(opened, "txt2img", "advanced").locator(".label-wrap").focus()
    opened.keyboard.press("Enter")
    expect(ours(opened, "txt2img", "start")).to_be_visible()


@pytest.mark.slow
def test_two_pages_at_once(opened, url):
    """Each has its own plan; both learn of a run when they ask."""
    other = opened.context.new_page()
    other.goto(url, wait_until="domcontentloaded")
    expect(cells(other, "txt2img")).to_have_count(20, timeout=60_000)
    enable(opened, "txt2img")
    choose(opened, "txt2img", "preset", "Fast")
    enable(other, "txt2img")
    expect(shown(opened, "txt2img", "header")).to_have_text(re.compile(r"^2\.6x|^2\.7x|^2\.8x"))
    expect(shown(other, "txt2img", "header")).to_have_text("1.7x, 11 of 20 full")
    generate(opened, steps=13)
    expect(opened.locator("#txt2img_gallery img").first).to_be_visible(timeout=60_000)
    other.evaluate("window.dispatchEvent(new Event('focus'))")
    open_inner(other, "txt2img")
    expect(shown(other, "txt2img", "last_run_table").locator("tbody td").nth(1)).to_have_text("13")
    other.close()


@pytest.mark.slow
def test_no_clipping_in_a_narrow_window(opened):
    opened.set_viewport_size({"width": 420, "height": 1400})
    enable(opened, "txt2img")
    open_inner(opened, "txt2img")
    opened.locator("#txt2img_hr-visible-checkbox").check()
    expect(ours(opened, "txt2img", "passes")).to_be_visible()
    for name in ("enabled", "strip", "advanced", "passes", "measure_button"):
        box = ours(opened, "txt2img", name).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 420
    assert (
        opened.evaluate(
            "[...document.querySelectorAll('#script_txt2img_deepcache_enabled *')].filter(e => e.offsetParent)"
            ".filter(e => e.getBoundingClientRect().right > 421).map(e => e.className + ' ' + e.id)"
        )
        == []
    )
