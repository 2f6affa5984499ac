"""Every recording of SD.Next against the reference; and what its adapter does where the recordings are silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio
import pytest
import torch

from deepcache_ext.settings.fields import FIELDS
from deepcache_ext.unet.hooks import is_hooked
from tests.replay import fakehost, sdnext_player
from tests.replay.recording import load
from tests.replay.scenario import CAUSES, MAIN, OTHERS, SOME, recordings, replay

TRACES = Path(__file__).parents[1] / "data" / "host-traces" / "sdnext-2026-07-23"

CACHED: dict[str, tuple[int, int]] = {
    "after_crash": (5, 5),
    "batch_size_2": (5, 5),
    "cfg_1": (5, 5),
    "cfg_end": (4, 5),
    "checkpoint_change": (15, 15),
    "crash": (7, 7),
    "ddim": (5, 5),
    "dpmpp_2m": (5, 5),
    "euler_a": (5, 5),
    "first_generation_after_start": (5, 5),
    "heun": (10, 10),
    "hires": (10, 10),
    "hires_force": (9, 9),
    "img2img": (5, 5),
    "inpaint": (5, 5),
    "interrupted": (2, 2),
    "interrupted_hires": (6, 6),
    "interrupted_n_iter_2": (2, 2),
    "kdpm2": (10, 10),
    "long_positive_prompt": (5, 5),
    "n_iter_2": (10, 10),
    "odd_size_136x120": (5, 5),
    "offload_balanced": (5, 5),
    "offload_balanced_crash": (4, 4),
    "offload_balanced_first": (5, 5),
    "offload_none_again": (5, 5),
    "sdxl": (5, 5),
    "sdxl_hires": (10, 10),
    "sdxl_img2img": (5, 5),
    "two_generations": (10, 10),
    "txt2img": (5, 5),
    "unipc": (5, 5),
}
"""Cached and planned calls at interval 3; a crash is followed by one more generation."""


def test_every_recording_is_expected() -> None:
    assert sorted(CACHED) == [path.stem for path in recordings(TRACES)]


def test_every_shortfall_has_a_cause() -> None:
    assert {name for name, (cached, planned) in CACHED.items() if cached < planned} <= set(CAUSES)


@pytest.mark.sample("cfg_end", "crash", "heun", "interrupted_hires", "offload_balanced", "sdxl")
@pytest.mark.parametrize("scenario", sorted(CACHED))
def test_replay(scenario: str) -> None:
    outcome = replay(load(TRACES / f"{scenario}.json"), SOME)
    assert not outcome.failures, "\n".join(outcome.failures[:20])
    assert (outcome.main.cached, outcome.main.planned) == CACHED[scenario]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", sorted(CACHED))
def test_replay_with_other_settings(scenario: str) -> None:
    outcome = replay(load(TRACES / f"{scenario}.json"), OTHERS)
    assert not outcome.failures, "\n".join(outcome.failures[:20])


class Looker:
    """Notes what each call ran, and what the infotext says in the end."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.told: list[dict[str, Any]] = []

    def called(self, made: Any) -> None:
        self.ran.append(made.ran)

    def batch_ends(self, p: fakehost.Processing) -> None:
        self.told.append(dict(p.extra_generation_params))

    def pass_begins(self, *_: Any) -> None: ...
    def evaluation_begins(self, *_: Any) -> None: ...
    def generation_ends(self, *_: Any) -> None: ...
    def raised(self) -> None: ...
    def crashed(self) -> None: ...


def looked(scenario: str, prepare: Any = lambda host, models: None, args: tuple[Any, ...] = MAIN.args) -> Looker:
    looker, models = Looker(), sdnext_player.SDNextModels()
    recording = load(TRACES / f"{scenario}.json")
    with torch.no_grad(), fakehost.host_with_extension(sdnext_player.SDNextHost) as host:
        player = sdnext_player.SDNextPlayer(host, models, looker, args)
        for generation in recording.generations:
            player._start_model(generation)
            prepare(host, models)
            player.play(generation)
    return looker


def full_calls(looker: Looker) -> int:
    return sum("m" in ran for ran in looker.ran)


def test_the_title_is_on_the_control_tabs_list() -> None:
    with fakehost.host_with_extension(sdnext_player.SDNextHost) as host:
        assert host.control_extensions == ["NudeNet", "DeepCache"]


def pasted(script: Any, params: dict[str, Any]) -> dict[str, Any]:
    """What this host's paste makes of the script's fields: an update is passed on, of a plain value the name is asked
    whether the user wants it left alone.
    """
    found: dict[str, Any] = {}
    for component, key in script.infotext_fields:
        value = key(params) if callable(key) else params.get(key)
        if value is None or isinstance(value, type(gradio.update())):
            found[component.label or "notice"] = value
        else:
            assert key.lower() not in ("clip skip",)
    return found


def test_an_infotext_is_pasted() -> None:
    ours = {"DeepCache version": "2", "DeepCache preset": "Custom", "DeepCache interval": "7"}
    with fakehost.host_with_extension(sdnext_player.SDNextHost) as host:
        with gradio.Blocks():
            host.script.ui(False)
        names = host.script.paste_field_names
        with gradio.Blocks():
            host.script.ui(True)
        assert host.script.paste_field_names == names and len(names) == len(FIELDS)
        assert pasted(host.script, ours)["Interval"]["value"] == 7
        without = pasted(host.script, {"Steps": "20"})
        wrong = pasted(host.script, {**ours, "DeepCache interval": "x"})
    assert without["Interval"] is None and [u["value"] for u in without.values() if u] == [False, ""]
    assert wrong["Interval"] is None and "cache_interval" in wrong["notice"]["value"]


def test_other_hosts_get_plain_values() -> None:
    with fakehost.host_with_extension() as host:
        with gradio.Blocks():
            host.script.ui(False)
        read = {component.label: key for component, key in host.script.infotext_fields}
        assert read["Interval"]({"DeepCache version": "2", "DeepCache interval": "7"}) == 7


def test_it_steps_aside_for_the_hosts_own_cache() -> None:
    def prepare(host: Any, _models: Any) -> None:
        host.compile.deepcache_worker = object()

    looker = looked("txt2img", prepare)
    assert full_calls(looker) == 8
    assert "SD.Next's own DeepCache" in looker.told[0]["DeepCache"]
    assert full_calls(looked("txt2img")) == 3


@pytest.mark.parametrize(
    ("backend", "full", "told"),
    [
        ("inductor", 3, "3 of 8 full"),
        ("openvino_fx", 8, "not active: the UNet is compiled by openvino_fx, which was not tried"),
    ],
)
def test_a_compiled_unet(backend: str, full: int, told: str) -> None:
    def prepare(host: Any, models: Any) -> None:
        host.shared.opts.cuda_compile_backend = backend
        models.unet._compiled_call_impl = models.unet._call_impl

    looker = looked("txt2img", prepare)
    assert full_calls(looker) == full
    assert looker.told[0]["DeepCache"] == told


@pytest.mark.parametrize(("passes", "full"), [("first only", 3 + 8), ("hires only", 8 + 3), ("both", 3 + 3)])
def test_passes(passes: str, full: int) -> None:
    given = {"enabled": True, "cache_interval": 3, "estimator": "copy", "passes": passes}
    assert full_calls(looked("hires", args=(given,))) == full


def test_the_script_without_arguments_is_off() -> None:
    assert full_calls(looked("txt2img", args=())) == 8


@pytest.mark.parametrize("at", [1, 2])
def test_the_kill_switch_in_mid_call_leaves_nothing_on_the_unet(at: int) -> None:
    """Thrown on the settings page, from a full or a cached call on; and reloading then takes off what is there."""
    seen: list[Any] = []

    def prepare(host: Any, models: Any) -> None:
        unet, calls = models.unet, []
        adapter = host.callbacks["model_loaded"][0].__self__

        def throw(*_: Any) -> None:
            calls.append(1)
            if len(calls) == at:
                assert is_hooked(unet)
                adapter.disabled = True

        seen.extend((unet, adapter))
        unet.conv_in.register_forward_pre_hook(throw)

    looker = looked("txt2img", prepare)
    unet, adapter = seen
    assert full_calls(looker) == 8 - (at - 1)
    assert not unet._forward_pre_hooks and not unet._forward_hooks
    assert not {"down_blocks", "mid_block", "up_blocks"} & set(vars(unet))
    adapter._drivers[id(unet)] = adapter._driver_of(unet)
    adapter.on_script_unloaded()
    assert not unet._forward_pre_hooks and not unet._forward_hooks and not adapter._drivers
