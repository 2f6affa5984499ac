"""Forge's, reForge's and Classic's protocols: each cached call against one that looks every place up."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from deepcache_ext.unet.forge import PARAMETERS, ForgeLadder, Shifted
from tests import forge_unets
from tests.driver import TRUSTED, drifting, evaluate, scaled
from tests.forge_unets import PROTOCOLS, ForgeUNet, by_hand
from tests.unets import traces

BRANCHES = (0, 1, 3, 8, 10, 11)
SIZE = (16, 16)
UNETS = {protocol: forge_unets.make(protocol) for protocol in PROTOCOLS}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def options_of(rows: int = 1, marks: tuple[int, ...] = (1, 0), **more: Any) -> dict[str, Any]:
    """As the host makes them for each call."""
    marked = [mark for mark in marks for _ in range(rows)]
    return {
        "cond_or_uncond": list(marks),
        "sigmas": torch.ones(rows),
        "cond_mark": torch.tensor(marked),
        "cond_indices": [i for i, mark in enumerate(marked) if mark == 0],
        "uncond_indices": [i for i, mark in enumerate(marked) if mark == 1],
        **more,
    }


def arguments(k: int = 0, rows: int = 2, **more: Any) -> dict[str, Any]:
    given = {
        "x": drifting(1, size=SIZE)(k).repeat(rows, 1, 1, 1),
        "timesteps": torch.full((rows,), 900.0 - k),
        "context": noise(rows, 7, 32, seed=1),
        "control": None,
        "transformer_options": options_of(rows // 2),
    }
    return {**given, **more}


@functools.lru_cache
def skip_shapes(rows: int) -> list[torch.Size]:
    """The outputs of the input blocks."""
    unet, shapes = forge_unets.make(), []
    for block in unet.input_blocks:
        block.register_forward_hook(lambda *seen: shapes.append(seen[2].shape))
    unet(**arguments(rows=rows))
    return shapes


def residuals(k: int, rows: int = 2, short: int = 0) -> dict[str, list[torch.Tensor | None]]:
    """Lists as a control network leaves them: popped from the end, where those of the first blocks are.
    The last `short` blocks of a side get none, others None.
    """
    shapes = skip_shapes(rows)
    made: list[torch.Tensor | None] = [
        noise(*shape, seed=100 * k + i) * 0.3 if i % 3 != 2 else None for i, shape in enumerate(shapes)
    ]
    return {
        "input": [None if t is None else t * 0.5 for t in made[::-1]][short:],
        "middle": [noise(*shapes[-1], seed=100 * k + 50)],
        "output": made[short:],
    }


def a_session(branch: int, interval: int = 3, deeper: int = 0, trusted: Any = TRUSTED) -> Session:
    return Session(UniformPlan(interval, branch, 9, deeper=deeper), Copy(), ladder=ForgeLadder, trusted=trusted)


def compare(
    protocol: str,
    branch: int,
    given: Callable[[int], dict[str, Any]],
    evaluations: int = 5,
    seen: list[Any] | None = None,
    interval: int = 3,
    deeper: int = 0,
) -> Session:
    """Each call of a run against `by_hand`; what `seen` records in both must be the same."""
    unet, cache = UNETS[protocol], a_session(branch, interval, deeper)
    features: dict[int, torch.Tensor] = {}
    apart = 2 * interval if deeper else interval
    clean = traces(unet)
    cache.attach(unet)
    for k in range(evaluations):
        call = given(k)
        before = copy.deepcopy({name: call[name] for name in ("control", "transformer_options")}) if k % apart else None
        latent = drifting(1, size=SIZE)(k)
        (got,) = evaluate(cache, unet, k, latent, call)
        if before is not None:
            unchanged(before, call)
        ours = list(seen or ())
        if seen is not None:
            seen.clear()
        fresh = given(k)
        fresh["x"] = scaled(fresh["x"], k)
        now = branch if k % interval else deeper if k % apart else None
        run = {} if now != branch else dict(features)
        expected, _ = by_hand(unet, now if now is not None else 11, features.get(now), features=run, **fresh)
        features = {branch: run[branch], deeper: run.get(deeper, features.get(deeper))}
        assert torch.equal(got, expected), f"evaluation {k}"
        if seen is not None:
            assert len(ours) == len(seen) > 0
            assert all(same(one, other) for one, other in zip(ours, seen, strict=True)), f"evaluation {k}"
            seen.clear()
    report = cache.close()
    assert report.cached_calls == sum(k % apart != 0 for k in range(evaluations))
    assert not report.misses
    assert traces(unet) == clean
    return cache


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def unchanged(before: dict[str, Any], call: dict[str, Any]) -> None:
    assert call["transformer_options"].keys() == before["transformer_options"].keys()
    for name, value in before["transformer_options"].items():
        if isinstance(value, (torch.Tensor, int, tuple)):
            assert same(call["transformer_options"][name], value)
    if before["control"] is not None:
        assert {side: len(values) for side, values in call["control"].items()} == {
            side: len(values) for side, values in before["control"].items()
        }
        for side, values in before["control"].items():
            for was, now in zip(values, call["control"][side], strict=True):
                assert (was is None) == (now is None)
                assert was is None or torch.equal(was, now), side


# Every protocol, every branch ---------------------------------------------------------------------------------


@pytest.mark.sample
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_calls(protocol: str, branch: int) -> None:
    compare(protocol, branch, arguments)


@pytest.mark.sample
@pytest.mark.parametrize(("branch", "deeper"), [(0, 5), (2, 8), (0, 11), (7, 8)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_deeper_branch(protocol: str, branch: int, deeper: int) -> None:
    cache = compare(
        protocol, branch, lambda k: arguments(k, control=residuals(k)), evaluations=7, interval=2, deeper=deeper
    )
    assert cache.report.medium_calls == 2


@pytest.mark.sample
@pytest.mark.parametrize("short", [0, 1, 4])
@pytest.mark.parametrize("branch", [0, 3, 11])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_control_residuals(protocol: str, branch: int, short: int) -> None:
    compare(protocol, branch, lambda k: arguments(k, control=residuals(k, short=short)))


@pytest.mark.sample
@pytest.mark.parametrize("branch", [0, 3, 10, 11])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_patches_see_what_they_see_in_full(protocol: str, branch: int) -> None:
    """Every kind of patch, writing in place, and every look at `block`, `transformer_index` and the rest."""
    seen: list[Any] = []

    def look(name: str, options: Any, *tensors: torch.Tensor) -> None:
        places = {key: options.get(key) for key in ("block", "transformer_index", "original_shape", "cond_or_uncond")}
        seen.append((name, places, [tensor.clone() for tensor in tensors]))

    def of_input(h: Any, options: Any) -> Any:
        look("input", options, h)
        return h.mul_(1.01)

    def of_output(h: Any, skip: Any, options: Any) -> Any:
        look("output", options, h, skip)
        h[:, : h.shape[1] // 2] *= 1.1
        skip *= 0.9
        return h, skip

    def of_attention(n: Any, context: Any, value: Any, extra: Any) -> Any:
        look("attn", extra, n)
        return n, context, value * (1 + 0.01 * extra["transformer_index"])

    def of_attention_output(n: Any, extra: Any) -> Any:
        look("attn output", extra, n)
        return n * 1.02

    def replaced(q: Any, k: Any, v: Any, extra: Any) -> Any:
        look("replaced", extra, q)
        return v.mean(1, keepdim=True).expand_as(q) * (1 + extra["block"][1])

    replaced.__module__ = "lib_ipadapter.IPAdapterPlus"
    everywhere: dict[Any, Any] = {(side, i): replaced for side in ("input", "output") for i in (1, 4, 8)}
    patches = {
        "input_block_patch": [of_input],
        "input_block_patch_after_skip": [of_input],
        "output_block_patch": [of_output],
        "attn1_patch": [of_attention],
        "attn2_patch": [of_attention],
        "attn1_output_patch": [of_attention_output],
    }

    def given(k: int) -> dict[str, Any]:
        more = {"patches": patches, "patches_replace": {"attn2": {**everywhere, ("middle", 0): replaced}}}
        return arguments(k, transformer_options=options_of(**more), control=residuals(k))

    compare(protocol, branch, given, seen=seen)


@pytest.mark.sample
@pytest.mark.parametrize("branch", [0, 3, 10, 11])
@pytest.mark.parametrize("protocol", ["forge", "classic"])
def test_block_modifiers(protocol: str, branch: int) -> None:
    """Those of the live blocks, of the output layers, and of the boundary's output."""
    seen: list[Any] = []

    def modifier(h: Any, when: str, options: Any) -> Any:
        side, place = options["block"]
        if (side, place) != ("middle", 0) or when == "after":  # before it there is nothing to modify in a cached call
            seen.append((when, side, place, options["transformer_index"], h.clone()))
        return h * (1 + 0.01 * place) + (0.1 if side == "output" else 0.0)

    modifier.__module__ = "preprocessor_tile.py"

    def given(k: int) -> dict[str, Any]:
        return arguments(k, transformer_options=options_of(block_modifiers=[modifier]))

    compare(protocol, branch, given, seen=None if branch == 11 else seen)


def test_positional_arguments() -> None:
    unet, cache, feature = UNETS["forge"], a_session(0, interval=2), None
    cache.attach(unet)
    for k in range(2):
        given = {**arguments(k, control=residuals(k)), "x": scaled(arguments(k)["x"], k)}
        expected, feature = by_hand(unet, 0, feature, **given)
        cache.tick(functools.partial(drifting(1, size=SIZE), k), 14.6 * 0.7**k)
        got = unet(*(given.get(name) for name in PARAMETERS))
        assert torch.equal(got, expected)
    assert cache.close().cached_calls == 1


# What distinguishes calls -------------------------------------------------------------------------------------


def cached_calls(*calls: Callable[[int], dict[str, Any]], protocol: str = "forge", trusted: Any = TRUSTED) -> Session:
    """Evaluations 0, 1, ... of one call each; all but the first are planned cached."""
    cache = a_session(0, interval=len(calls), trusted=trusted)
    unet = UNETS[protocol]
    cache.attach(unet)
    for k, given in enumerate(calls):
        evaluate(cache, unet, k, drifting(1, size=SIZE)(k), given(k))
    cache.close()
    return cache


def test_uncond_alone_is_not_cond_alone() -> None:
    def call(k: int, mark: int) -> dict[str, Any]:
        return arguments(k, rows=1, transformer_options=options_of(1, (mark,)))

    assert cached_calls(lambda k: call(k, 0), lambda k: call(k, 0)).report.cached_calls == 1
    assert cached_calls(lambda k: call(k, 0), lambda k: call(k, 1)).report.cached_calls == 0


def test_a_perturbed_call_is_another_one_wherever_it_stands() -> None:
    """PAG asks once more with another attention; with NGMS that call stands second at times, first at others."""

    def perturbed(q: Any, k: Any, v: Any, extra: Any) -> Any:
        return v

    perturbed.__module__ = "forge_perturbed_attention.py"

    def plain(k: int) -> dict[str, Any]:
        return arguments(k, rows=1, transformer_options=options_of(1, (0,)))

    def with_patch(k: int) -> dict[str, Any]:
        more = {"patches_replace": {"attn1": {("middle", 0): perturbed}}}
        return arguments(k, rows=1, transformer_options=options_of(1, (0,), **more))

    assert cached_calls(plain, with_patch).report.cached_calls == 0
    assert cached_calls(with_patch, plain).report.cached_calls == 0
    assert cached_calls(with_patch, with_patch).report.cached_calls == 1


def test_a_call_about_another_latent_has_no_slot() -> None:
    """SAG asks about a blurred latent, in a call of the latent's own shape."""

    def other(k: int) -> dict[str, Any]:
        return arguments(k, rows=1, x=noise(1, 4, *SIZE, seed=k), transformer_options=options_of(1, (1,)))

    cache = cached_calls(other, other)
    assert cache.report.misses == {Reason.UNPLACED: 1}


def test_residuals_that_come_or_go_need_a_full_call() -> None:
    def controlled(k: int) -> dict[str, Any]:
        return arguments(k, control=residuals(k))

    assert cached_calls(controlled, controlled).report.cached_calls == 1
    assert cached_calls(controlled, arguments).report.misses == {Reason.FIRST_SEEN: 1}
    assert cached_calls(arguments, controlled).report.misses == {Reason.FIRST_SEEN: 1}


@pytest.mark.parametrize("name", ["patches_replace", "block_modifiers", "group_norm_wrapper", "wrappers"])
def test_unknown_functions_that_may_act_across_blocks_run_in_full(name: str) -> None:
    def function(*args: Any) -> Any:
        if name == "block_modifiers":
            return args[0]
        return args[2]

    options = {
        "patches_replace": {"attn1": {("middle", 0): function}},
        "block_modifiers": [function],
        "group_norm_wrapper": function,
        "wrappers": {"diffusion_model": {None: [function]}},
    }

    def given(k: int) -> dict[str, Any]:
        return arguments(k, transformer_options=options_of(**{name: options[name]}))

    cache = cached_calls(given, given, given, trusted=())
    assert cache.report.cached_calls == 0
    assert cache.report.misses == {Reason.PATCHED: 2} and cache.report.foreign == {"tests.unet.test_forge": 3}
    assert "(tests.unet.test_forge)" in str(cache.report.lines())
    assert cached_calls(given, given, given).report.cached_calls == 2, "the user calls it harmless"
    assert cache.report.kept_bytes == 0


def test_modifiers_of_the_inside_run_in_full() -> None:
    """Where a block's layers are gone through, a modifier would see ours as one of them."""
    layers: list[Any] = []

    def modifier(h: Any, when: str, layer: Any, place: int, block: Any, options: Any) -> Any:
        layers.append(layer)
        return h * 1.01

    def given(k: int) -> dict[str, Any]:
        return arguments(k, transformer_options=options_of(block_inner_modifiers=[modifier]))

    cache = cached_calls(given, given, protocol="classic")
    assert cache.report.misses == {Reason.PATCHED: 1}
    assert all(isinstance(layer, torch.nn.Module) for layer in layers)


def test_another_extensions_forward_runs_in_full() -> None:
    unet = forge_unets.make()
    unet.forward = lambda *args, **kwargs: ForgeUNet.forward(unet, *args, **kwargs)  # type: ignore[method-assign]
    cache = a_session(0)
    cache.attach(unet)
    for k in range(2):
        evaluate(cache, unet, k, drifting(1, size=SIZE)(k), arguments(k))
    assert cache.close().misses == {Reason.PATCHED: 1}


def test_a_call_without_options_runs_in_full() -> None:
    ladder = ForgeLadder(UNETS["forge"])
    given = arguments()
    assert not ladder.call((), given).whole
    del given["transformer_options"]
    assert ladder.call((), given).whole


def test_a_forward_that_counts_in_a_copy_runs_again_in_full() -> None:
    """Its patches would read the wrong places."""

    class Copying(ForgeUNet):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            kwargs["transformer_options"] = kwargs["transformer_options"].copy()
            return super().forward(*args, **kwargs)

    unet = forge_unets.make()
    unet.__class__ = Copying
    cache = a_session(0)
    cache.attach(unet)
    for k in range(2):
        (got,) = evaluate(cache, unet, k, drifting(1, size=SIZE)(k), arguments(k))
        expected, _ = by_hand(unet, 0, **{**arguments(k), "x": scaled(arguments(k)["x"], k)})
        assert torch.equal(got, expected)
    assert cache.close().misses == {Reason.WALKS: 1}


def test_shifted_options_copy_as_what_they_stand_for() -> None:
    shifted = Shifted({"sigmas": 1}, 11, 5)
    shifted["block"] = ("output", 0)
    copied = copy.deepcopy(shifted)
    assert type(copied) is dict
    assert copied == {"sigmas": 1, "block": ("output", 11)}
