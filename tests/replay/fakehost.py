"""A stand-in for the host's `modules`, with as much of it as the extension's script and its adapter touch."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from .reference import ALPHAS_CUMPROD

ROOT = Path(__file__).parents[2]
ALPHAS = ALPHAS_CUMPROD.float()
OURS = (
    "deepcache_ext.hosts.adapter",
    "deepcache_ext.hosts.measurer",
    "deepcache_ext.hosts.a1111",
    "deepcache_ext.hosts.forge",
    "deepcache_ext.hosts.sdnext",
    "deepcache_ext.hosts.detect",
    "deepcache_ext.interface",
)
"""Modules that import the host's; under a stand-in they are loaded anew, and forgotten afterwards."""

FUNCTIONS = {
    "Euler a": "sample_euler_ancestral",
    "Euler": "sample_euler",
    "LMS": "sample_lms",
    "Heun": "sample_heun",
    "DPM2": "sample_dpm_2",
    "DPM2 a": "sample_dpm_2_ancestral",
    "DPM++ 2S a": "sample_dpmpp_2s_ancestral",
    "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ SDE": "sample_dpmpp_sde",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "sample_dpmpp_2m_sde",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde",
    "DPM fast": "sample_dpm_fast",
    "DPM adaptive": "sample_dpm_adaptive",
    "LCM": "sample_lcm",
}
"""Names in k-diffusion; other samplers are functions of the host's own."""

TAKES_ETA = {
    "Euler a",
    "DPM2 a",
    "DPM++ 2S a",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 3M SDE",
    "DPM fast",
    "DPM adaptive",
    "DDIM",
}


class LogKept(logging.Handler):
    """Keeps what the extension says at WARNING and above: in a replay it has no reason to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.said.append(record.getMessage() + (f" ({error!r})" if error else ""))


class Host:
    """The host's globals, the callbacks that were registered with it, and the extension's script."""

    packages: tuple[str, ...] = ("modules.sd_hijack_unet",)
    """By what the extension can tell this host."""

    unknown_callbacks: tuple[str, ...] = ("on_after_process",)
    """What another host has, and this one has not."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Any]] = {}
        self.shared = SimpleNamespace(
            state=SimpleNamespace(time_start=0.0, sampling_step=0, sampling_steps=0, job=""),
            opts=SimpleNamespace(data={}),
            cmd_opts=None,
            sd_model=None,
        )
        self.script: Any = None
        self.log = LogKept()
        self._jobs = itertools.count(1)

    control_extensions: list[str] | None = None
    """In `modules.scripts`, where the host has it."""

    def modules(self) -> Iterable[ModuleType]:
        """What this host has besides the modules that all have."""
        return ()

    @property
    def has_model(self) -> bool:
        return self.shared.sd_model is not None

    def load_model(self, unet: nn.Module) -> None:
        model = SimpleNamespace(diffusion_model=unet)
        self.shared.sd_model = SimpleNamespace(model=model, alphas_cumprod=ALPHAS)

    def new_job(self) -> None:
        self.shared.state.time_start = time.time() + next(self._jobs)

    def call_back(self, name: str, *args: Any) -> None:
        for callback in self.callbacks.get(name, ()):
            callback(*args)

    def hook(self, name: str, p: Any, before: list[Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        method = getattr(self.script, name, None)
        if method is not None:
            method(p, *before, *args, **keywords)


class Script:
    """The host's base class, without the hooks: only those that the script defines are called."""

    def elem_id(self, name: str) -> str:
        return f"script_deepcache_{name}"


class _Watchers:
    """The replay's own hooks on a UNet, by the names that the extension gives them."""

    def __contains__(self, name: object) -> bool:
        return str(name).startswith("tests.")


WATCHERS: Any = _Watchers()


@contextlib.contextmanager
def host_with_extension(make: Callable[[], Host] | None = None) -> Iterator[Host]:
    """A host (A1111, or what `make` makes) as a fresh process that has loaded the extension.

    Leaves `sys.modules` as it was.
    """
    host = (make or Host)()
    logger = logging.getLogger("deepcache")
    said_before = logger.handlers[:], logger.propagate, logger.level
    with _stand_in(host):
        logger.handlers[:] = [host.log]
        try:
            module = _load("replayed_script", ROOT / "scripts" / "deepcache.py")
            host.script = module.DeepCacheScript()
            module.host.trusted = WATCHERS  # the replay looks at what a cached call runs
            assert host.script.show(False) is module.scripts.AlwaysVisible
            yield host
            host.call_back("script_unloaded")
        finally:
            logger.handlers[:], logger.propagate = said_before[:2]
            logger.setLevel(said_before[2])


@contextlib.contextmanager
def _stand_in(host: Host) -> Iterator[None]:
    preload = _load("replayed_preload", ROOT / "preload.py")
    parser = argparse.ArgumentParser()
    preload.preload(parser)
    host.shared.cmd_opts = parser.parse_args([])

    def registering(name: str) -> Any:
        if not name.startswith("on_") or name in host.unknown_callbacks:
            raise AttributeError(name)
        return lambda callback, **_: host.callbacks.setdefault(name.removeprefix("on_"), []).append(callback)

    modules = ModuleType("modules")
    modules.__path__ = []
    callbacks = ModuleType("modules.script_callbacks")
    scripts, shared = ModuleType("modules.scripts"), ModuleType("modules.shared")
    callbacks.__getattr__ = registering  # type: ignore[method-assign]
    vars(scripts).update(Script=Script, AlwaysVisible=object())
    if host.control_extensions is not None:
        vars(scripts)["control_extensions"] = host.control_extensions
    shared.__getattr__ = lambda name: getattr(host.shared, name)  # type: ignore[method-assign]
    paths, processing = ModuleType("modules.paths"), ModuleType("modules.processing")
    vars(paths)["models_path"] = str(ROOT / "models that are not there")
    own = (callbacks, scripts, shared, paths, processing)
    vars(modules).update({module.__name__.rpartition(".")[2]: module for module in own})

    def concerned(name: str) -> bool:
        return name == "modules" or name in host.packages or name.startswith(("modules.", *OURS))

    before = {name: module for name, module in sys.modules.items() if concerned(name)}
    for name in before:
        del sys.modules[name]
    sys.modules.update({module.__name__: module for module in (modules, *own)})
    sys.modules.update({name: ModuleType(name) for name in host.packages})
    for module in host.modules():
        sys.modules[module.__name__] = module
        setattr(modules, module.__name__.rpartition(".")[2], module)
    try:
        yield
    finally:
        loaded = [name for name in sys.modules if concerned(name)]
        for name in loaded:
            del sys.modules[name]
        sys.modules.update(before)
        for name in {*loaded, *before, *OURS}:
            _bind(name)


def _bind(name: str) -> None:
    """A package remembers its submodules as attributes, too: bring that in line with `sys.modules`."""
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    if package is None:
        return
    if name in sys.modules:
        setattr(package, child, sys.modules[name])
    else:
        vars(package).pop(child, None)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _with_eta(model: Any, x: Any, sigmas: Any, eta: float = 0.0) -> None:
    """A sampler that takes eta: the host passes its option `eta_ancestral`, 1 by default."""


def _without_eta(model: Any, x: Any, sigmas: Any) -> None:
    """A sampler that does not."""


# What the host hands to hooks and callbacks ---------------------------------------------------


class Processing:
    """The host's `p`: weakly referable, its model always the loaded one, in a circle with its sampler."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: list[str] = []
        self.sampler: Any = None
        self.is_hr_pass = False

    @property
    def sd_model(self) -> Any:
        return self._host.shared.sd_model

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def update(self, recorded: dict[str, Any]) -> None:
        for name, value in recorded.items():
            if name != "class" and value != "(absent)":
                setattr(self, name, value)


def processing(host: Host, class_name: str) -> Processing:
    return type(class_name, (Processing,), {})(host)


def sampler(p: Processing, name: str, denoiser_class: str) -> Any:
    """The sampler of a pass and its denoiser, as the host builds them just before sampling."""
    timesteps = denoiser_class == "CFGDenoiserTimesteps"
    made = SimpleNamespace(
        config=SimpleNamespace(name=name),
        p=p,
        funcname=FUNCTIONS.get(name, name.lower().replace(" ", "_")),
        func=_with_eta if name in TAKES_ETA else _without_eta,
        eta=0.0 if timesteps else 1.0,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
    )
    made.model_wrap_cfg = type(denoiser_class, (), {})()
    made.model_wrap_cfg.p = p
    return made


class CFGDenoiserParams:
    """What `on_cfg_denoiser` gets; lives as long as its evaluation."""

    def __init__(self, x: torch.Tensor, recorded: dict[str, Any], denoiser: Any) -> None:
        self.x = x
        self.image_cond = None
        self.sigma = torch.tensor(recorded["sigma"])
        self.sampling_step = recorded["sampling_step"]
        self.total_sampling_steps = recorded["total_sampling_steps"]
        self.text_cond = self.text_uncond = None
        self.denoiser = denoiser
