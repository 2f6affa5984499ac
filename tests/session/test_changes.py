"""Noticing that weights were written to."""

import copy

import pytest
import torch
from torch import nn

from deepcache_ext.session.changes import WeightsWatch
from tests import unets
from tests.driver import LAYOUT, run, session


def test_in_place_writes_count_and_moves_do_not():
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    before = watch.version()
    unet.to(torch.float64).to(torch.float32)
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()  # how --lowvram's hooks and `.to` move a weight
    assert watch.version() == before
    unet.load_state_dict(unets.make("three-levels", seed=2).state_dict())
    assert watch.version() > before


def test_inference_tensors_and_missing_weights_are_left_out():
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    with torch.inference_mode():
        unet.input_blocks[0][0]._parameters["weight"] = torch.zeros(32, 4, 3, 3)
    del unet.out[2]._parameters["weight"]
    before = watch.version()
    for module in unet.modules():
        weight = module._parameters.get("weight")
        if weight is not None and not weight.is_inference():
            weight.data.add_(0)
            with torch.no_grad():
                weight.add_(0)
    assert watch.version() > before


def in_parametrizations(layer):
    return nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize(
    ("normed", "part"),
    [
        (nn.utils.weight_norm, lambda layer: layer.weight_g),
        (in_parametrizations, lambda layer: layer.parametrizations.weight.original0),
        (in_parametrizations, lambda layer: layer.parametrizations.weight.original1),
    ],
    ids=["old", "lengths", "directions"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weights_that_a_library_keeps_in_parts(normed, part):
    unet = unets.make("three-levels")
    layers = [module for module in unet.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        normed(layer)
    watch = WeightsWatch(unet)
    before = watch.version()
    with torch.no_grad():
        for layer in layers:
            part(layer).mul_(1.3)
    assert watch.version() != before


def test_adapters_of_peft():
    """What peft 0.21 has on a LoRA layer, each alone; peft itself is in tests/python/test_lora.py."""
    unet = unets.make("three-levels")
    layer = unet.out[2]
    layer.scaling, layer.merged_adapters = {"one": 1.0}, []
    layer._disable_adapters, layer._active_adapter = False, ["one"]
    watch = WeightsWatch(unet)
    versions = {watch.version()}
    for change in (
        lambda: layer.scaling.update(one=0.5),
        lambda: layer.merged_adapters.append("one"),
        lambda: setattr(layer, "_disable_adapters", True),
        lambda: setattr(layer, "_active_adapter", ["two"]),
    ):
        change()
        assert watch.version() not in versions
        versions.add(watch.version())


class Wrapped(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base


@pytest.mark.parametrize("aim", ["attn2.to_k", "attn1.to_k", "emb_layers.1", "in_layers.0", "net.2", "proj_out"])
def test_writes_to_one_role_alone(aim):
    unet = unets.make("sd1")
    watch = WeightsWatch(unet)
    before = watch.version()
    for name, module in unet.named_modules():
        if name.endswith(aim):
            module.weight.add_(0.1)
    assert watch.version() != before


def test_writes_to_one_block_alone():
    unet = unets.make("sd1")
    watch = WeightsWatch(unet)
    versions = [watch.version()]
    for block in [*unet.input_blocks, *unet.middle_block, *unet.output_blocks]:
        for parameter in block.parameters():
            parameter.add_(0.1)
        versions.append(watch.version())
    assert len(set(versions)) == len(versions)


def test_a_module_of_the_middle_block_that_is_exchanged():
    unet = unets.make("sd1")
    watch = WeightsWatch(unet)
    before = watch.version()
    block = unet.middle_block[1].transformer_blocks[0]
    block.attn2 = copy.deepcopy(block.attn2)
    assert watch.version() != before


def linears(unet):
    return [
        (parent, name, child)
        for parent in unet.modules()
        for name, child in parent._modules.items()
        if isinstance(child, nn.Linear) and not isinstance(parent, Wrapped)
    ]


@pytest.mark.parametrize("which", ["", "to_q", "to_v"])
def test_layers_that_are_wrapped_and_unwrapped(which):
    """An injected LoRA, which aims at layers by name, and its removal."""
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    versions = [watch.version()]
    aims = [link for link in linears(unet) if which in link[1]]
    assert aims and watch.version() == versions[0]
    for parent, name, child in aims:
        setattr(parent, name, Wrapped(child))
    versions.append(watch.version())
    aims[0][0]._modules[aims[0][1]].merged_adapters = []  # nothing of the new layers is out of sight
    assert watch.version() == versions[1]
    with torch.no_grad():
        for _, _, child in linears(unet):
            child.weight.mul_(2)
        for _, _, child in aims:
            child.weight.mul_(2)
    versions.append(watch.version())
    for parent, name, child in aims:
        setattr(parent, name, child)
    versions.append(watch.version())
    assert len(set(versions)) == 4 and watch.version() == versions[-1]


def test_layers_of_peft_that_come_later():
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    for parent, name, child in linears(unet):
        wrapped = Wrapped(child)
        wrapped.merged_adapters, wrapped.scaling = [], {"one": 1.0}
        setattr(parent, name, wrapped)
    before = watch.version()
    for module in unet.modules():
        if isinstance(module, Wrapped):
            module.scaling["one"] = 0.5
    assert watch.version() != before


def test_parameters_and_blocks_that_are_exchanged():
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    versions = [watch.version()]
    for module in unet.modules():
        if isinstance(module._parameters.get("weight"), nn.Parameter):
            module.weight = nn.Parameter(module.weight * 1.5, requires_grad=False)
    versions.append(watch.version())
    unet.middle_block = nn.Identity()
    versions.append(watch.version())
    assert len(set(versions)) == 3 and watch.version() == versions[-1]


def test_offloaded_weights_are_the_same():
    """accelerate puts new empty parameters in their places after each call."""
    unet = unets.make("three-levels")

    def offload():
        for module in unet.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    offload()
    watch = WeightsWatch(unet)
    before = watch.version()
    offload()
    assert watch.version() == before


class Added:
    """What Forge Neo has in a layer's `weight_function`: its later versions in `patch`, 2.26 by `key` in `patches`."""

    def __init__(self, strength, by_key=False):
        patches = [(strength, object(), 1.0, None, None, "lora")]
        if by_key:
            self.key, self.patches = "weight", {"weight": patches}
        else:
            self.patch = [list(patches[0])]


def forge(layer, strength):
    layer.forge_online_loras = {"weight": [[strength, object(), 1.0, None, None]]}


def neo(layer, strength):
    layer.weight_function = [Added(strength)]


def older_neo(layer, strength):
    layer.weight_function = [Added(strength, by_key=True)]


def halve(layer):
    """In place, as extensions do it."""
    if "forge_online_loras" in layer.__dict__:
        layer.forge_online_loras["weight"][0][0] *= 0.5
    elif hasattr(layer.weight_function[0], "patch"):
        layer.weight_function[0].patch[0][0] *= 0.5
    else:
        patches = layer.weight_function[0].patches
        patches["weight"] = [(one[0] * 0.5, *one[1:]) for one in patches["weight"]]


@pytest.mark.parametrize("add", [forge, neo, older_neo])
def test_loras_that_are_added_on_the_fly(add):
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    layers = [child for _, _, child in linears(unet)]
    versions = [watch.version()]
    for layer in layers:
        add(layer, 0.8)
    versions.append(watch.version())
    assert watch.version() == watch.version(look=False) == versions[-1]
    for layer in layers:
        halve(layer)
    versions.append(watch.version(look=False))  # between two calls of one evaluation
    for layer in layers:
        for name in ("forge_online_loras", "weight_function"):
            layer.__dict__.pop(name, None)
    versions.append(watch.version())
    assert len(set(versions)) == 3 and versions[0] == versions[-1]


def test_what_is_added_in_an_unknown_way_is_told_by_its_objects():
    unet = unets.make("three-levels")
    watch = WeightsWatch(unet)
    versions = [watch.version()]
    for _, _, layer in linears(unet):
        layer.weight_function, layer.forge_online_loras = [lambda weight: weight * 2, Added(1.0)], {"weight": [3]}
        layer.weight_function[1].patches = {}
    versions.append(watch.version())
    assert len(set(versions)) == 2 and watch.version() == versions[-1]


@pytest.mark.usefixtures("no_grad")
def test_one_that_was_there_at_the_first_call_is_no_change():
    """It came when the UNet was hooked already: another extension's callback behind ours puts it there."""
    unet, cache = unets.make(LAYOUT), session(3)
    cache.attach(unet)
    for _, _, layer in linears(unet):
        forge(layer, 0.8)
    run(cache, unet, 6)
    report = cache.close()
    assert (report.fraction, report.misses) == ("2 of 6 full", {})
