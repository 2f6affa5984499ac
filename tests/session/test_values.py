"""Noticing what leaves no trace on a weight."""

import pytest
import torch

from deepcache_ext.session.values import Values
from deepcache_ext.unet.answers import Answers
from tests import unets


def weights(unet):
    return [module._parameters.get("weight") for module in unet.modules()]


def asked(values):
    answers = Answers()
    values.ask(answers)
    return values.changed()


@pytest.fixture
def unet():
    return unets.make("three-levels")


def written(parameter):
    parameter.data.add_(0.1)


def assigned(parameter):
    parameter.data = parameter.data * 1.5


@pytest.mark.parametrize("write", [written, assigned])
@pytest.mark.parametrize("inference", [False, True])
def test_what_no_counter_tells(write, inference):
    with torch.inference_mode(inference):
        unet = unets.make("three-levels")
        values = Values(weights(unet))
    assert not asked(values)  # nothing to compare with
    values.remember()
    assert not asked(values)
    with torch.inference_mode(inference):
        for parameter in unet.parameters():
            write(parameter)
    assert asked(values)
    values.remember()
    assert not asked(values)


def test_moves_change_nothing(unet):
    values = Values(weights(unet))
    values.remember()
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()
    unet.to(memory_format=torch.channels_last)
    assert not asked(values)
    unet.to("meta")
    assert not asked(values)


def test_eight_bits(unet):
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    values = Values(weights(unet))
    values.remember()
    assert not asked(values)
    for parameter in unet.parameters():
        parameter.data = (parameter.data.float() * 2 + 1).to(torch.float8_e4m3fn)
    assert asked(values)


class Packed(torch.Tensor):
    """A library's, that cannot be looked into."""


def test_what_cannot_be_read_is_left_out():
    values = Values([None, torch.empty(0), torch.ones(3).as_subclass(Packed)])
    values.remember()
    assert not asked(values)


def test_what_autocast_does_not_cast(unet):
    unet.half()
    values = Values(weights(unet))
    with torch.autocast("cpu", torch.bfloat16):
        values.remember()
        assert not asked(values)
        for parameter in unet.parameters():
            written(parameter)
        assert asked(values)
