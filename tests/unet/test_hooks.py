"""Our hooks are the original's alone: in every kind of copy they do nothing, and they take themselves off."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from deepcache_ext.unet.hooks import InertHook, is_hooked, register_after, register_before, remove_inert
from deepcache_ext.unet.shadows import Blocks


class Doubling(nn.Module):
    def forward(self, x, *, fail=False):
        if fail:
            raise ArithmeticError
        return 2 * x


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved],
    ids=["deep", "pickle", "save"],
)


def hooked():
    module, calls = Doubling(), []
    handles = [
        register_before(module, lambda module, args, kwargs: calls.append((args, kwargs))),
        register_after(module, lambda module, args, kwargs, output: calls.append(output)),
    ]
    return module, calls, handles


def hooks(module):
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def test_they_see_a_call_that_returns_and_one_that_raises():
    module, calls, handles = hooked()
    x = torch.ones(1)
    module(x, fail=False)
    assert calls == [((x,), {"fail": False}), 2 * x]
    with pytest.raises(ArithmeticError):
        module(x, fail=True)
    assert calls[2:] == [((x,), {"fail": True}), None]
    assert is_hooked(module)
    for handle in handles:
        handle.remove()
    assert not hooks(module) and not is_hooked(module)


@COPIES
def test_a_copys_are_inert_and_go_at_its_first_call(duplicate):
    module, calls, _ = hooked()
    other = nn.Module.register_forward_hook(module, print)  # another extension's stays, in the copy too
    twin = duplicate(module)
    other.remove()
    assert [type(hook) for hook in hooks(twin)] == [InertHook, InertHook, type(print)]
    assert all(hook.is_inert for hook in hooks(twin)[:2]) and not is_hooked(twin)
    twin(torch.ones(1))
    assert hooks(twin) == [print]
    assert list(twin._forward_hooks) == [other.id] and not twin._forward_hooks_with_kwargs
    assert not twin._forward_hooks_always_called and not twin._forward_pre_hooks_with_kwargs
    assert not calls and is_hooked(module)


@COPIES
def test_a_copy_whose_first_call_raises(duplicate):
    module, _, _ = hooked()
    twin = duplicate(module)
    with pytest.raises(ArithmeticError):
        twin(torch.ones(1), fail=True)
    assert not hooks(twin)


def test_only_an_inert_after_hook_is_left():
    """As where somebody cleared the hooks before: it may not go while torch is at the hooks of a call that raised."""
    module, _, handles = hooked()
    handles[0].remove()
    twin = copy.deepcopy(module)
    with pytest.raises(ArithmeticError):
        twin(torch.ones(1), fail=True)
    remove_inert(twin)
    assert not hooks(twin)


@COPIES
def test_a_copy_made_in_mid_call_loses_the_names_of_shadows(duplicate):
    """They hold the real blocks there. Another extension's stays, and so does what is up on the original."""
    module, _, _ = hooked()
    module.blocks, module.other = nn.ModuleList([nn.Linear(1, 1)]), nn.Linear(1, 1)
    module.__dict__.update(blocks=Blocks([], module.blocks), other=None)
    twin = duplicate(module)
    twin(torch.ones(1))
    assert "blocks" not in vars(twin) and vars(twin)["other"] is None and len(twin.blocks) == 1
    remove_inert(module)
    assert len(module.blocks) == 0


def test_a_compiled_copy_keeps_them_until_it_runs_uncompiled():
    module, _, _ = hooked()
    twin = copy.deepcopy(module)
    x = torch.ones(1)
    assert torch.equal(torch.compile(twin, backend="eager", fullgraph=True)(x), 2 * x)
    assert len(hooks(twin)) == 2
    twin(x)
    assert not hooks(twin)


def test_a_pickle_brings_nothing_along_but_the_inert_hook():
    """What the hook belongs to, a session with its features, is not in the file."""

    class Big:
        def __init__(self):
            self.held = torch.zeros(1000, 1000)

        def before(self, *_):
            self.held += 1

    module, plain = Doubling(), len(pickle.dumps(Doubling()))
    register_before(module, Big().before)
    assert len(pickle.dumps(module)) < plain + 300
    code = "import pickle, sys; print(type(pickle.loads(sys.stdin.buffer.read())).__name__)"
    hook = pickle.dumps(next(iter(module._forward_pre_hooks.values())))
    out = subprocess.run([sys.executable, "-c", code], input=hook, capture_output=True, check=True)
    assert out.stdout == b"InertHook\n"
