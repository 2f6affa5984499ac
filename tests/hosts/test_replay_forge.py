"""Every recording of Forge and reForge against the reference; the adapter that the family gets."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from deepcache_ext.session import session, slots
from deepcache_ext.session.changes import WeightsWatch
from deepcache_ext.session.values import Values
from deepcache_ext.unet.forge import ForgeLadder
from tests.replay import fakehost, forge_player
from tests.replay.forge_player import ForgeHost
from tests.replay.recording import load
from tests.replay.reference import WEIGHTS
from tests.replay.scenario import MAIN, OTHERS, SOME, recordings, replay

TRACES = Path(__file__).parents[1] / "data" / "host-traces"
HOSTS = ("forge-2025-06", "reforge-2026-03")
SHORTFALLS = {
    "forge-2025-06": {"ngms", "prompt_edit", "refiner"},
    "reforge-2026-03": {"ngms", "prompt_edit"},
}
"""Scenarios where something changes between two full evaluations, so that fewer calls are cached than planned.
reForge's refiner comes at a full evaluation."""

SCENARIOS = [f"{host}/{path.stem}" for host in HOSTS for path in recordings(TRACES / host)]


def test_all_recordings_are_here() -> None:
    assert len(SCENARIOS) == 55


@pytest.mark.sample(
    "forge-2025-06/crash",
    "forge-2025-06/first_generation_after_start",
    "forge-2025-06/multidiffusion",
    "forge-2025-06/refiner",
    "reforge-2026-03/heun",
    "reforge-2026-03/ngms_request_field",
    "reforge-2026-03/split_low_memory_and_prompt",
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_replay(scenario: str) -> None:
    outcome = replay(load(TRACES / f"{scenario}.json"), SOME)
    assert not outcome.failures, "\n".join(outcome.failures[:20])
    host, name = scenario.split("/")
    assert outcome.main.planned > 0
    assert (outcome.main.cached < outcome.main.planned) == (name in SHORTFALLS[host])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_replay_with_other_settings(scenario: str) -> None:
    outcome = replay(load(TRACES / f"{scenario}.json"), OTHERS)
    assert not outcome.failures, "\n".join(outcome.failures[:20])


# What the replays notice --------------------------------------------------------------------------------------


def failures(scenario: str) -> str:
    return "\n".join(replay(load(TRACES / f"{scenario}.json"), (MAIN,)).failures)


def test_notices_the_slot_of_another_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "ask_same_content", lambda *_: lambda: True)
    call = ForgeLadder.call

    def blind(self: Any, args: Any, kwargs: Any) -> Any:
        options = {**kwargs["transformer_options"], "cond_or_uncond": [0]}
        return call(self, args, {**kwargs, "transformer_options": options})

    monkeypatch.setattr(ForgeLadder, "call", blind)
    monkeypatch.setattr(slots.Slots, "place", lambda self, call, *_, **__: (call.kind, (), 0))
    assert "differs from the reference" in failures("forge-2025-06/split_low_memory")


def test_notices_another_models_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsWatch, "version", lambda self, look=True: 0)
    monkeypatch.setattr(Values, "changed", lambda self: False)
    monkeypatch.setattr(session.Session, "drop", lambda self, reason: None)
    assert f"must be full: {WEIGHTS}" in failures("forge-2025-06/refiner")


def test_notices_another_tiles_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles from right to left at every other evaluation."""
    lay_out, count = forge_player._tiles, itertools.count()

    def turning(layout: Any, sizes: Any) -> Any:
        calls = lay_out(layout, sizes)
        return calls if next(count) % 2 else [*calls[-2::-1], calls[-1]]

    monkeypatch.setattr(forge_player, "_tiles", turning)
    monkeypatch.setattr(slots.Slots, "_region", lambda self, call, kind, nth, *_: ((nth, 0, 0),))
    assert "differs from the reference" in failures("forge-2025-06/multidiffusion")


# The adapter --------------------------------------------------------------------------------------------------


def test_the_family_gets_its_adapter() -> None:
    for make, name in ((ForgeHost, "Forge"), (fakehost.Host, "A1111")):
        with fakehost.host_with_extension(make) as host:
            assert type(_adapter(host)).__name__ == name


def _adapter(host: fakehost.Host) -> Any:
    return host.callbacks["cfg_denoiser"][0].__self__


def test_a_package_that_is_loaded_without_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    with fakehost.host_with_extension(ForgeHost):
        webui = sys.modules["deepcache_ext.hosts.detect"]
        monkeypatch.setitem(sys.modules, "specless", ModuleType("specless"))
        assert webui._has("specless")
        assert not webui._has("no_such_package")


def test_the_denoisers_model_is_the_one_that_runs() -> None:
    """The refiner stands there before anything else tells of it."""
    with fakehost.host_with_extension(ForgeHost) as host:
        adapter = _adapter(host)

        def model(unet: Any) -> Any:
            patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet))
            return SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher))

        denoiser = SimpleNamespace(inner_model=SimpleNamespace(inner_model=model("refiner")))
        p = SimpleNamespace(sd_model=model("base"))
        assert adapter.unet_of(p, SimpleNamespace(denoiser=denoiser)) == "refiner"
        assert adapter.unet_of(p, SimpleNamespace(denoiser=SimpleNamespace())) == "base"
        placeholder = SimpleNamespace(sd_model=SimpleNamespace())
        assert adapter.unet_of(placeholder, SimpleNamespace(denoiser=SimpleNamespace())) is None


class Flux(torch.nn.Module):
    """A model without UNet blocks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_model_of_another_kind_is_left_alone_with_one_polite_line() -> None:
    with fakehost.host_with_extension(ForgeHost) as host:
        model = Flux()
        host.load_model(model)
        clean = dict(model.__dict__)
        for _ in range(2):
            p = fakehost.processing(host, "StableDiffusionProcessingTxt2Img")
            p.update({"steps": 20, "is_hr_pass": False})
            p.sampler = fakehost.sampler(p, "Euler", "CFGDenoiserKDiffusion")
            host.new_job()
            args = (True, "Custom", 3, 0, "copy")
            host.hook("before_process", p, [], args, {})
            host.hook("process_before_every_sampling", p, [], args, {})
            denoiser = p.sampler.model_wrap_cfg
            denoiser.total_steps = 20
            for k in range(4):
                announced = {"sigma": [10.0 - k], "sampling_step": k, "total_sampling_steps": 20}
                x = torch.zeros(1, 4, 8, 8)
                host.call_back("cfg_denoiser", fakehost.CFGDenoiserParams(x, announced, denoiser))
                model(x)
            host.hook("postprocess_batch", p, [], args, {})
            host.hook("postprocess", p, [SimpleNamespace()], args, {})
            said = "DeepCache: not active: the model is not a UNet with input, middle and output blocks"
            assert p.comments == [said]
            assert "0 of" not in p.extra_generation_params.get("DeepCache", "")
        assert host.log.said == [said.removeprefix("DeepCache: ")]
        assert not model._forward_pre_hooks
        assert model.__dict__.keys() == clean.keys()
