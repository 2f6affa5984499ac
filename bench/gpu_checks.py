"""What `bench.gpu` holds against something else on the device, and what it counts: wrong results, waits, own time."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from DeepCache import DeepCacheSDHelper as PublishedHelper
from torch.utils._python_dispatch import TorchDispatchMode

from deepcache_ext import DeepCacheSDHelper
from deepcache_ext.plan.estimators import ESTIMATORS, Copy
from deepcache_ext.unet.answers import Answers
from deepcache_ext.unet.calls import ask_same_content

from . import calls, overhead, peers, twins, unets
from .timing import Clock, Rival, ratio, rounds

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
WEBUI = [("sd15", FP16, FP16), ("sdxl", FP16, FP16), ("sd15", BF16, BF16), ("sd15", FP32, FP16), ("sd15", FP32, FP32)]
"""Net, dtype of its weights, and of autocast (fp32: none)."""
TWINS = [("sd15", FP16), ("sdxl", FP16), ("sd15", BF16), ("svd", FP16), ("ddpm-cifar10", FP32)]
TOO_MUCH = 1 << 50
BRANCHES = (0, 1, 5)


def _allocated(device: torch.device) -> int:
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _fail_once(block: torch.nn.Module, device: torch.device) -> None:
    """The device itself runs out of memory in this block's next call."""

    def ask(*_: Any) -> None:
        handle.remove()
        torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)

    handle = block.register_forward_pre_hook(ask)


# Right ----------------------------------------------------------------------------------------------------------


def webui(net: str, device: torch.device, weights: torch.dtype, cast: torch.dtype, side: int) -> dict[str, Any]:
    """A UNet of ldm or sgm through sessions, bit for bit against its forwards by hand. `wrong`: what was not equal."""
    unet = unets.make(net, device, weights)
    given = unets.inputs(net, 2, side, device, weights)
    wrong: list[str] = []
    kept: dict[int, int] = {}
    with calls.inference(device, cast):
        wanted, features = unets.full(unet, given, BRANCHES)
        for branch in BRANCHES:
            _webui_at(branch, unet, given, (wanted, features[branch]), device, wrong, kept)
    return {"wrong": wrong, "kept_bytes": kept}


def _webui_at(
    branch: int,
    unet: Any,
    given: unets.Inputs,
    by_hand: tuple[torch.Tensor, torch.Tensor],
    device: torch.device,
    wrong: list[str],
    kept: dict[int, int],
) -> None:
    wanted, feature = by_hand

    def same(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        if not torch.equal(got, expected):
            off = float((got - expected).abs().max() / expected.abs().max())
            wrong.append(f"branch {branch}, {what}: off by {off:.1e} of the largest value")

    live = unets.live(unet, given, branch, feature)  # also takes what the device's libraries keep for themselves
    before = _allocated(device)
    one = calls.Pass(unet, given, branch)
    one.session.decisions.estimator = Copy()
    same("full", one.evaluate(), wanted)
    kept[branch] = one.session.report.kept_bytes
    if kept[branch] != feature.nbytes:
        wrong.append(f"branch {branch}: {kept[branch]} bytes kept, not {feature.nbytes}")
    one.only_cached()
    one.hook()
    same("cached", one.evaluate(), live)
    _fail_once(unet.output_blocks[-1], device)
    try:
        one.evaluate()
        wrong.append(f"branch {branch}: no error where memory ran out")
    except RuntimeError:  # torch.cuda.OutOfMemoryError is one
        pass
    one.hook()
    same("after memory ran out", one.evaluate(), wanted)
    if one.session.report.cached_calls < 1 or one.session.report.off:
        wrong.append(f"branch {branch}: {'; '.join(one.session.report.lines())}")
    one.session.close()
    del one
    same("off again", unet(*(given[name] for name in ("x", "timesteps", "context", "y") if name in given)), wanted)
    if unet._forward_hooks or unet._forward_pre_hooks or "forward" in unet.__dict__:
        wrong.append(f"branch {branch}: something is left on the UNet")
    if (left := _allocated(device) - before) > 0:
        wrong.append(f"branch {branch}: {left} bytes are left on the device")


def twin(net: str, device: torch.device, dtype: torch.dtype, side: int) -> dict[str, Any]:
    """A UNet of diffusers: full and cached evaluations as the published helper makes them, then off again."""
    unet = twins.make(net, device, dtype)
    given = twins.inputs(net, 2, (side, side), device, dtype, frames=2)
    shared = {id(parameter): parameter for parameter in unet.parameters()}
    plain, wrong = peers.Runner(unet, given), []
    ours = peers.Runner(copy.deepcopy(unet, dict(shared)), given, DeepCacheSDHelper)
    theirs = peers.Runner(copy.deepcopy(unet, dict(shared)), given, PublishedHelper)
    with torch.no_grad():
        for branch in (0, 2):
            for runner in (plain, ours, theirs):
                runner.enable(3, branch)
            for number in range(4):
                outputs = [runner.evaluate() for runner in (ours, theirs, plain)]
                if not torch.equal(outputs[0], outputs[1]):
                    wrong.append(f"branch {branch}, evaluation {number}: not the helper's")
                if torch.equal(outputs[0], outputs[2]) != (number % 3 == 0):
                    wrong.append(f"branch {branch}, evaluation {number}: full or cached, and should not be")
            for runner in (ours, theirs):
                runner.disable()
            plain.enable(3, branch)
            ours.enable(1, branch)
            ours.disable()
            if not torch.equal(ours.evaluate(), plain.evaluate()):
                wrong.append(f"branch {branch}: off is not the plain UNet")
    return {"wrong": wrong}


# Nothing waits ----------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers that it reads. On CUDA also what torch itself warns of."""

    READS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.READS
        return func(*args, **(kwargs or {}))


@contextmanager
def _counted(device: torch.device) -> Iterator[Callable[[], int]]:
    with warnings.catch_warnings(record=True) as caught, Waits() as reads:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: max(reads.count, sum("called a synchronizing" in str(w.message) for w in caught))
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


class Renewed(calls.Pass):
    """A host that gathers the conditioning anew for each evaluation: equal in content, another object."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sets = [tuple(a if i == 1 else a.clone() for i, a in enumerate(self._arguments)) for _ in range(2)]

    def evaluate(self) -> torch.Tensor:
        self._sets.reverse()
        self._arguments = self._sets[0]
        return super().evaluate()


def waits(net: str, device: torch.device, dtype: torch.dtype, side: int) -> dict[str, Any]:
    """How often a full and a cached call of ours make the host wait, the UNet's own waits aside, with the same tensor
    as conditioning and with an equal one; and what one comparison of it takes of a cached call.
    """
    unet, given = unets.make(net, device, dtype), unets.inputs(net, 2, side, device, dtype)
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {}
    equal = given["context"].clone()
    seen = _count(device, lambda: (equal.tolist(), equal.tolist()))
    wrong = [f"of 2 waits {seen} were counted"] if device.type == "cuda" and seen != 2 else []
    with calls.inference(device, dtype):
        for name, kind in (("same", calls.Pass), ("equal", Renewed)):
            for estimator in ESTIMATORS:
                one = kind(unet, given, 0)
                one.estimate_by(estimator)
                one.evaluate()
                one.evaluate()
                one.unhook()
                own = _count(device, one.plain)
                one.hook()
                counts[f"full, {name} conditioning, {estimator}"] = _count(device, one.evaluate) - own
                one.only_cached()
                one.hook()
                one.evaluate()
                counts[f"cached, {name} conditioning, {estimator}"] = _count(device, one.evaluate) - own
                if not seconds:
                    comparison = Rival("comparison", lambda: ask_same_content([given["context"]], [equal], Answers())())
                    seconds = rounds(
                        Clock(device),
                        [Rival("cached", one.evaluate), comparison],
                        60,
                        budget=10 if device.type == "cuda" else 0.1,
                    )
                report = one.session.close()
                if report.off or report.cached_calls < 2 or report.full_calls > 3:
                    wrong.append(f"{name} conditioning, {estimator}: {'; '.join(report.lines())}")
    part = ratio(seconds, "comparison", "cached")
    return {"wrong": wrong, "synchronisations": counts, "comparison_over_cached": part.as_json()}


def _count(device: torch.device, run: Callable[[], object]) -> int:
    with _counted(device) as count:
        run()
        return count()


def python(device: torch.device, samples: int) -> dict[str, Any]:
    """Seconds of our own Python a call: in all, and in tick and hooks, on the host."""
    with calls.inference(device, FP32):
        found = overhead.measure(Clock(device), device, samples)
    return {kind: {"total": one.total, **one.parts} for kind, one in found.items()}
