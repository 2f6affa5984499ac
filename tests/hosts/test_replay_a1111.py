"""Every recording of A1111 1.10.1 against the reference; proof that replays notice what they are for."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deepcache_ext.hosts import generations
from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.session import attachment, decisions, session, slots
from deepcache_ext.session.changes import WeightsWatch
from deepcache_ext.session.values import Values
from tests.replay import fakehost, placement, reference
from tests.replay.__main__ import main
from tests.replay.recording import Generation, load
from tests.replay.scenario import CAUSES, MAIN, OTHERS, SOME, Config, recordings, replay

TRACES = Path(__file__).parents[1] / "data" / "host-traces" / "a1111-1.10.1"

CACHED: dict[str, tuple[int, int]] = {
    "after_animatediff": (5, 5),
    "after_controlnet": (5, 5),
    "after_controlnet_crash": (5, 5),
    "after_crash": (5, 5),
    "and_long": (10, 10),
    "and_prompt": (5, 5),
    "animatediff_3_windows": (3, 15),
    "animatediff_one_window": (5, 5),
    "batch_cond_uncond_off": (10, 10),
    "batch_size_2": (5, 5),
    "cfg_1": (5, 5),
    "controlnet": (5, 5),
    "controlnet_crash": (7, 7),
    "controlnet_end_half": (5, 5),
    "controlnet_my_prompt": (5, 5),
    "controlnet_reference_only": (5, 5),
    "crash": (7, 7),
    "ddim": (4, 4),
    "dpm_adaptive": (8, 8),
    "dpm_fast": (5, 5),
    "dpmpp_2m_karras": (5, 5),
    "dpmpp_sde": (10, 10),
    "euler_a": (5, 5),
    "extensions_present_but_off": (5, 5),
    "heun": (10, 10),
    "hires": (10, 10),
    "hires_non_latent_upscaler": (10, 10),
    "hires_other_sampler": (12, 12),
    "img2img": (4, 4),
    "inpaint": (4, 4),
    "interrupted": (2, 2),
    "interrupted_n_iter_2": (2, 2),
    "lcm": (5, 5),
    "long_negative_prompt": (10, 10),
    "long_positive_prompt": (10, 10),
    "n_iter_2": (10, 10),
    "ngms": (3, 5),
    "odd_size_136x120": (5, 5),
    "plms": (5, 5),
    "prompt_edit": (4, 5),
    "refiner_inplace": (4, 5),
    "refiner_new_object": (4, 5),
    "restart": (10, 10),
    "sdxl": (5, 5),
    "sdxl_hires": (10, 10),
    "skip_early_cond": (5, 5),
    "tiled_diffusion": (12, 12),
    "tiled_diffusion_tile_batch_1": (18, 18),
    "two_generations": (10, 10),
    "unipc": (5, 5),
}
"""Cached and planned calls at interval 3; a crash is followed by one more generation."""


def test_every_recording_is_expected() -> None:
    assert sorted(CACHED) == [path.stem for path in recordings(TRACES)]


def test_every_shortfall_has_a_cause() -> None:
    assert {name for name, (cached, planned) in CACHED.items() if cached < planned} <= set(CAUSES)


@pytest.mark.sample(
    "controlnet",
    "controlnet_reference_only",
    "crash",
    "dpm_adaptive",
    "dpmpp_sde",
    "hires",
    "long_positive_prompt",
    "ngms",
    "prompt_edit",
    "refiner_inplace",
    "sdxl",
    "tiled_diffusion",
)
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


def test_weights_that_change_after_the_evaluation_began() -> None:
    """As `refiner_inplace`, by someone who tells nobody, between `on_cfg_denoiser` and the call."""
    recording = load(TRACES / "refiner_inplace.json")
    (generation,) = recording.generations
    events = [event for event in generation.events if event.get("name") != "model_loaded"]
    outcome = replay(replace(recording, generations=[replace(generation, events=events)]), (MAIN,))
    assert not outcome.failures, "\n".join(outcome.failures)


# What the replays notice -----------------------------------------------------------------------------


def failures(scenario: str, config: Config = MAIN) -> str:
    return "\n".join(replay(load(TRACES / f"{scenario}.json"), (config,)).failures)


def slightly_wrong(self: Copy, kept: Any, now: Any) -> list[torch.Tensor]:
    return [feature * (1 + 1e-6) for feature in kept[-1].features]


def test_notices_a_feature_that_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Copy, "estimate", slightly_wrong)
    assert "differs from the reference" in failures("euler_a")


def test_notices_a_clock_that_is_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_one = lambda index: index % 3 == 1 or index == 0  # noqa: E731
    monkeypatch.setattr(UniformPlan, "is_full", lambda self, index: off_by_one(index))
    monkeypatch.setattr(UniformPlan, "branch_at", lambda self, index: None if off_by_one(index) else self.branch)
    monkeypatch.setattr(UniformPlan, "source", lambda self, evaluation: 0)
    found = failures("euler_a")
    assert "full, but its feature was at hand" in found
    assert "cached, but must be full: planned" in found
    assert "the infotext says" not in found


def test_notices_a_feature_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UniformPlan, "source", lambda self, evaluation: 0)
    assert f"must be full: {reference.STALE}" in failures("ngms")


def test_notices_another_prompts_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "ask_same_content", lambda *_: lambda: True)
    assert f"must be full: {reference.CHANGED}" in failures("prompt_edit")


def test_notices_another_models_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsWatch, "version", lambda self, look=True: 0)
    monkeypatch.setattr(Values, "changed", lambda self: False)
    monkeypatch.setattr(session.Session, "drop", lambda self, reason: None)
    assert f"must be full: {reference.WEIGHTS}" in failures("refiner_inplace")


def test_notices_another_windows_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots.Slots, "_region", lambda self, call, kind, nth, *_: ((nth, 0, 0),))
    assert f"must be full: {reference.UNSEEN}" in failures("animatediff_3_windows")


def test_notices_another_tiles_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiles from right to left at every other evaluation.
    lay_out = placement._tiles

    def turning(layout: Any, sizes: Any) -> Any:
        calls = lay_out(layout, sizes)
        turning.count += 1  # type: ignore[attr-defined]
        return calls[::-1] if turning.count % 2 else calls  # type: ignore[attr-defined]

    turning.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(placement, "_tiles", turning)
    monkeypatch.setattr(slots.Slots, "_region", lambda self, call, kind, nth, *_: ((nth, 0, 0),))
    assert "differs from the reference" in failures("tiled_diffusion_tile_batch_1")


def test_notices_a_ladder_that_moves_controlnets_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "own_forward", lambda unet: None)
    assert "call 1" in failures("controlnet")


def test_notices_hooks_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.Session, "detach", lambda self: None)
    assert "left on the UNet after the generation" in failures("euler_a")


def test_notices_hooks_that_stay_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment.Attachment, "unhook", lambda self, raising=False: None)
    assert "left on the UNet after the exception" in failures("crash")


def test_notices_tensors_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    end_pass, leaked = generations.Generation.end_pass, []

    def end_pass_and_leak(self: Any) -> Any:
        if self.session is not None:
            leaked.append(list(self.session.decisions._slots._slots.values()))
        return end_pass(self)

    monkeypatch.setattr(generations.Generation, "end_pass", end_pass_and_leak)
    assert "still held after the last generation" in failures("euler_a")


def test_notices_an_error_that_was_only_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Copy, kept: Any, now: Any) -> list[torch.Tensor]:
        raise ArithmeticError("broken")

    monkeypatch.setattr(Copy, "estimate", broken)
    found = failures("euler_a")
    assert "logged: error inside DeepCache; this pass goes on uncached (ArithmeticError" in found


# The replays themselves -----------------------------------------------------------------------------


def test_the_reference_knows_nothing_of_the_extension() -> None:
    for path in Path(reference.__file__).parent.glob("*.py"):
        imports = re.findall(r"^\s*(?:from|import)\s+(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not [name for name in imports if name.startswith("deepcache_ext")], path.name


def test_the_stand_in_host_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepcache_ext.hosts
    import deepcache_ext.interface

    real, real_shared = ModuleType("modules"), ModuleType("modules.shared")
    adapter = ModuleType("deepcache_ext.hosts.a1111")
    monkeypatch.setitem(sys.modules, "modules", real)
    monkeypatch.setitem(sys.modules, "modules.shared", real_shared)
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    monkeypatch.setattr(deepcache_ext.hosts, "a1111", adapter, raising=False)
    logger = logging.getLogger("deepcache")
    before = _concerned(), logger.handlers[:], logger.propagate, logger.level
    with fakehost.host_with_extension() as host:
        assert sys.modules["modules"] is not real
        assert sys.modules[adapter.__name__] is not adapter
        assert sorted(host.callbacks) == [
            "after_component",
            "app_started",
            "before_ui",
            "cfg_after_cfg",
            "cfg_denoiser",
            "model_loaded",
            "script_unloaded",
            "ui_settings",
        ]
    assert deepcache_ext.hosts.a1111 is adapter
    assert (_concerned(), logger.handlers, logger.propagate, logger.level) == before
    # What is forgotten is no longer a package's attribute either: it would hold the host, and the host its model.
    for package in (deepcache_ext.hosts, deepcache_ext.interface):
        bound = {name for name, value in vars(package).items() if isinstance(value, ModuleType)}
        assert {f"{package.__name__}.{name}" for name in bound} <= set(sys.modules)


def _concerned() -> dict[str, ModuleType]:
    """The host's modules, and ours that import them; the engine may stay loaded."""
    return {name: mod for name, mod in sys.modules.items() if name.startswith(("modules", *fakehost.OURS))}


@pytest.mark.parametrize(
    ("prompt", "versions"),
    [
        ("a cat", [0] * 8),
        ("a [cat:dog:0.5]", [0, 0, 0, 0, 0, 1, 1, 1]),
        ("a [cat:2]", [0, 0, 0, 1, 1, 1, 1, 1]),
        ("a [cat|dog]", [0, 0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_prompt_schedules(prompt: str, versions: list[int]) -> None:
    generation = Generation("test", {"prompt": prompt}, [])
    assert [generation.prompt_version(False, step, 8) for step in range(8)] == versions


@pytest.mark.slow
def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(TRACES), "ddim", "sdxl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "ddim cached 4 of 4 planned max error 0.0e+00 ok"
    assert lines[-1] == "2 passed, 0 failed"
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    unknown = (TRACES / "ddim.json").read_text(encoding="utf-8").replace('"a1111-1.10.1"', '"another-1"', 1)
    (tmp_path / "ddim.json").write_text(unknown, encoding="utf-8")
    assert main([str(tmp_path), "ddim"]) == 1
    assert "there is no player for recordings of another-1" in capsys.readouterr().out
