"""Callbacks of extensions. An error in one is reported; the others and the picture go on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import embedded, errors


@dataclass
class CFGDenoiserParams:
    """An evaluation is about to call the UNet.

    `x` [B * (parts + 1), 4, h, w]: the batch for all calls, conds first, not yet scaled; `sigma` [the same B] (a
    timestep for timestep samplers); `text_cond`, `text_uncond`: [rows, tokens, width], or a dict of such for SDXL.
    """

    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


@dataclass
class CFGDenoisedParams:
    """What the UNet gave for all rows, `x` as in `CFGDenoiserParams`."""

    x: Any
    sampling_step: int
    total_sampling_steps: int
    inner_model: Any


@dataclass
class AfterCFGCallbackParams:
    """The guided result, `x` [B, 4, h, w]."""

    x: Any
    sampling_step: int
    total_sampling_steps: int
    output_altered: bool = False


@dataclass
class ExtraNoiseParams:
    noise: Any
    x: Any
    xi: Any


@dataclass
class ImageSaveParams:
    image: Any
    p: Any
    filename: str
    pnginfo: dict


@dataclass
class ScriptCallback:
    script: str
    callback: Callable[..., Any]
    name: str = "unnamed"


callback_map: dict[str, list[ScriptCallback]] = {name: [] for name in embedded.table.callbacks}


def _register(kind: str) -> Callable[..., None]:
    def on(callback: Callable[..., Any], *, name: str | None = None) -> None:
        # The file whose top level, or whose function, registers it: what a reload of scripts removes.
        file = sys._getframe(1).f_code.co_filename  # inspect.stack() reads the source of every frame
        callback_map[kind].append(ScriptCallback(file, callback, name or "unnamed"))

    on.__name__ = f"on_{kind}"
    return on


for _kind in embedded.table.callbacks:
    globals()[f"on_{_kind}"] = _register(_kind)


def call(kind: str, *args: Any, **kwargs: Any) -> None:
    """Call all callbacks of a kind, as in `call("cfg_denoiser", params)`."""
    for entry in list(callback_map[kind]):
        try:
            entry.callback(*args, **kwargs)
        except Exception:
            errors.report(f"error executing callback {entry.callback} for {entry.script}", exc_info=True)


def clear_callbacks() -> None:
    for entries in callback_map.values():
        entries.clear()


def remove_current_script_callbacks() -> None:
    """Forget what the calling file registered."""
    file = sys._getframe(1).f_code.co_filename
    for entries in callback_map.values():
        entries[:] = [entry for entry in entries if entry.script != file]


def remove_callbacks_for_function(callback_func: Callable[..., Any]) -> None:
    for entries in callback_map.values():
        entries[:] = [entry for entry in entries if entry.callback != callback_func]
