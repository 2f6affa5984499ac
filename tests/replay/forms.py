"""The form of recorded events, as README.md of `tests/data/host-traces` has it, and what stands in for another form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
Check = Callable[[Any], bool]

HOOKS = frozenset(
    {
        "setup",
        "before_process",
        "process",
        "process_images",
        "before_process_batch",
        "after_extra_networks_activate",
        "process_batch",
        "before_hr",
        "process_before_every_sampling",
        "process_before_every_step",
        "on_mask_blend",
        "post_sample",
        "postprocess_batch",
        "postprocess_batch_list",
        "postprocess_image",
        "postprocess_maskoverlay",
        "postprocess_image_after_composite",
        "before_process_init_images",
        "postprocess",
    }
)
"""Script hooks of all four hosts."""

CALLBACKS = frozenset(
    {
        "cfg_denoiser",
        "cfg_denoised",
        "cfg_after_cfg",
        "model_loaded",
        "before_process",
        "after_process",
        "image_grid",
        "before_image_saved",
        "image_saved",
        "extra_noise",
        "before_token_counter",
    }
)
"""Callbacks of all four hosts that a generation may fire."""

NOT_ON_P = frozenset({"sampler", "sd_model", "extra_generation_params", "comments", "comment", "update"})
"""Attributes of `p` that the stand-in has itself."""


# Values -----------------------------------------------------------------------------


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def few(value: Any) -> bool:
    """As many as one may make of something."""
    return count(value) and 0 < value <= 1000


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def text(value: Any) -> bool:
    return isinstance(value, str)


def name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def mapping(value: Any) -> bool:
    return isinstance(value, dict)


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(text, value))


def names(value: Any) -> bool:
    return isinstance(value, (list, dict)) and all(map(name, value))


def numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(number, value))


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9  # nan is not


def shape(rank: int, most: int = 2**24) -> Check:
    def fits(value: Any) -> bool:
        if not isinstance(value, list) or len(value) != rank or not all(count(size) and size for size in value):
            return False
        return math.prod(value) <= most

    return fits


def latent(value: Any) -> bool:
    """(rows, channels, height, width), no larger than what self-attention can be computed of in a few gigabytes."""
    return shape(4, 2**20)(value) and value[0] * (value[2] * value[3]) ** 2 <= 2**32


def prompts(value: Any) -> bool:
    """Conditioning in `cfg_denoiser`: its shape, or shapes by key."""
    return shape(3)(value.get("crossattn") if isinstance(value, dict) else value)


def marks(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 100 and all(map(count, value))


# What each event needs -----------------------------------------------------------------------------

VITAL = object()


@dataclass(frozen=True)
class Field:
    """`fits`: the form. `instead`: what stands in for another, a value or a function of the event as read so far;
    `VITAL`: nothing can. `needed`: whether it may be missing or null.
    """

    fits: Check
    instead: Any = None
    needed: bool = True


@dataclass(frozen=True)
class Form:
    """Fields that are looked at, and others that README.md describes."""

    fields: Mapping[str, Field]
    others: Sequence[str] = ("ev", "name")


def _rows(event: Event) -> int:
    return int(event["x"][0])


P = {
    "is_hr_pass": Field(flag, needed=False),
    "is_refiner_pass": Field(flag, needed=False),
    "batch_size": Field(few, needed=False),
    "steps": Field(few, needed=False),
    "hr_second_pass_steps": Field(count, needed=False),
    "refiner_steps": Field(count, needed=False),
    "sampler_name": Field(text, needed=False),
}
"""Attributes of `p` that the players or the extension look at; any other is handed on."""

HOOK = Form(
    {
        "args": Field(lambda value: isinstance(value, list), ["bool", "int"]),
        "kw": Field(lambda value: mapping(value) and names(value), {}),
        "p": Field(mapping, {}),
    }
)
DENOISER = Form(
    {
        "x": Field(latent, VITAL),
        "sigma": Field(numbers, lambda event: [1.0] * _rows(event)),
        "sampling_step": Field(count, 0),
        "total_sampling_steps": Field(few, 20),
        "denoiser_step": Field(count, 0),
        "denoiser_total_steps": Field(few, lambda event: event["total_sampling_steps"]),
        "denoiser_class": Field(name, "CFGDenoiserKDiffusion"),
        "text_cond": Field(prompts, lambda event: [max(1, _rows(event) // 2), 77, 64]),
        "denoiser_p_is_hr_pass": Field(flag, needed=False),
    },
    ("ev", "name", "text_uncond"),
)
LOADED = Form({"id": Field(count, 0), "weights": Field(count, 0)}, ("ev", "name", "model", "unet_class"))
PROCESSING = Form(
    {"args": Field(lambda value: names(value) and bool(value), ["StableDiffusionProcessing"])},
    ("ev", "name", "kw"),
)
UNET = Form(
    {
        "x": Field(latent, VITAL),
        "id": Field(count, 0),
        "weights": Field(count, 0),
        "t": Field(numbers, lambda event: [500.0] * _rows(event)),
        "context": Field(shape(3), lambda event: [_rows(event), 77, 64]),
        "y": Field(shape(2), needed=False),
        "nargs": Field(count, 2),
        "kwargs": Field(texts, ["context"]),
        "instance_forward": Field(text, needed=False),
    },
    ("ev", "error", "control", "state_step", "state_steps"),
)
OPTIONS = Form(
    {
        "x": Field(latent, VITAL),
        "cond_or_uncond": Field(marks, lambda event: [1, 0] if _rows(event) % 2 == 0 else [0]),
        "sigmas": Field(numbers, lambda event: [1.0] * _rows(event)),
        "keys": Field(texts, []),
    }
)
ADDED = Form({"text_embeds": Field(shape(2), VITAL), "time_ids": Field(shape(2), VITAL)}, ())
INNER = Form(
    {"x": Field(latent, VITAL), "t": Field(numbers, VITAL), "context": Field(shape(3), VITAL)}, ("ev", "id", "kwargs")
)
UNETS = {
    "a1111": UNET,
    "forge": Form(
        {
            **UNET.fields,
            "kwargs": Field(texts, ["context", "control", "transformer_options"]),
            "transformer_options": Field(mapping, {}),
        },
        UNET.others,
    ),
    "sdnext": Form(
        {
            **UNET.fields,
            "t": Field(numbers, [500.0]),
            "y": Field(mapping, needed=False),
            "kwargs": Field(texts, ["encoder_hidden_states", "added_cond_kwargs"]),
            "pipe": Field(name, "StableDiffusionPipeline"),
            "scheduler": Field(name, "EulerDiscreteScheduler"),
            "scheduler_timesteps": Field(few, 1),
            "num_timesteps": Field(few, lambda event: event["scheduler_timesteps"]),
            "p": Field(mapping, {}),
        },
        (*UNET.others, "guidance_scale", "pipe_unet_is_self"),
    ),
}
NAMED = {"cfg_denoiser": DENOISER, "model_loaded": LOADED, "before_process": PROCESSING, "after_process": PROCESSING}
"""Callbacks of which more matters than that they came."""

PROMPTS = ("prompt", "negative_prompt", "sampler_name", "hr_sampler_name")
"""What a request says in words, where it says it."""

FAMILIES = {"a1111": "a1111", "forge": "forge", "reforge": "forge", "sdnext": "sdnext"}
"""By the host's name without its version: hosts whose calls look alike."""
