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

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=3, cache_branch_id=0)
        helper.enable()
        image = pipe("a photo of a cat").images[0]
        helper.disable()
    """

    def __init__(self, pipe: Any = None) -> None:
        """pipe: a pipeline with a `unet`, or the UNet; may come with `enable` instead."""
        self.pipe = pipe
        self.cache: DeepCache | None = None
        self.set_params()

    def set_params(self, cache_interval: int = 1, cache_branch_id: int = 0, skip_mode: str = "uniform") -> None:
        """Takes effect at once, in the middle of a run too. What is not named is at its default again.

        cache_interval: every Nth step runs the whole UNet, 1 (always) to 50.
        cache_branch_id: what runs at the others, 3 * block + layer; 0 is the least.
        skip_mode: "uniform" is the only one.

        Raises `SettingsError` for a value that cannot be used.

            helper.set_params(cache_interval=5, cache_branch_id=1)
        """
        if skip_mode != "uniform":
            raise SettingsError("skip_mode", skip_mode, "uniform is the only one")
        parse([{"cache_interval": cache_interval, "cache_branch_id": cache_branch_id}])
        self.params: dict[str, int] = {"cache_interval": cache_interval, "cache_branch_id": cache_branch_id}
        if self.cache is not None:
            self.disable()
            self.enable()

    def enable(self, pipe: Any = None) -> None:
        """Begin to cache.

        pipe: takes the place of the pipeline that was given before, or of none.

        Raises `ValueError` where there is no pipeline, and where it is enabled already.

            helper.enable()
        """
        if pipe is not None:
            self.pipe = pipe
        if self.pipe is None:
            raise ValueError("there is no pipeline to enable DeepCache on")
        if self.cache is not None:
            raise ValueError("DeepCache is enabled already; disable it first")
        self.cache = DeepCache(
            self.pipe,
            cache_interval=self.params["cache_interval"],
            cache_branch_id=helpers_branch(unet_of(self.pipe), self.params["cache_branch_id"]),
            estimator="copy",
        ).enable()

    def disable(self) -> None:
        """Leave the UNet as it was. May be called twice.

        helper.disable()
        """
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
