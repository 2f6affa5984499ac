"""Pictures from the embedded host, with the very extension that users run."""

from __future__ import annotations

import hashlib
import random
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from deepcache_ext.plan.strategies import DEEPER
from deepcache_ext.settings.fields import FIELD
from demo.webui.boot import MODELS, REPOSITORY, Host, boot
from demo.webui.checkpoints import Checkpoint, available

from .grid import Pair

FIRST_SEED = 1000
CODE = (
    "deepcache_ext/**/*.py",
    "demo/webui/*.py",
    "demo/webui/modules/sd_*.py",
    "demo/webui/modules/processing*.py",
    "demo/webui/modules/prompt_parser.py",
    "demo/webui/modules/rng.py",
)
"""What decides how a picture comes out."""

WORDS = (
    "a red car",
    "a blue house",
    "a green tree",
    "two cats",
    "a lake at night",
    "a yellow bird",
    "an old bridge",
    "a bowl of fruit",
)
"""For checkpoints that say no words of their own: with random weights any will do."""


class NotActive(RuntimeError):
    """The host does not say that DeepCache ran."""


@dataclass(frozen=True)
class Made:
    """Decoded pictures [B, 3, h, w] in 0..1, before rounding, and how they came about.

    `calls`: calls of the UNet. `seconds`: processor time of the whole generation. Of a cached one further:
    evaluations, how many of them in full, and the branch and estimator that the host reports; how many ran a deeper
    branch, and which.
    """

    pictures: torch.Tensor
    calls: int
    seconds: float
    evaluations: int = 0
    full: int = 0
    branch: int = 0
    estimator: str = ""
    deeper: int = 0
    deeper_branch: int = 0


def checkpoint_called(model: str) -> Checkpoint:
    """By its name, or by a short one as `boot` takes it."""
    return available()[MODELS.get(model, model)]


def pairs_for(checkpoint: Checkpoint, count: int, tuned: bool = False) -> list[Pair]:
    """`count` prompts in the checkpoint's own words, each with its own seed; always the same ones.

    They are of the half of the words that the strategies were not tuned on (`tuned=True` gives that half); every
    prompt comes once before one comes twice.
    """
    prompts = list(checkpoint.trained.get("prompts") or WORDS)
    random.Random(0).shuffle(prompts)
    half = len(prompts) // 2
    prompts = prompts[:half] if tuned else prompts[half:]
    return [Pair(i, prompts[i % len(prompts)], FIRST_SEED + i) for i in range(count)]


def fingerprint(checkpoint: Checkpoint, size: int) -> str:
    """Changes with all that decides a picture or its count of evaluations: weights, size, the code involved.

    Prompts, seeds and guidance are recorded with each picture instead, and so may grow in number.
    """
    digest = hashlib.sha256(repr((checkpoint.name, checkpoint.seed, size, torch.__version__)).encode())
    code = [path for pattern in CODE for path in REPOSITORY.glob(pattern)]
    weights = [checkpoint.weights, checkpoint.weights.with_suffix(".json")] if checkpoint.weights else []
    for path in sorted(code) + weights:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


class Studio:
    """A running host and one way of asking it; use it in a `with` statement."""

    def __init__(self, checkpoint: Checkpoint, size: int) -> None:
        self.checkpoint, self.size = checkpoint, size
        self._host: Host | None = None

    def __enter__(self) -> Studio:
        self._host = boot(REPOSITORY, self.checkpoint.name)
        self.make("Euler", 2, 1.0, pairs_for(self.checkpoint, 1))  # the first calls allocate, and would count as slow
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._host is not None
        self._host.close()

    def make(
        self, sampler: str, steps: int, guidance: float, pairs: Sequence[Pair], args: Mapping[str, Any] | None = None
    ) -> Made:
        """One generation of the pictures of `pairs`, whose seeds are consecutive; without `args` DeepCache is off."""
        assert self._host is not None and all(p.seed == pairs[0].seed + i for i, p in enumerate(pairs))
        request = {
            "prompt": [p.prompt for p in pairs],
            "seed": pairs[0].seed,
            "batch_size": len(pairs),
            "steps": steps,
            "sampler_name": sampler,
            "cfg_scale": guidance,
            "width": self.size,
            "height": self.size,
        }
        if args is not None:
            request["alwayson_scripts"] = {"DeepCache": {"args": [{"enabled": True, **args}]}}
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        model, decoded = self._host.module("shared").sd_model, []

        def keep(latent: torch.Tensor) -> torch.Tensor:
            decoded.append(type(model).decode_first_stage(model, latent))
            return decoded[-1]

        model.decode_first_stage = keep  # the host gives rounded pictures only
        handle = self._host.unet.register_forward_pre_hook(count)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Should have t")  # torchsde, about the last digit of a noise level
                begun = time.process_time()
                processed = self._host.txt2img(**request)
                seconds = time.process_time() - begun
        finally:
            handle.remove()
            del model.decode_first_stage
        pictures = ((torch.cat(decoded) + 1) / 2).clamp(0, 1)
        told = processed.extra_generation_params
        if args is None:
            return Made(pictures, calls, seconds)
        return Made(pictures, calls, seconds, *_counts(told, calls))


def _counts(told: Mapping[str, Any], calls: int) -> tuple[int, int, int, str, int, int]:
    """As `Made` has them: what the infotext says, and only if nothing is odd."""
    found = re.fullmatch(r"(\d+) of (\d+) full(?: \+ (\d+) medium)?", str(told.get("DeepCache", "")))
    if not found or int(found[2]) != calls:
        raise NotActive(f"the UNet was called {calls} times; the infotext says {dict(told)}")
    deeper_branch = int(told.get(FIELD["deeper_branch_id"].infotext, DEEPER[12])) if found[3] else 0
    return (
        int(found[2]),
        int(found[1]),
        int(told["DeepCache branch"]),
        str(told["DeepCache estimator"]),
        int(found[3] or 0),
        deeper_branch,
    )
