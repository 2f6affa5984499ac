"""Noticing that weights were written to."""

import torch

from deepcache_ext.weights import WeightsWatch
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
        lambda: layer.scaling.update(one=0.5), lambda: layer.merged_adapters.append("one"),
        lambda: setattr(layer, "_disable_adapters", True), lambda: setattr(layer, "_active_adapter", ["two"]),
    ):
        change()
        assert watch.version() not in versions
        versions.add(watch.version())
