"""Strip, table, infotexts, axes and options: what the page is made of, without a browser."""

from __future__ import annotations

import json
import logging
from collections import Counter
from copy import copy
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcache_ext.interface import asked, axes, events, last_run, plan_strip
from deepcache_ext.plan.preview import PassAhead, planned
from deepcache_ext.report.pass_report import PassReport, Reason
from deepcache_ext.report.run_report import PassOutcome, RunOutcome, reached
from deepcache_ext.settings.fields import FIELD, FIELDS, PRESETS, SettingsError
from deepcache_ext.settings.settings import Settings, overridden, parse
from demo.webui.boot import boot

SYMBOLS = json.loads((Path(__file__).parents[1] / "data" / "host-traces" / "symbols.json").read_text(encoding="utf-8"))
EVERY_FOURTH = parse([{"enabled": True, "cache_interval": 4}])

# Strip and table ---------------------------------------------------------------------------------------------


def plan(total=10, hires=False, settings=EVERY_FOURTH, depth=12):
    return planned(settings, PassAhead(hires, total, None, depth))


def test_a_cell_for_each_evaluation():
    html = plan_strip.strip([plan(10), plan(6, hires=True)])
    assert html.count("class='full'") == 3 + 2 and html.count("class='cached'") == 7 + 4
    assert "3 of 10 steps run the full UNet: about " in html and "Hires pass" in html and "title='4: full'" in html
    assert "title='5: cached, branch 0'" in html
    # Speed-up by hand: 16 evaluations, 5 of them full, 11 at 7.87 % of a full one's cost.
    assert plan_strip.header([plan(10), plan(6, hires=True)]) == f"{16 / (5 + 11 * 0.0787):.1f}x, 5 of 16 full"


def test_only_branches_that_run_are_named():
    """A list may leave none to the shallower branch, a short run none to the deeper one."""
    typed = Settings(enabled=True, strategy="custom", full_evaluations="0-9", deeper_branch_id=5)
    short = parse([{"enabled": True, "cache_interval": 10, "deeper_branch_id": 5}])
    assert "5 of 10 steps run the full UNet, 5 a medium part of it" in plan_strip.strip([plan(settings=typed)])
    assert plan_strip.header([plan(settings=typed)]).endswith("5 of 10 full + 5 medium")
    assert " branch 5, " in plan_strip.detail([plan(settings=typed)])
    assert " branch 0, " in plan_strip.detail([plan(settings=short)])
    assert " branch 0 and 5, " in plan_strip.detail([plan(20, settings=short)])


def test_times_of_each_kind_are_told():
    report = PassReport(full_seconds=[0.05], medium_seconds=[0.03])
    assert "a full call took 50.0 ms, a medium one 30.0 ms" in report.lines()
    report.cached_seconds.append(0.01)
    assert "a full call took 50.0 ms, a cached one 10.0 ms, a medium one 30.0 ms" in report.lines()
    assert len(PassReport(full_seconds=[0.05]).lines()) == 1


def test_no_speed_up_without_a_model_and_no_plan_without_steps():
    unknown = plan(10, depth=0)
    assert plan_strip.header([unknown]) == "3 of 10 full" and "as fast" not in plan_strip.strip([unknown])
    assert plan_strip.header([]) == "" and "made when the run begins" in plan_strip.strip([])


def test_what_users_wrote_is_escaped():
    assert "<b>" not in plan_strip.strip([], "x = '<b>' is not allowed")
    run = RunOutcome("txt2img", Settings(), error="x = '<b>' is not allowed")
    assert "<b>" not in last_run.table(run) and "&lt;b&gt;" in last_run.table(run)


def outcome(hires=False, **counts):
    report = PassReport(hires=hires, evaluations=10, full_evaluations=3, **counts)
    return PassOutcome(plan(10, hires), report)


def test_the_table_adds_batches_and_gives_reasons_in_words():
    timed = {"full_calls": 3, "cached_calls": 7, "full_seconds": [0.4] * 3, "cached_seconds": [0.1] * 7}
    missed = {"misses": Counter({Reason.CONDITIONING: 2})}
    run = RunOutcome(
        "txt2img",
        EVERY_FOURTH,
        passes=[
            outcome(**timed, **missed),
            outcome(**timed),
            outcome(hires=True, off="the UNet has no such branch"),
        ],
    )
    html = last_run.table(run)
    assert "<th>Last run, txt2img</th><th>2 first passes</th><th>hires pass</th>" in html
    for name, first, hires in (("steps", 20, 10), ("full", 6, 3), ("cached", 14, 7)):
        assert f"<td>{name}</td><td>{first}</td><td>{hires}</td>" in html
    assert f"reached</td><td>{10 * 0.4 / (3 * 0.4 + 7 * 0.1):.2f}x</td><td>not measured</td>" in html
    assert (
        "2 calls of the UNet in full: the prompt, or a mask or picture given with it, changed in mid-run" in html
        and "hires pass: off: the UNet has no such" in html
    )
    json.dumps(run.as_json())


def ran(*passes, settings=EVERY_FOURTH, **more):
    return RunOutcome("txt2img", settings, passes=list(passes), **more)


def with_full(full, **counts):
    return PassOutcome(plan(20), PassReport(evaluations=20, full_evaluations=full, planned_full=5, **counts))


TIMED = {"full_calls": 5, "cached_calls": 15, "full_seconds": [0.4] * 5, "cached_seconds": [0.1] * 15}


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (ran(with_full(5, **TIMED)), "3.5 s instead of 8.0 s by the UNet's own times, 5 of 20 full."),
        (ran(*[with_full(5, **TIMED)] * 2), "7.0 s instead of 16.0 s by the UNet's own times, 10 of 40 full."),
        (ran(with_full(5, full_calls=5, cached_calls=15)), "5 of 20 full; how long it took was not measured."),
        (
            ran(with_full(12, **TIMED, misses=Counter({Reason.CONDITIONING: 7}))),
            "12 of 20 full; less than planned: the prompt, or a mask or picture given with it, changed in mid-run.",
        ),
        (
            ran(with_full(5, **{**TIMED, "cached_seconds": [0.5] * 15})),
            "No time saved: 9.5 s instead of 8.0 s by the UNet's own times, 5 of 20 full.",
        ),
        (ran(with_full(20, off="the UNet is compiled")), "No speed-up: the UNet is compiled."),
        (
            ran(with_full(20, misses=Counter({Reason.PATCHED: 15}), foreign=Counter({"their.code": 1}))),
            "No speed-up: another extension may need the part of the UNet that a cached step skips (their.code). "
            "If you know that it is harmless, you can say so on the settings page, under DeepCache.",
        ),
        (ran(inactive="this model has no UNet"), "No speed-up: this model has no UNet."),
        (ran(settings=Settings(), error="x = 9 is not allowed"), "made without caching: x = 9 is not allowed."),
        (ran(settings=Settings()), "DeepCache was off."),
        (ran(with_full(20)), "No speed-up: as things were set, the full UNet ran at every step."),
    ],
)
def test_the_last_run_in_a_line(run, words):
    html = last_run.line(run)
    assert words in unescape(html) and "<b>Last run</b>" in html
    assert ("deepcache-nothing" in html) is ("No " in words or "not allowed" in words)


def test_before_the_first_run_there_is_no_line():
    assert last_run.line(None) == ""


def test_a_plan_that_skips_nothing_says_so_and_why():
    few = planned(parse([{"enabled": True}]), PassAhead(False, 8, None, 12))
    never = planned(parse([{"enabled": True, "cache_interval": 1}]), PassAhead(False, 20, None, 12))
    assert "No speed-up: nothing is skipped in a run of fewer than 12 steps." in plan_strip.strip([few])
    assert "No speed-up: as things are set, all 20 steps run the full UNet." in plan_strip.strip([never])
    assert plan_strip.header([few]) == plan_strip.header([never]) == "no speed-up" and plan_strip.detail([few]) == ""


def test_steps_are_called_evaluations_where_a_step_has_several():
    asked_for = {"steps": 6, "hr_second_pass_steps": 0}
    assert "of 10 evaluations" in plan_strip.strip([plan()], asked=asked_for)
    assert "of 10 steps" in plan_strip.strip([plan()], asked={"steps": 10}) and "of 10 steps" in plan_strip.strip(
        [plan()]
    )
    hires = plan_strip.strip([plan(hires=True)], asked={**asked_for, "hr_second_pass_steps": 10})
    assert "of 10 steps" in hires


def test_the_table_of_runs_without_passes():
    assert "Nothing has been made" in last_run.table(None)
    assert "was off" in last_run.table(RunOutcome("img2img", Settings()))
    assert "no pass was to be cached" in last_run.table(RunOutcome("img2img", EVERY_FOURTH))


def test_reached_needs_both_kinds_of_calls():
    assert reached(PassReport(full_calls=3, full_seconds=[1.0] * 3)) is None
    assert reached(PassReport(full_calls=1, cached_calls=1, full_seconds=[1.0], cached_seconds=[1.0])) == 1.0


def test_the_pages_plan_is_made_as_if_enabled_and_says_what_is_wrong():
    def foresee(values):
        return [PassAhead(False, values["steps"], None, 12)]

    fifth = [False, "Custom", 5, 0, "copy", 0, 1, "both", 0, -1, "uniform"]
    passes, problem = asked.of_page(fifth, {"steps": 20}, foresee)
    assert problem == "" and passes[0].fraction == "4 of 20 full"
    passes, problem = asked.of_page([False, "Custom", 5, 0, "copy", 1, 0], {"steps": 20}, foresee)
    assert passes == [] and problem.startswith("start = 1.0 is not allowed")


# Overrides and axes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "changes", "same_as"),
    [
        ([True, "Balanced"], {}, [True, "Balanced"]),
        ([False], {"preset": "Fast"}, [True, "Fast"]),
        ([True], {"cache_interval": 4}, [{"enabled": True, "cache_interval": 4}]),
        ([True, "Balanced"], {"cache_branch_id": 2}, [{"enabled": True, "preset": "Balanced", "cache_branch_id": 2}]),
        (
            [{"enabled": True, "cache_interval": 4}],
            {"speed_up": 2.5},
            [{"enabled": True, "preset": "Custom", "strategy": "weighted", "speed_up": 2.5, "cache_interval": 4}],
        ),
        (
            [{"enabled": True, "strategy": "non-uniform"}],
            {"cache_interval": 5},
            [{"enabled": True, "strategy": "non-uniform", "cache_interval": 5}],
        ),
        ([True], {"enabled": False, "cache_interval": 4}, [{"enabled": False, "cache_interval": 4}]),
    ],
)
def test_overrides(base, changes, same_as):
    assert overridden(parse(base), changes) == parse(same_as)


@pytest.mark.parametrize("changes", [{"cache_interval": 0}, {"speed": 1}, {"start": 0.9, "end": 0.1}])
def test_overrides_that_cannot_be_used(changes):
    with pytest.raises(SettingsError):
        overridden(parse([True]), changes)


def xyz_script(host):
    """An X/Y/Z script with the AxisOption of a host, parameter by parameter as recorded there."""
    names = next(one["AxisOption"] for one in SYMBOLS[host]["xyz"] if "AxisOption" in one)
    required = names[:3]
    source = f"def __init__(self, {', '.join(required)}, {', '.join(f'{name}=None' for name in names[3:])}):\n"
    source += "".join(f"    self.{'type' if name == 'tipe' else name} = {name}\n" for name in names)
    made: dict = {}
    exec(source, made)
    option = type("AxisOption", (), {"__init__": made["__init__"]})
    module = SimpleNamespace(AxisOption=option, axis_options=[option("Nothing", str, lambda p, x, xs: None)])
    return SimpleNamespace(module=module)


HOSTS = [name for name in SYMBOLS if name != "about"]


@pytest.mark.parametrize("host", HOSTS)
def test_axes_on_each_hosts_own_class(host):
    script = xyz_script(host)
    others = [SimpleNamespace(module=SimpleNamespace()), SimpleNamespace()]
    assert axes.add_axes([*others, script]) == len(axes.AXES)
    assert axes.add_axes([*others, script]) == 0
    assert {axes.label(name) for name in FIELD if name != "enabled"} == {
        one.label for one in script.module.axis_options[1:]
    }


def axes_of(depth=12):
    script = xyz_script("a1111-1.10.1")
    axes.add_axes([script], lambda: depth)
    return {one.label.removeprefix(axes.PREFIX): one for one in script.module.axis_options[1:]}


@pytest.mark.parametrize(
    ("axis", "good", "bad", "words"),
    [
        ("Interval", [1, 50], 51, "a whole number from 1 to 50"),
        ("Speed-up", [1.0, 5.0], 0.5, "a number from 1 to 5"),
        ("Branch", [0, 11], 12, "the loaded model's branches are 0 to 11"),
        ("Hires branch", [-1, 11], 12, "the loaded model's branches are 0 to 11"),
        ("Preset", ["Off", "fast"], "Slow", "one of Quality"),
        ("Strategy", ["uniform"], "best", "one of weighted"),
        ("Full steps", ["0-3, 6"], "x", "steps counted from 0"),
        ("Passes", ["hires only"], "none", "one of both"),
    ],
)
def test_axes_check_their_values_first(axis, good, bad, words):
    one = axes_of()[axis]
    one.confirm(None, [one.type(value) for value in good])
    with pytest.raises(RuntimeError, match=words):
        one.confirm(None, [*good, bad])


def test_axes_offer_choices():
    made = axes_of()
    assert made["Preset"].choices() == ["Off", *PRESETS] and made["Estimator"].choices() == ["auto", "copy", "forecast"]
    assert made["Interval"].choices is None and made["Interval"].type is int and made["Start"].type is float


def test_a_grid_makes_each_cell_with_its_own_settings():
    with boot(model="tinyA") as host:
        kinds, processing = host.module("processing_kinds"), host.module("processing")
        wishes = {"prompt": "x", "steps": 14, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
        p = kinds.StableDiffusionProcessingTxt2Img(**wishes)
        p.scripts = host.module("scripts").scripts_txt2img
        p.script_args = tuple(host.api._script_args("txt2img", p.scripts, {}))
        made, cells = axes_of(), {}
        for interval in (2, 7):
            for preset in ("Off", "Balanced"):
                pc = copy(p)
                pc.extra_generation_params = {}
                made["Interval"].apply(pc, interval, [2, 7])
                made["Preset"].apply(pc, preset, ["Off", "Balanced"])
                host.module("shared").state.begin(job="grid")
                text = processing.process_images(pc).infotexts[0]
                cells[interval, preset] = text[text.index("DeepCache version") :] if "DeepCache" in text else ""
        assert not hasattr(p, "deepcache_overrides")
        assert cells[2, "Off"] == cells[7, "Off"] == ""
        for interval, full in ((2, 7), (7, 2)):
            text = cells[interval, "Balanced"]
            assert f"DeepCache interval: {interval}" in text and "DeepCache strategy: uniform" in text
            assert "DeepCache preset: Custom" in text and f"DeepCache: {full} of 14 full" in text


# The page ----------------------------------------------------------------------------------------------------


def test_a_host_where_it_is_not_active_shows_no_plan():
    page = events.Page(lambda values: [PassAhead(False, 20, None, 12)], lambda: None, None, lambda: "it is off")
    assert page._plan("txt2img", (), {"steps": 20}) == ([], "No speed-up: it is off.")


def test_a_checkpoint_that_cannot_be_cached_is_known_before_a_run():
    with boot(model="tinyA") as host:
        ours = next(data.module for data in host.module("scripts").scripts_data if data.path.endswith("deepcache.py"))
        args = [field.default for field in FIELDS]
        passes, problem = ours.joined._plan("txt2img", args, {"steps": 20})
        assert passes and not problem and ours.host.refused() == ""
        host.unet._compiled_call_impl = lambda *_: None
        assert ours.joined._plan("txt2img", args, {"steps": 20}) == ([], "No speed-up: the UNet is compiled.")
        host.unet._compiled_call_impl = None
        ours.host.disabled = True
        assert ours.joined._plan("txt2img", args, {"steps": 20})[1].startswith("No speed-up: DeepCache is switched off")


def test_sdnexts_model_is_not_loaded_to_be_looked_at(monkeypatch):
    with boot(model="tinyA", host="sdnext") as host:
        ours = next(data.module for data in host.module("scripts").scripts_data if data.path.endswith("deepcache.py"))
        host.unet._compiled_call_impl = lambda *_: None
        host.module("shared").opts.cuda_compile_backend = "openvino_fx"
        monkeypatch.setattr(host.module("shared"), "sd_loaded", False, raising=False)
        assert ours.host.refused() == ""
        monkeypatch.setattr(host.module("shared"), "sd_loaded", True)
        assert ours.host.refused() == "the UNet is compiled by openvino_fx, which was not tried"
        host.unet._compiled_call_impl = None
        assert ours.host.refused() == ""


def test_a_component_that_is_made_anew_joins_nothing():
    """Gradio 4 makes components anew to hold what an event changed in them, where no events can be connected."""
    with boot(model="tinyA") as host:
        ours = next(data.module for data in host.module("scripts").scripts_data if data.path.endswith("deepcache.py"))
        ours.joined.component_made(SimpleNamespace(elem_id="txt2img_gallery"))


# The settings page -------------------------------------------------------------------------------------------


def test_the_settings_page_switches_it_off_at_once_and_on_again():
    wishes = {"alwayson_scripts": {"deepcache": {"args": [{"enabled": True, "cache_interval": 2}]}}}
    request = {"prompt": "x", "steps": 6, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1, **wishes}
    with boot(model="tinyA") as host:
        shared = host.module("shared")
        assert shared.opts.data["deepcache_disable"] is False
        assert shared.opts.data_labels["deepcache_log_level"].section[0] == "deepcache"
        assert "3 of 6 full" in host.txt2img(**request).infotexts[0]

        def throw(*_):
            shared.opts.set("deepcache_disable", True)

        # In the middle of a generation: what is kept goes at the next evaluation, and nothing stays on the UNet.
        handle, seen = host.unet.out.register_forward_pre_hook(throw), len(host.unet._forward_pre_hooks)
        host.txt2img(**request)
        handle.remove()
        assert len(host.unet._forward_pre_hooks) == seen and "input_blocks" not in vars(host.unet)
        assert "DeepCache" not in host.txt2img(**request).infotexts[0]
        shared.opts.set("deepcache_disable", False)
        assert "3 of 6 full" in host.txt2img(**request).infotexts[0]
        shared.opts.set("deepcache_log_level", "INFO")
        assert logging.getLogger("deepcache").level == logging.INFO
        shared.opts.set("deepcache_log_level", "as started")
        assert logging.getLogger("deepcache").level == logging.WARNING
