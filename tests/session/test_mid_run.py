"""What others do to a UNet in the middle of a pass: code that comes, numbers that are turned, weights and
arguments that change without a trace.
"""

import pytest
import torch
from torch import nn

from deepcache_ext.plan.estimators import Copy
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from tests import unets
from tests.driver import LAYOUT, call, drifting, evaluate, scaled, session, sigma

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def unet():
    return unets.make(LAYOUT)


def counting(seen):
    def hook(*_):
        seen.append(1)

    return hook


def later(unet, name, seen):
    """Puts code on the UNet, or on torch, in mid-run; returns what takes it off."""
    if name == "hook on one block":
        return unet.output_blocks[2].register_forward_hook(counting(seen)).remove
    if name == "hook on one layer":
        return unet.output_blocks[1][0].out_layers[0].register_forward_hook(counting(seen)).remove
    if name == "hook on all modules":
        return nn.modules.module.register_module_forward_hook(counting(seen)).remove
    if name == "forward of one block":
        block = unet.output_blocks[2]
        own = block.forward
        block.forward = lambda *args: seen.append(1) or own(*args)
        return lambda: delattr(block, "forward")
    if name == "torch's attention":
        own = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = lambda *args, **kwargs: seen.append(1) or own(*args, **kwargs)
        return lambda: setattr(nn.functional, "scaled_dot_product_attention", own)
    kind = type(unet) if name == "forward of the UNet's class" else type(unet.middle_block[0])
    method = "_forward" if name == "_forward of a class" else "forward"
    own = getattr(kind, method)
    setattr(kind, method, lambda self, *args, **kwargs: seen.append(1) or own(self, *args, **kwargs))
    return lambda: setattr(kind, method, own)


WAYS = [
    "hook on one block",
    "hook on one layer",
    "hook on all modules",
    "forward of one block",
    "forward of a class",
    "_forward of a class",
    "forward of the UNet's class",
    "torch's attention",
]


@pytest.mark.parametrize("way", WAYS)
def test_who_comes_in_mid_run_sees_every_layer(unet, way):
    """From its first call on the pass runs in full, and the report says why."""
    cache, latent, seen, take_off = Session(UniformPlan(3, 0, 9), Copy()), drifting(2), [], None
    cache.attach(unet)
    counts = []
    for k in range(9):
        if k == 4:
            take_off = later(unet, way, seen)
        before = len(seen)
        evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        counts.append(len(seen) - before)
    report = cache.close()
    take_off()
    assert len(set(counts[4:])) == 1 and (counts[4] or way == "torch's attention")  # this UNet has one of its own
    assert "tests.session.test_mid_run" in report.off


def blurring(module, _, output):
    """As Incantations' SEG, which sits on the middle block's queries."""
    return output.mean(1, keepdim=True).expand_as(output) if module.seg_enable else None


@pytest.mark.parametrize("name", ["scale", "padding_mode", "seg_enable"])
def test_numbers_that_are_turned_in_mid_run(unet, name):
    cache, latent = session(3), drifting(2)
    queries = [module.to_q for module in unet.middle_block.modules() if hasattr(module, "to_q")]
    if name == "seg_enable":
        for query in queries:
            query.seg_enable = False
            query.register_forward_hook(blurring)
    cache.attach(unet)
    for k in range(6):
        if k == 4:
            for module in unet.modules():
                if name == "scale" and hasattr(module, "to_q"):
                    module.scale *= 2
                elif name == "padding_mode" and isinstance(module, nn.Conv2d):
                    module.padding_mode = "circular"
                elif name == "seg_enable" and module in queries:
                    module.seg_enable = True
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        if k == 4:
            assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k)))[0])
    assert cache.close().misses == {Reason.FIRST_SEEN: 1}


def test_arguments_that_a_hook_behind_ours_changes(unet):
    """What the forward is given is what counts, whoever changes it after us."""
    strength, cache, latent = [1.0], session(3), drifting(2)
    cache.attach(unet)
    handle = None
    for k in range(9):
        if k == 2:  # between tick and call
            cache.tick(lambda: latent(2), sigma(2))
            handle = unet.register_forward_pre_hook(
                lambda _, args, kwargs: (args, {**kwargs, "context": kwargs["context"] * strength[0]}), with_kwargs=True
            )
            unet(**call(x=scaled(latent(2), 2)))
            cache.pause()
            continue
        if k == 5:
            strength[0] = 2.0
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        if k == 5:
            text = call()["context"] * 2
            assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k), context=text))[0])
    handle.remove()
    report = cache.close()
    assert report.misses == {Reason.FORWARD: 1, Reason.CONDITIONING: 1}
    assert report.fraction == "5 of 9 full"


def test_weights_written_through_data(unet):
    cache, latent = session(3), drifting(2)
    cache.attach(unet)
    for k in range(6):
        if k == 4:
            for module in unet.modules():
                if isinstance(module, nn.Linear):
                    module.weight.data.add_(0.05)
        (output,) = evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        if k == 4:
            assert torch.equal(output, unets.by_hand(unet, 0, **call(x=scaled(latent(k), k)))[0])
    assert cache.close().misses == {Reason.WEIGHTS: 1}


def painted(k, latent, mask):
    """A call of an inpainting model: mask and picture lie in further channels."""
    arguments = unets.inputs("inpaint", rows=2, size=(8, 8))
    return {**arguments, "x": torch.cat([scaled(latent, k), mask], dim=1)}


def test_a_mask_that_moves_in_mid_run():
    unet, cache, latent, mask = unets.make("inpaint"), session(3), drifting(2), torch.randn(2, 5, 8, 8)
    cache.attach(unet)
    for k in range(6):
        cache.tick(lambda k=k: latent(k), sigma(k))
        given = painted(k, latent(k), mask if k < 4 else -mask)
        output = unet(**given)
        cache.pause()
        if k == 4:
            assert torch.equal(output, unets.by_hand(unet, 0, **given)[0])
    assert cache.close().misses == {Reason.CONDITIONING: 1}


def test_calls_that_differ_in_their_further_channels_alone():
    """InstructPix2Pix's, with its picture and without, one of which is left out once."""
    unet, cache, latent, picture = unets.make("inpaint"), session(3), drifting(2), torch.randn(2, 5, 8, 8)
    cache.attach(unet)
    for k in range(6):
        cache.tick(lambda k=k: latent(k), sigma(k))
        calls = [painted(k, latent(k), picture), painted(k, latent(k), picture * 0)]
        outputs = [unet(**given) for given in calls[k == 4 :]]
        cache.pause()
        if k == 4:
            assert torch.equal(outputs[0], unets.by_hand(unet, 0, **calls[1])[0])
    assert cache.close().misses[Reason.CONDITIONING]


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_was_broken_off_is_not_called_full(unet, at, error):
    """Neither a cached one, in whose live part it happens."""
    cache, latent = session(3), drifting(2)

    def break_off(*_):
        raise error

    for k in range(6):
        cache.attach(unet)
        handle = unet.out.register_forward_pre_hook(break_off) if k == at else None
        if handle is None:
            evaluate(cache, unet, k, latent(k), call(x=latent(k)))
        else:
            with pytest.raises(error):
                evaluate(cache, unet, k, latent(k), call(x=latent(k)))
            handle.remove()
    report = cache.close()
    assert report.evaluations == 5 and report.full_evaluations == report.full_calls
