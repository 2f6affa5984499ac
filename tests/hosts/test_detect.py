"""Which WebUI it is, by the names of its modules, and never another one; where one is missing, nothing is done."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from html import escape
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio
import pytest
import torch

from deepcache_ext.hosts.inert import Inert
from deepcache_ext.interface.last_run import table
from tests import diffusers_unets
from tests.replay import fakehost
from tests.replay.forge_player import ForgeHost
from tests.replay.sdnext_player import SDNextHost

MARKS = {
    "SD.Next": ("processing_diffusers", "sd_samplers_diffusers", "sd_models_compile", "scripts_manager"),
    "Forge": (),
    "A1111": ("sd_samplers_kdiffusion", "sd_hijack_unet", "launch_utils"),
}
"""Rooms of the package `modules`, read in the hosts' code. Forge's family has A1111's, and `modules_forge`."""


def packages(name: str) -> list[str]:
    return [f"modules.{one}" for one in MARKS[name]]


def host_with(*packages: str, **changes: Any) -> Any:
    return type("Host", (fakehost.Host,), {"packages": packages, **changes})


def adapter(host: fakehost.Host) -> Any:
    return host.callbacks["model_loaded"][0].__self__


@pytest.mark.parametrize(
    ("name", "mark"), [("Forge", "modules_forge"), *((name, mark) for name in MARKS for mark in packages(name))]
)
def test_any_mark_tells_the_host(name: str, mark: str) -> None:
    others = {"Forge": packages("A1111"), "SD.Next": ["modules.sd_models_compile"]}.get(name, [])
    with fakehost.host_with_extension(host_with(mark, *others)) as host:
        assert type(adapter(host)).__name__ == name.replace(".", "")
        assert adapter(host).inactive == "" and not host.log.said


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("2.0.1v1.10.1", "Forge (2.0.1v1.10.1)"),
        ("1.0.0v2-v1.10.1RC", "reForge (1.0.0v2-v1.10.1RC)"),
        ("classic", "Forge Classic (classic)"),
        ("neo", "Forge Neo (neo)"),
        ("f2.ersatz", "ersatzForge (f2.ersatz)"),
        (None, "Forge"),
    ],
)
def test_the_log_says_which_host_it_is(version: str | None, name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("deepcache")

    class Family(fakehost.Host):
        packages = ("modules_forge", "modules_forge.forge_version")

    with fakehost.host_with_extension(Family) as host:
        if version is not None:
            sys.modules["modules_forge.forge_version"].version = version  # type: ignore[attr-defined]
        logger.setLevel(logging.INFO)
        logger.addHandler(caplog.handler)
        try:
            assert type(sys.modules["deepcache_ext.hosts.detect"].adapter()).__name__ == "Forge"
        finally:
            logger.removeHandler(caplog.handler)
    assert caplog.messages[-1] == f"this is {name}" and not host.log.said


def hooks_of_a_run(host: fakehost.Host, args: tuple[Any, ...]) -> fakehost.Processing:
    """A generation without a single evaluation."""
    p = fakehost.processing(host, "StableDiffusionProcessingTxt2Img")
    p.update({"steps": 20, "is_hr_pass": False})
    host.new_job()
    for name in ("before_process", "process_batch", "process_before_every_sampling"):
        host.hook(name, p, [], args, {})
    for name in ("postprocess_batch", "postprocess"):
        host.hook(name, p, [] if name == "postprocess_batch" else [SimpleNamespace()], args, {})
    host.call_back("after_process", p)
    return p


ON = ({"enabled": True, "cache_interval": 3},)


@pytest.mark.parametrize("make", [fakehost.Host, ForgeHost, SDNextHost], ids=["A1111", "Forge", "SD.Next"])
def test_a_run_in_which_no_pass_was_seen_says_so(make: Any) -> None:
    """A callback that has another name by now, or a host that samples in another way."""
    with fakehost.host_with_extension(make) as host:
        host.load_model(diffusers_unets.make("sd1"))
        p = hooks_of_a_run(host, ON)
        why = "no pass of the UNet was seen"
        assert p.extra_generation_params["DeepCache"] == f"not active: {why}"
        assert host.log.said == [f"not active: {why}"] and p.comments == [f"DeepCache: not active: {why}"]
        run = adapter(host).last_run
        assert json.loads(json.dumps(run.as_json()))["inactive"] == why and why in table(run)
        for quiet in (({"enabled": False},), ({"enabled": True, "cache_interval": 99},)):
            p = hooks_of_a_run(host, quiet)
            assert "DeepCache" not in p.extra_generation_params and adapter(host).last_run.inactive == ""


def test_a_pass_that_nobody_wanted_is_not_missed() -> None:
    with fakehost.host_with_extension() as host:
        p = hooks_of_a_run(host, ({**ON[0], "passes": "hires only"},))
        assert "DeepCache" not in p.extra_generation_params and adapter(host).last_run.inactive == ""


class RenamedHost(SDNextHost):
    """SD.Next by its other marks; the module that its adapter needs has another name."""

    packages = ("modules.processing_diffusers",)

    def modules(self) -> Iterator[ModuleType]:
        return iter(())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (RenamedHost, "this SD.Next lacks what is needed of it: cannot import name 'sd_models_compile'"),
        (host_with(), "this WebUI is none that is known"),
    ],
    ids=["renamed module", "unknown host"],
)
def test_where_something_is_missing_nothing_is_done(make: Any, words: str) -> None:
    with fakehost.host_with_extension(make) as host:
        inert = adapter(host)
        assert type(inert).__name__ == "Inert" and inert.inactive.startswith(words)
        assert [said for said in host.log.said if said.startswith(f"not active: {words}")]
        unet = torch.nn.Linear(1, 1)
        host.load_model(unet)
        p = hooks_of_a_run(host, ON)
        assert p.extra_generation_params == {"DeepCache": f"not active: {inert.inactive}"}
        assert not unet._forward_pre_hooks
        assert escape(inert.inactive) in table(inert.last_run)
        assert "DeepCache" not in hooks_of_a_run(host, ({"enabled": False},)).extra_generation_params
        assert "DeepCache" not in hooks_of_a_run(host, ({"nonsense": 1},)).extra_generation_params
        inert.disabled = True
        assert "DeepCache" not in hooks_of_a_run(host, ON).extra_generation_params
        inert.disabled = False
        assert inert.foresee({"steps": 20}) == [] and inert.branches() == 0
        host.call_back("cfg_denoiser", None)
        host.script.post_sample(p)
        with gradio.Blocks() as blocks:
            host.script.ui(False)
        shown = [block.value for block in blocks.blocks.values() if isinstance(block, gradio.HTML)]
        assert any(f"Not active: {escape(inert.inactive)}." in value for value in shown)


def test_the_adapters_hooks_are_all_there_where_nothing_is_done() -> None:
    """The script asks the one as the other."""
    with fakehost.host_with_extension() as host:
        whole = {name for name in dir(adapter(host)) if not name.startswith("_")}
    unused = {"stop", "unet_of", "ladder_of", "above"}
    assert whole - unused <= set(dir(Inert("", None, False))) | set(vars(Inert("", None, False)))


def test_another_extensions_script_of_the_same_title() -> None:
    class Theirs:
        def title(self) -> str:
            return "deepcache"

    class Other:
        def title(self) -> str:
            return "Dynamic Thresholding"

    class Odd:
        def title(self) -> str:
            return self.name  # type: ignore[attr-defined,no-any-return]

    with fakehost.host_with_extension() as host:
        scripts = sys.modules["modules.scripts"]
        listed = [
            (type(host.script), "ours.py"),
            (Other, "o.py"),
            (Odd, "odd.py"),
            (Theirs, "theirs.py"),
            (None, "p.py"),
        ]
        scripts.scripts_data = [  # type: ignore[attr-defined]
            SimpleNamespace(script_class=one, path=path, module=None) for one, path in listed
        ]
        app = SimpleNamespace(add_api_route=lambda *args, **kwargs: None)
        host.call_back("app_started", None, app)
        (said,) = host.log.said
        assert said == "another extension has the title DeepCache too: theirs.py; only one is found by it"


def test_nothing_of_another_host_is_loaded() -> None:
    with fakehost.host_with_extension(SDNextHost):
        loaded = {name for name in sys.modules if name.startswith("deepcache_ext.hosts.")}
        assert not {name for name in loaded if "a1111" in name or "forge" in name}
    with fakehost.host_with_extension():
        assert "deepcache_ext.hosts.sdnext" not in sys.modules
    assert importlib.util.find_spec("deepcache_ext.hosts.sdnext") is not None
