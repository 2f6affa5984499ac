"""The interface of the helper that DeepCache's authors published, on our mechanism."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..settings.fields import SettingsError
from ..settings.settings import parse
from .deepcache import DeepCache, unet_of


class DeepCacheSDHelper:
    """The interface of the helper that the method's authors published as DeepCache 0.1.1, on our mechanism: a script
    written for it runs with one import changed and gives the same pictures.

    Deliberate differences: enabling twice raises ValueError (there it never came back); a sampler that repeats
    timesteps keeps its rhythm; FreeU does not write into what is kept; each run of the pipeline starts anew.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.pipe = pipe
        self.cache: DeepCache | None = None
        self.set_params()

    def set_params(self, cache_interval: int = 1, cache_branch_id: int = 0, skip_mode: str = "uniform") -> None:
        """`cache_branch_id` is 3 * block + layer. Takes effect at once. Raises `SettingsError`."""
        if skip_mode != "uniform":
            raise SettingsError("skip_mode", skip_mode, "uniform is the only one")
        given: dict[str, Any] = {
            "cache_interval": cache_interval,
            "cache_branch_id": cache_branch_id,
            "estimator": "copy",
        }
        parse([given])
        self.params = given
        if self.cache is not None:
            self.disable()
            self.enable()

    def enable(self, pipe: Any = None) -> None:
        if pipe is not None:
            self.pipe = pipe
        if self.pipe is None:
            raise ValueError("there is no pipeline to enable DeepCache on")
        if self.cache is not None:
            raise ValueError("DeepCache is enabled already; disable it first")
        branch = helpers_branch(unet_of(self.pipe), self.params["cache_branch_id"])
        self.cache = DeepCache(self.pipe, **{**self.params, "cache_branch_id": branch}).enable()

    def disable(self) -> None:
        if self.cache is not None:
            self.cache.disable()
            self.cache = None


def helpers_branch(unet: nn.Module, branch: int) -> int:
    """Our branch for the helper's: block b // 3, layer b % 3 whatever the UNet's number of layers. Where it asks for
    more layers or blocks than there are, it runs those that there are.
    """
    try:
        layers = [len(block.resnets) for block in reversed(unet.up_blocks)]  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        return branch
    block, layer = divmod(branch, 3)
    if block >= len(layers):
        return sum(layers) - 1
    return sum(layers[:block]) + min(layer, layers[block] - 1)
