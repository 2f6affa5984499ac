"""Strip, table, infotexts, axes and options: what the page is made of, without a browser."""

from __future__ import annotations

import json
import logging
from collections import Counter
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.interface import asked, axes, infotext, last_run, plan_strip
from deepcache_ext.plan.preview import PassAhead, planned
from deepcache_ext.report.pass_report import PassReport, Reason
from deepcache_ext.report.run_report import PassOutcome, RunOutcome, reached
from deepcache_ext.settings.fields import CUSTOM, FIELD, FIELDS, OBEYED, PRESETS, SELDOM, STRATEGYS_OWN, SettingsError
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
    assert "3 of 10 full" in html and "Hires pass" in html and "title='4: full'" in html
    assert "title='5: cached, branch 0'" in html
    # Speed-up by hand: 16 evaluations, 5 of them full, 11 at 7.87 % of a full one's cost.
    assert plan_strip.header([plan(10), plan(6, hires=True)]) == f"{16 / (5 + 11 * 0.0787):.1f}x, 5 of 16 full"


def test_only_branches_that_run_are_named():
    """A list may leave none to the shallower branch, a short run none to the deeper one."""
    typed = Settings(enabled=True, strategy="custom", full_evaluations="0-9", deeper_branch_id=5)
    short = parse([{"enabled": True, "cache_interval": 10, "deeper_branch_id": 5}])
    assert "5 of 10 full + 5 medium" in plan_strip.strip([plan(settings=typed)])
    assert ", branch 5, " in plan_strip.strip([plan(settings=typed)])
    assert ", branch 0, " in plan_strip.strip([plan(settings=short)])
    assert ", branch 0 and 5, " in plan_strip.strip([plan(20, settings=short)])


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
    assert "<th>txt2img</th><th>2 first passes</th><th>hires pass</th>" in html
    for name, first, hires in (("evaluations", 20, 10), ("full", 6, 3), ("cached", 14, 7)):
        assert f"<td>{name}</td><td>{first}</td><td>{hires}</td>" in html
    assert f"reached</td><td>{10 * 0.4 / (3 * 0.4 + 7 * 0.1):.2f}x</td><td>not measured</td>" in html
    assert "2 calls in full: its conditioning changed" in html and "hires pass: off: the UNet has no such" in html
    json.dumps(run.as_json())


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


# Infotexts ---------------------------------------------------------------------------------------------------


def pasted(params):
    return {field.name: infotext.reader(field.name)(params) for field in FIELDS}


@pytest.mark.parametrize(
    "given_settings",
    [
        Settings(enabled=True, preset=CUSTOM, strategy="custom", full_evaluations="0, 4-9:2", estimator="copy"),
        Settings(
            enabled=True,
            preset=CUSTOM,
            strategy="non-uniform",
            center=0.4,
            power=1.2,
            passes="first only",
            cache_branch_id=3,
        ),
        parse([True, "Fast"]),
    ],
)
def test_an_infotext_comes_back_whole(given_settings):
    written = {key: str(value) for key, value in given_settings.infotext().items()}
    back = pasted(written)
    assert back.pop("enabled") is True and infotext.note(written) == ""
    absent = {name for name, value in back.items() if value is None}
    assert absent == set(STRATEGYS_OWN) - set(OBEYED[given_settings.strategy]) - set(SELDOM)
    assert all(getattr(given_settings, name) == value for name, value in back.items() if name not in absent)


def test_what_is_seldom_written_goes_back_to_its_default():
    back = pasted({"DeepCache version": "2", "DeepCache preset": "Custom", "DeepCache strategy": "uniform"})
    assert (back["start"], back["passes"], back["hires_cache_branch_id"]) == (0.0, "both", -1)
    assert back["cache_interval"] is None is back["speed_up"]


def test_a_preset_brings_what_it_sets_and_not_what_came_of_it():
    params = {"DeepCache version": "2", "DeepCache preset": "Fast", "DeepCache estimator": "forecast"}
    assert pasted(params)["estimator"] == "auto" and pasted(params)["speed_up"] == 2.6
    assert pasted({**params, "DeepCache preset": "Custom"})["estimator"] == "forecast"
    assert pasted({**params, "DeepCache preset": "?"})["estimator"] == "forecast"


def test_an_infotext_without_it_switches_off_and_leaves_the_rest():
    back = pasted({"Steps": "20", "Sampler": "Euler"})
    assert back.pop("enabled") is False and set(back.values()) == {None}
    assert infotext.note({"Steps": "20"}) == "" == infotext.shown_note({"Steps": "20"})


def test_the_first_version_meant_uniform():
    back = pasted({"DeepCache version": "1", "DeepCache preset": "Balanced", "DeepCache interval": "4"})
    assert (back["preset"], back["strategy"], back["cache_interval"]) == ("Custom", "uniform", 4)


@pytest.mark.parametrize("key", ["DeepCache pass", "Pass to DeepCache"])
@pytest.mark.parametrize(
    ("value", "enabled", "passes"),
    [
        ("both passes", True, "both"),
        ("second pass", True, "hires only"),
        ("disable", False, None),
        ("?", False, None),
    ],
)
def test_the_older_extension(key, value, enabled, passes):
    back = pasted({key: value})
    assert (back["enabled"], back["passes"]) == (enabled, passes)
    assert ("another DeepCache extension" in infotext.note({key: value})) is enabled


def test_a_newer_version_and_wrong_values_are_noted(caplog):
    logging.getLogger("deepcache").propagate = True
    params = {"DeepCache version": "3", "DeepCache interval": "<i>", "DeepCache strategy": "weighted"}
    assert pasted(params)["cache_interval"] is None
    shown = infotext.shown_note(params)
    assert "newer version (3)" in shown and "cache_interval = &#x27;&lt;i&gt;&#x27; is not allowed" in shown
    assert "pasted infotext" in caplog.text


@given(
    st.dictionaries(
        st.sampled_from([field.infotext for field in FIELDS] + ["DeepCache version", "DeepCache pass"]),
        st.one_of(st.text(), st.floats().map(str), st.integers().map(str), st.none(), st.integers(), st.booleans()),
    )
)
def test_no_infotext_raises_and_only_usable_values_come(params):
    logging.getLogger("deepcache").setLevel(logging.ERROR)
    for name, value in pasted(params).items():
        assert value is None or FIELD[name].parse(value) == value
    infotext.note(params)


def test_both_tabs_read_with_the_same_objects():
    one, other = ({field.name: object() for field in FIELDS} for _ in range(2))
    fields = infotext.paste_fields(one, object()), infotext.paste_fields(other, object())
    assert infotext.paste_names(fields[0]) == infotext.paste_names(fields[1])
    assert len(infotext.paste_names(fields[0])) == len(FIELDS)


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
        ("Full evaluations", ["0-3, 6"], "x", "evaluations counted from 0"),
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
