"""The parts that are not ours: the ldm and sgm UNets and the k-diffusion samplers, imported in one place.

Importing this module has to come before any `import k_diffusion` elsewhere.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch


def _load_k_diffusion() -> tuple[Any, Any]:
    """`k_diffusion.sampling` and `.external` without the package's `__init__`.

    That one imports training code with a dozen further packages (skimage, clip, wandb ...). A bare package with the
    right path lets its submodules import each other all the same. `k_diffusion.utils` asks for torchvision, for
    functions that the samplers never call: an empty one stands in while it is being imported.
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("k_diffusion is not installed")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    stand_ins = []
    if importlib.util.find_spec("torchvision") is None:
        stand_ins = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
    for name in stand_ins:
        sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        import k_diffusion.external as external
        import k_diffusion.sampling as sampling
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return sampling, external


class _TorchForUNet:
    """torch with a `cat` that first brings maps to one size, as A1111 gives it to the UNets.

    Sizes that are no multiple of 64 pixels make the way up one row or column larger than the kept skip.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def cat(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(tensors) == 2 and tensors[0].dim() == 4 and tensors[0].shape[-2:] != tensors[1].shape[-2:]:
            size = tensors[1].shape[-2:]
            tensors = (torch.nn.functional.interpolate(tensors[0], size, mode="nearest"), tensors[1])
        return torch.cat(tensors, *args, **kwargs)


sampling, external = _load_k_diffusion()

from imaginairy.modules.sgm import attention as sgm_attention  # noqa: E402
from imaginairy.modules.sgm.diffusionmodules import openaimodel as sgm_openaimodel  # noqa: E402
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel  # noqa: E402

# imaginairy leaves this name for its callers to fill.
sgm_openaimodel.SpatialTransformer = sgm_attention.SpatialTransformer
ldm_openaimodel.th = sgm_openaimodel.th = _TorchForUNet()

LdmUNet = ldm_openaimodel.UNetModel
SgmUNet = sgm_openaimodel.UNetModel
