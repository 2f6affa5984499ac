"""Noticing that weights were written to."""

import pytest
import torch
from torch import nn

from deepcache_ext.session.changes import WeightsWatch
from tests import unets


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


def test_adapters_of_peft():
    """What peft 0.21 has on a LoRA layer; it is not among the tests' packages."""
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
