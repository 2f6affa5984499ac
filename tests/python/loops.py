"""A sampler's loop over a diffusers UNet, for tests of what drives a session by such calls."""

import gc
import threading

import torch

from tests import diffusers_unets as unets

SD, XL = "StableDiffusion", "StableDiffusionXL"
THIRD = {"cache_interval": 3, "cache_branch_id": 1, "estimator": "copy"}


def latent(k, seed=0):
    """x of a picture's evaluation k: it drifts."""
    base, drift = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return base * 0.97**k + 0.05 * k * drift


CONTEXT = unets.inputs("sd1")["encoder_hidden_states"]


def call(unet, k, timestep, seed=0, text=0):
    return unet(latent(k, seed), timestep, encoder_hidden_states=CONTEXT[text : text + 1]).sample


def picture(unet, seed=0, calls=1, start=0, held=None):
    """All outputs of a loop over a tensor of timesteps; its elements are put into the list `held`."""
    timesteps = torch.arange(900, 200, -100)[start:]
    if held is not None:
        held[:] = timesteps = list(timesteps)
    return [call(unet, k, t, seed, text) for k, t in enumerate(timesteps) for text in range(calls)]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def alive(*names):
    """Of our classes: torch's compiler has a Slot, too."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return [k.__name__ for k in kinds if k.__name__ in names and str(k.__module__).startswith("deepcache_ext.")]


def in_thread(task):
    """What `task()` gave in a thread of its own."""
    got = []
    thread = threading.Thread(target=lambda: got.append(torch.no_grad()(task)()))
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    return got[0]
