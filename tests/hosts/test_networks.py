"""LoRA and hypernetworks as A1111 applies them: inside the layers, lazily, with no trace in the UNet's arguments."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel
from torch import nn

from deepcache_ext.hosts.a1111.networks import free_u_acts, loaded_networks
from deepcache_ext.plan.estimators import Copy, Forecast
from deepcache_ext.plan.plan import UniformPlan
from deepcache_ext.report.pass_report import Reason
from deepcache_ext.session.session import Session
from deepcache_ext.unet.controlnet import ControlledLadder
from deepcache_ext.unet.ldm import Ladder
from tests import unets
from tests.driver import LAYOUT, TRUSTED, call, drifting

pytestmark = pytest.mark.usefixtures("no_grad")


class Network:
    """A loaded LoRA: a low-rank change for each linear layer."""

    def __init__(self, name: str, seed: int, multiplier: float = 1.0) -> None:
        self.name, self.seed = name, seed
        self.te_multiplier = self.unet_multiplier = multiplier
        self.dyn_dim = None

    def change(self, layer: nn.Linear) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        up = torch.randn(layer.out_features, 2, generator=generator)
        return 0.02 * self.unet_multiplier * up @ torch.randn(2, layer.in_features, generator=generator)


class Moving(Network):
    """As loractl makes them: the multiplier is asked for anew each time, and depends on the step."""

    step = 0

    @property
    def unet_multiplier(self):
        return 1.0 if self.step < 4 else 0.3

    @unet_multiplier.setter
    def unet_multiplier(self, value):
        pass


@pytest.fixture(params=["networks merged", "networks functional", "l_networks merged"])
def extension(request, monkeypatch):
    """The counterpart of the host's Lora extension, or of LyCORIS's: its module, and the linear layers' forward."""
    name, way = request.param.split()
    networks = ModuleType(name)
    networks.loaded_networks = []
    monkeypatch.setitem(sys.modules, name, networks)
    plain = nn.Linear.forward

    def functional(self, h):
        return plain(self, h) + sum(nn.functional.linear(h, net.change(self)) for net in networks.loaded_networks)

    def merged(self, h):
        wanted = tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in networks.loaded_networks)
        if getattr(self, "network_current_names", ()) != wanted:
            if not hasattr(self, "network_weights_backup"):
                self.network_weights_backup = self.weight.clone()
            self.weight.copy_(self.network_weights_backup + sum(n.change(self) for n in networks.loaded_networks))
            self.network_current_names = wanted
        return plain(self, h)

    monkeypatch.setattr(nn.Linear, "forward", functional if way == "functional" else merged)
    return networks


NO_HYPERNETWORKS = SimpleNamespace(loaded_hypernetworks=[])


def run(change, interval, shared=NO_HYPERNETWORKS, watch=True, estimator=None):
    """Outputs and report of 8 evaluations; `change` is called before each one, after the host's callbacks."""
    unet = unets.make(LAYOUT)

    def ladder(unet):
        return ControlledLadder(
            unet, lambda _: [], (lambda: (loaded_networks(shared), free_u_acts())) if watch else tuple
        )

    session, latent, outputs = (
        Session(UniformPlan(interval, 0, 8), estimator or Copy(), ladder=ladder, trusted=TRUSTED),
        drifting(2),
        [],
    )
    session.attach(unet)
    for k in range(8):
        session.tick(lambda k=k: latent(k))
        change(k)
        outputs.append(unet(**call(x=latent(k))))
    return outputs, session.close()


def swap(extension):
    def change(k):
        if k in (0, 4):
            extension.loaded_networks[:] = [Network("one", 1)] if k == 0 else [Network("one", 1), Network("two", 2)]

    return change


def multiplier(extension):
    def change(k):
        if k == 0:
            extension.loaded_networks[:] = [Network("one", 1)]
        extension.loaded_networks[0].te_multiplier = extension.loaded_networks[0].unet_multiplier = 1 if k < 4 else 0.3

    return change


def moving(extension):
    def change(k):
        if k == 0:
            extension.loaded_networks[:] = [Moving("one", 1)]
        Moving.step = k

    return change


def same_name(extension):
    """Another file under the same name, loaded anew. A layer that merges does not notice; the functional mode does."""

    def change(k):
        if k in (0, 4):
            extension.loaded_networks[:] = [Network("one", 1 + k)]

    return change


@pytest.mark.sample
@pytest.mark.parametrize("happens", [swap, multiplier, moving, same_name])
@pytest.mark.parametrize("estimator", [Copy(), Forecast()], ids=["copy", "forecast"])
def test_a_change_in_mid_run_forces_a_full_run(extension, happens, estimator):
    outputs, report = run(happens(extension), 8, estimator=estimator)
    full, _ = run(happens(extension), 1)
    assert [torch.equal(a, b) for a, b in zip(outputs, full, strict=True)] == [k in (0, 4) for k in range(8)]
    assert report.misses == {Reason.STATE: 1} and report.cached_calls == 6


def test_without_a_look_at_the_networks_it_would_be_wrong(extension):
    """The test above is not idle: a live call would run the new networks on a feature of the old ones."""
    outputs, _ = run(swap(extension), 8, watch=False)
    full, _ = run(swap(extension), 1)
    assert not torch.equal(outputs[4], full[4])


def test_networks_that_stay_cost_nothing(extension):
    def change(k):
        extension.loaded_networks[:] = networks  # the list is filled anew, with the same objects

    networks = [Network("one", 1, 0.8), Network("two", 2)]
    outputs, report = run(change, 4)
    without, _ = run(lambda k: extension.loaded_networks.clear(), 4)
    assert report.cached_calls == 6 and not report.misses
    assert not any(map(torch.equal, outputs, without))  # they act, on cached calls too


def hypernetwork(name="one", strength=1.0):
    pair = (SimpleNamespace(multiplier=strength), SimpleNamespace(multiplier=strength))
    return SimpleNamespace(name=name, layers={64: pair})


def test_hypernetworks():
    shared = SimpleNamespace(loaded_hypernetworks=[hypernetwork()])

    def change(k):
        if k == 3:
            shared.loaded_hypernetworks[0].layers[64][0].multiplier = 0.5
        if k == 5:
            shared.loaded_hypernetworks = [hypernetwork("two")]

    _, report = run(change, 8, shared)
    assert report.misses == {Reason.STATE: 2} and report.cached_calls == 5


@pytest.mark.parametrize("networks", [None, SimpleNamespace(), SimpleNamespace(loaded_networks=3)])
def test_hosts_without_them(monkeypatch, networks):
    monkeypatch.setitem(sys.modules, "networks", networks)
    assert loaded_networks(SimpleNamespace()) == ((), ())
    assert loaded_networks(SimpleNamespace(loaded_hypernetworks=None)) == ((), ())


def test_the_plain_ladder_has_no_state():
    assert Ladder(unets.make(LAYOUT)).call((), call()).state is None


@pytest.mark.parametrize("enabled", [True, False])
def test_free_u_that_stops_in_mid_run(monkeypatch, enabled):
    """The extension exchanges the function that the UNet's forward joins features with, and goes by its own clock."""
    state, code, step = ModuleType("lib_free_u.global_state"), ModuleType("lib_free_u.unet"), [0]
    state.instance = SimpleNamespace(enable=enabled)
    code.get_schedule_ratio = lambda: 1.0 if step[0] < 4 else 0.0
    monkeypatch.setitem(sys.modules, state.__name__, state)
    monkeypatch.setitem(sys.modules, code.__name__, code)

    class Joining:
        def cat(self, tensors, dim):
            h, skip = tensors
            return torch.cat([h * (1 + 0.5 * code.get_schedule_ratio() * enabled), skip], dim)

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(openaimodel, "th", Joining())
    outputs, report = run(lambda k: step.__setitem__(0, k), 8)
    full, _ = run(lambda k: step.__setitem__(0, k), 1)
    changes = (0, 4) if enabled else (0,)
    assert [torch.equal(a, b) for a, b in zip(outputs, full, strict=True)] == [k in changes for k in range(8)]
    assert report.misses == ({Reason.STATE: 1} if enabled else {})


def test_another_free_u_is_not_asked(monkeypatch):
    assert free_u_acts() is None
    monkeypatch.setitem(sys.modules, "lib_free_u.global_state", ModuleType("lib_free_u.global_state"))
    assert free_u_acts() is None
