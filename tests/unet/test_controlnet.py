"""Control networks on cached calls: the live blocks alone give the picture that the whole network gives."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from deepcache_ext.hosts.a1111.controlnet import control_units
from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from deepcache_ext.unet.controlnet import ControlledLadder, ControlUnit
from deepcache_ext.unet.ldm import Ladder
from tests import unets
from tests.controlnet import Adapter, ControlNet, Hook, Pluggable, Unit, counted
from tests.driver import LAYOUT, TRUSTED, drifting, evaluate

DEPTH = {LAYOUT: 6, "sdxl": 9}


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(params=[LAYOUT])
def unet(request):
    """A UNet that must look untouched when the test is over."""
    unet = unets.make(request.param)
    unet.layout = request.param
    before = unets.traces(unet)
    yield unet
    unet.__dict__.pop("forward", None)
    assert unets.traces(unet) == before


def hint(seed=0, size=(8, 8)):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)).expand(2, -1, -1, -1)


def network(layout=LAYOUT, seed=1, **options):
    return Pluggable(ControlNet(layout, seed, **options))


def cached(unet, hook, evaluations=6, interval=3, branch=0, live=True, estimator=None, units=control_units, deeper=0):
    """Outputs and report of a pass, with control networks left whole or cut to their live blocks."""
    ladder = (lambda unet: ControlledLadder(unet, units)) if live else Ladder
    plan = UniformPlan(interval, branch, evaluations, deeper=deeper)
    session = Session(plan, estimator or Copy(), ladder=ladder, trusted=TRUSTED)
    latent, arguments = drifting(2), unets.inputs(unet.layout, size=(8, 8))
    if hook is not None:
        hook.hook(unet)
    session.attach(unet)
    outputs = []
    for k in range(evaluations):
        if hook is not None:
            hook.begin_evaluation(k / evaluations)
        x = torch.cat([latent(k), arguments["x"][:, 4:]], dim=1)
        outputs += evaluate(session, unet, k, latent(k), {**arguments, "x": x})
    if hook is not None:
        hook.restore(unet)
    return outputs, session.close()


def equal(one, other):
    return all(map(torch.equal, one, other))


def untouched(*networks):
    for plugged in networks:
        for module in plugged.modules():
            assert not module._forward_pre_hooks and not module._forward_hooks, module
        assert not {"input_blocks", "zero_convs", "middle_block", "middle_block_out"} & set(vars(plugged.control_model))


UNITS = {
    "balanced": {},
    "weak": {"weight": 0.3},
    "my prompt is more important": {"soft_injection": True},
    "controlnet is more important": {"soft_injection": True, "cfg_injection": True},
    "advanced weighting": {"advanced_weighting": [0.1 * i for i in range(7)]},
    "global average pooling": {"pooling": True},
    "region mask": {"mask": torch.eye(8)[None, None]},
}


@pytest.mark.sample("three-levels-balanced", "three-levels-global average pooling", "three-levels-region mask")
@pytest.mark.parametrize("options", UNITS.values(), ids=UNITS)
def test_live_is_whole_in_every_control_mode(unet, options):
    plugged = network()
    hook = Hook([Unit(plugged, hint(), **options)])
    live, report = cached(unet, hook)
    whole, _ = cached(unet, hook, live=False)
    plain, _ = cached(unet, None)
    assert equal(live, whole)
    assert not any(map(torch.equal, live, plain))  # it acts, on cached calls too
    assert (report.full_calls, report.cached_calls, report.misses) == (2, 4, {})
    untouched(plugged)


@pytest.mark.sample("three-levels-3")
@pytest.mark.parametrize("deeper", [1, 3, 5])
def test_live_is_whole_with_a_deeper_branch(unet, deeper):
    plugged = network()
    hook = Hook([Unit(plugged, hint())])
    live, report = cached(unet, hook, 8, 2, deeper=deeper)
    whole, _ = cached(unet, hook, 8, 2, live=False, deeper=deeper)
    one_branch, _ = cached(unet, hook, 8, 2)
    assert equal(live, whole)
    assert [torch.equal(*pair) for pair in zip(live, one_branch, strict=True)] == [True, True, False, False] * 2
    assert (report.full_calls, report.cached_calls, report.medium_calls, report.misses) == (2, 6, 2, {})
    untouched(plugged)


@pytest.mark.sample
@pytest.mark.parametrize("unet", [LAYOUT, "sdxl"], indirect=True)
@pytest.mark.parametrize("which", ["shallowest", "middle", "last but one", "deepest"])
def test_live_is_whole_at_every_branch(unet, which):
    depth = DEPTH[unet.layout]
    branch = {"shallowest": 0, "middle": depth // 2, "last but one": depth - 2, "deepest": depth - 1}[which]
    plugged = network(unet.layout)
    hook, counts = Hook([Unit(plugged, hint())]), counted(plugged.control_model)
    live, report = cached(unet, hook, branch=branch)
    # 2 full calls and 4 cached ones; the deepest branch's boundary is the middle block, whose residual is then live.
    skips = branch < depth - 1
    expected = {f"{name}.{i}": 6 if i <= branch else 2 for name in ("input_blocks", "zero_convs") for i in range(depth)}
    assert counts == {**expected, "middle_block": 2 if skips else 6}
    assert report.cached_calls == 4
    assert equal(live, cached(unet, hook, branch=branch, live=False)[0])


def test_cached_calls_by_hand(unet):
    """The reference shares nothing with the ladder: block by block, with the whole control network's residuals."""
    plugged = network()
    hook = Hook([Unit(plugged, hint(), weight=0.7)])
    outputs, _ = cached(unet, hook, evaluations=3, branch=1)
    latent, arguments = drifting(2), unets.inputs(LAYOUT, size=(8, 8))
    first_live = len(unet.output_blocks) - 2
    given = []
    for k, output in enumerate(outputs):
        now = {**arguments, "x": latent(k) / ((14.6 * 0.7**k) ** 2 + 1) ** 0.5}
        residuals = [0.7 * r for r in plugged(hint=hint(), **now)]
        emb = unet.time_embed(unets.timestep_embedding(now["timesteps"], unet.model_channels, repeat_only=False))
        h, skips = now["x"], []
        for block in list(unet.input_blocks)[: len(unet.input_blocks) if k == 0 else 2]:
            h = block(h, emb, now["context"])
            skips.append(h)
        if k == 0:
            h = unet.middle_block(h, emb, now["context"]) + residuals[-1]
            for i, block in enumerate(list(unet.output_blocks)[:first_live]):
                h = block(torch.cat([h, skips.pop() + residuals[5 - i]], 1), emb, now["context"])
            given.append(h.clone())
        h = given[0]
        for i in (1, 0):
            h = unet.output_blocks[5 - i](torch.cat([h, skips.pop() + residuals[i]], 1), emb, now["context"])
        assert torch.equal(output, unet.out(h)), k


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_another_type(unet, dtype):
    """ControlNet runs its networks in half precision and casts the residuals back."""
    plugged = network(residual_type=dtype)
    hook, counts = Hook([Unit(plugged, hint())]), counted(plugged.control_model)
    live, _ = cached(unet, hook)
    assert counts["middle_block"] == 2
    assert equal(live, cached(unet, hook, live=False)[0])


@pytest.mark.parametrize("unet", ["inpaint"], indirect=True)
def test_an_inpainting_model(unet):
    """Nine channels at the UNet, four at the control network."""
    plugged = network("sd1")
    hook, counts = Hook([Unit(plugged, hint())]), counted(plugged.control_model)
    live, report = cached(unet, hook, branch=3)
    assert report.cached_calls == 4
    assert (counts["input_blocks.3"], counts["input_blocks.4"]) == (6, 2)
    assert equal(live, cached(unet, hook, branch=3, live=False)[0])


def test_reference_adain(unet):
    """Blocks that remember, in the walk of the reference, what they bring to the other walk: patched one by one."""
    bank, writing = {}, []
    patched = [unet.middle_block, *unet.input_blocks[2:], *unet.output_blocks]

    def adain(block):
        def forward(*args, original=block.forward):
            h = original(*args)
            mean = h.mean(dim=(2, 3), keepdim=True)
            if writing:
                bank[block] = mean
            return h if writing else h - mean + bank[block]

        return forward

    def twice(x, timesteps, context):
        writing.append(True)
        type(unet).forward(unet, other, timesteps, context)
        writing.clear()
        output = type(unet).forward(unet, x, timesteps, context)
        bank.clear()
        return output

    for block in patched:
        block.forward = adain(block)
    other, latent, arguments = drifting(2, seed=9)(0), drifting(2), unets.inputs(LAYOUT, size=(8, 8))
    session = Session(
        UniformPlan(3, 0, 3), Copy(), ladder=lambda unet: ControlledLadder(unet, control_units), trusted=TRUSTED
    )
    unet.forward = twice
    session.attach(unet)
    outputs = [evaluate(session, unet, k, latent(k), {**arguments, "x": latent(k)})[0] for k in range(3)]
    del unet.forward
    assert session.close().cached_calls == 2
    kept = kept_aside = None
    for k, output in enumerate(outputs):
        writing.append(True)
        _, kept_aside = unets.by_hand(unet, 0, kept_aside, **{**arguments, "x": other})
        writing.clear()
        now = {**arguments, "x": latent(k) / ((14.6 * 0.7**k) ** 2 + 1) ** 0.5}
        expected, kept = unets.by_hand(unet, 0, kept, **now)
        assert torch.equal(output, expected), k
    for block in patched:
        del block.forward


def several():
    one, other = network(seed=1), network(seed=2)
    widths = [ControlNet._width(unets.shared_unet(LAYOUT).input_blocks[i]) for i in (1, 2, 4, 5)]
    return {
        "two networks": [Unit(one, hint()), Unit(other, hint(1), weight=0.5)],
        "one network in two units": [Unit(one, hint()), Unit(one, hint(1), weight=0.5)],
        "with an adapter": [Unit(one, hint()), Unit(Adapter(widths, 3), hint(2), "adapter")],
        "with a reference": [Unit(None, drifting(2, seed=5)(0), "reference"), Unit(one, hint())],
    }


@pytest.mark.sample("three-levels-two networks", "three-levels-with a reference")
@pytest.mark.parametrize("which", ["two networks", "one network in two units", "with an adapter", "with a reference"])
def test_several_units(unet, which):
    units = several()[which]
    networks = {unit.control_model.control_model for unit in units if isinstance(unit.control_model, Pluggable)}
    counts = [counted(net) for net in networks]
    live, report = cached(unet, Hook(units), branch=2)
    runs = sum(unit.kind == "controlnet" for unit in units) // len(networks)
    for count in counts:
        ran = count["input_blocks.2"], count["input_blocks.3"], count["middle_block"]
        assert ran == (6 * runs, 2 * runs, 2 * runs)
    assert report.cached_calls == 4 and not report.misses
    assert equal(live, cached(unet, Hook(units), branch=2, live=False)[0])
    for i in range(len(units)):
        assert not any(map(torch.equal, live, cached(unet, Hook(units[:i] + units[i + 1 :]), branch=2)[0])), i


def test_an_adapter_alone_and_a_reference_alone(unet):
    for unit in (several()["with an adapter"][1], several()["with a reference"][0]):
        live, report = cached(unet, Hook([unit]))
        assert report.cached_calls == 4 and not report.misses
        assert equal(live, cached(unet, Hook([unit]), live=False)[0])


@pytest.mark.sample("three-levels-by its state-controlnet")
@pytest.mark.parametrize("kind", ["controlnet", "adapter", "reference"])
@pytest.mark.parametrize("known", [True, False], ids=["by its state", "by what runs"])
def test_a_unit_that_switches_off_or_on_forces_a_full_run(unet, kind, known):
    """Between two full evaluations: at once, whether the extension's own flag tells or only what runs in the call."""
    units = several()
    unit = {
        "controlnet": units["two networks"][1],
        "adapter": units["with an adapter"][1],
        "reference": units["with a reference"][0],
    }[kind]
    hook = Hook([Unit(network(), hint()), unit])

    def without_state(unet):
        return [ControlUnit(one.control_model, None) for one in hook.control_params]

    for unit.start, unit.end in ((0.0, 0.55), (0.6, 1.0)):  # off, or on, from evaluation 6 of 10 on
        for estimator in (Copy(), Forecast()):
            outputs, report = cached(
                unet, hook, 10, interval=5, estimator=estimator, units=control_units if known else without_state
            )
            # What only shows when the call is over is run again, as it would be alone; the next one keeps its feature.
            full = (0, 5, 6) if known else (0, 5, 6, 7)
            assert report.misses == ({Reason.STATE: 1} if known else {Reason.WALKS: 2})
            assert report.cached_calls == 10 - len(full) and report.full_evaluations == len(full)
            uncached, _ = cached(unet, hook, 10, interval=1)
            same = [torch.equal(a, b) for a, b in zip(outputs, uncached, strict=True)]
            assert same == [k in full for k in range(10)]


def test_a_weight_that_moves_runs_in_full(unet):
    unit = Unit(network(), hint())
    hook = Hook([unit])
    hook.begin_evaluation = lambda progress: setattr(unit, "weight", 1.0 if progress < 0.5 else 0.4)
    _, report = cached(unet, hook, 6, interval=6)
    assert report.misses == {Reason.STATE: 1} and report.cached_calls == 4


def test_an_in_place_change_of_all_units(unet):
    """Another extension exchanges the hint: the next picture of a batch begins a pass of its own, so that is no change;
    but what the network gives on a cached call is of the new hint."""
    unit = Unit(network(), hint())
    hook = Hook([unit])
    hook.begin_evaluation = lambda progress: setattr(unit, "hint", hint(7 if progress > 0.4 else 0))
    live, _ = cached(unet, hook)
    assert equal(live, cached(unet, hook, live=False)[0])
    assert not torch.equal(live[-1], cached(unet, Hook([Unit(unit.control_model, hint())]))[0][-1])


class Summing(ControlNet):
    """Looks at all of its residuals before it gives any away: cannot be cut."""

    def forward(self, *args, **kwargs):
        residuals = super().forward(*args, **kwargs)
        strength = torch.stack([residual.abs().mean() for residual in residuals]).mean()
        return [residual / strength for residual in residuals]


class Writing(ControlNet):
    """The same, in place."""

    def forward(self, *args, **kwargs):
        residuals = super().forward(*args, **kwargs)
        for residual in residuals:
            residual.mul_(float(residuals[-1].abs().mean()))
        return residuals


class Upwards(ControlNet):
    """Hands its residuals out in another order."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)[::-1]


class Bare(nn.Module):
    """No control network as we know them, though its extension calls it so: runs a copy of the UNet's input side."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("unknown", [Summing, Writing, Upwards, Bare, "fewer blocks"])
def test_what_is_not_known_runs_whole(unet, unknown):
    if unknown is Bare:
        plugged, counts = Pluggable(Bare(ControlNet(LAYOUT, 1))), None
        counts = counted(plugged.control_model.inner)
    elif unknown == "fewer blocks":
        plugged = network()
        plugged.control_model.input_blocks = plugged.control_model.input_blocks[:-1]
        plugged.control_model.zero_convs = plugged.control_model.zero_convs[:-1]
        counts = counted(plugged.control_model)
    else:
        plugged = Pluggable(unknown(LAYOUT, 1))
        counts = counted(plugged.control_model)
    hook = Hook([Unit(plugged, hint())])
    if unknown == "fewer blocks":
        hook.scaled = lambda unit, residuals, mark: [*residuals[:-1], 0.0, residuals[-1]]
    elif unknown is Upwards:
        # Their shapes fit only where one number stands for each.
        hook.scaled = lambda unit, residuals, mark: [r.mean().reshape(1, 1, 1, 1) for r in residuals]
    live, report = cached(unet, hook)
    assert report.cached_calls == 4
    assert counts["input_blocks.0"] == counts["input_blocks.4"] == counts["middle_block"] == 6
    assert equal(live, cached(unet, hook, live=False)[0])


def test_an_extension_that_hides_its_units_runs_whole(unet):
    plugged = network()
    hook, counts = Hook([Unit(plugged, hint())]), counted(plugged.control_model)
    live, _ = cached(unet, hook, units=lambda unet: [])
    assert counts["middle_block"] == 6
    assert equal(live, cached(unet, hook, live=False)[0])


def test_units_are_found_behind_a_wrapper(unet):
    """Another extension's forward around ControlNet's; and forwards that have nothing to do with it."""
    hook = Hook([Unit(network(), hint(), weight=0.5)])
    hook.hook(unet)
    inner = unet.forward
    unet.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    (unit,) = control_units(unet)
    assert unit.model is hook.control_params[0].control_model and 0.5 in unit.state
    unet.forward = lambda *args, **kwargs: 0
    assert control_units(unet) == []
    unet.forward = len
    assert control_units(unet) == []
    hook.restore(unet)
    assert control_units(unet) == []


def test_an_error_in_a_control_network_leaves_nothing(unet):
    plugged = network()
    hook = Hook([Unit(plugged, hint())])
    for error in (RuntimeError, KeyboardInterrupt):
        for at in (0, 1):
            calls = []

            def fail(*_, at=at, error=error, calls=calls):
                calls.append(None)
                if len(calls) == at + 1:
                    raise error

            handle = plugged.control_model.input_hint_block.register_forward_pre_hook(fail)
            session = Session(
                UniformPlan(3, 0, 6), Copy(), ladder=lambda unet: ControlledLadder(unet, control_units), trusted=TRUSTED
            )
            latent, arguments = drifting(2), unets.inputs(LAYOUT, size=(8, 8))
            hook.hook(unet)
            session.attach(unet)
            with pytest.raises(error):
                for k in range(3):
                    evaluate(session, unet, k, latent(k), {**arguments, "x": latent(k)})
            handle.remove()
            session.close()
            hook.restore(unet)
            untouched(plugged)
    outputs, _ = cached(unet, hook)
    assert equal(outputs, cached(unet, hook, live=False)[0])


def test_a_copy_of_a_network_made_inside_a_call_is_a_plain_one(unet):
    """In a full call and in a cached one."""
    plugged, twins = network(), []
    own = plugged.control_model
    handle = own.input_hint_block.register_forward_pre_hook(lambda *_: twins.append(copy.deepcopy(own)))
    cached(unet, Hook([Unit(plugged, hint())]))
    handle.remove()
    call = unets.inputs(LAYOUT, size=(8, 8))
    given = call["x"], hint(), call["timesteps"], call["context"]
    for twin in twins[:2]:
        twin.input_hint_block._forward_pre_hooks.clear()
        assert equal(twin(*given), own(*given))
        untouched(Pluggable(twin))


def test_nothing_is_kept_of_a_network_after_the_pass(unet):
    plugged = network()
    gone = weakref.ref(plugged.control_model)
    cached(unet, Hook([Unit(plugged, hint())]))
    del plugged
    unet.__dict__.pop("forward")
    gc.collect()
    assert gone() is None
