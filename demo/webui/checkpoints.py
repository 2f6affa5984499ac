"""UNets of the real layouts with small random weights, made from a seed; or trained ones from a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .autoencoder import LATENT_CHANNELS, Autoencoder, Widths
from .real_parts import LdmUNet, SgmUNet
from .toys import TextEncoder

TRAINED = Path(__file__).resolve().parents[1] / "checkpoint"

# Names in a file of an ldm checkpoint begin with these.
UNET = "model.diffusion_model."
TEXT = "cond_stage_model."
FIRST_STAGE = "first_stage_model."


FIELDS = ("layout", "width", "context", "config", "groups", "trained")
"""What of a `Checkpoint` its json may hold."""


@dataclass(frozen=True)
class Checkpoint:
    """One entry of the host's model list.

    `layout`: "sd1" (ldm), "sdxl" (sgm) or "inpaint" (ldm with 9 input channels: latent, mask, masked latent).
    `width`: channels of the first level. `context`: width of a text token. `weights`: a safetensors file, else
    random weights from `seed`. `groups`: of the norm before the output. With one for each channel it takes their means
    away, and what the UNet says hardly has one of its own. `trained`: what else a trained one says of itself, see
    `available`.
    """

    name: str
    layout: str = "sd1"
    width: int = 32
    context: int = 64
    seed: int = 1
    weights: Path | None = None
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    groups: int = 32
    trained: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        return f"{self.name}.safetensors"

    def same_unet(self, other: Checkpoint) -> bool:
        """Whether the other's weights fit into this one's UNet object."""
        keys = ("layout", "width", "context", "config", "groups")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


BUILT_IN = (
    Checkpoint("tinyA", seed=1),
    Checkpoint("tinyB", seed=2),
    Checkpoint("mid15", width=64, seed=3),
    Checkpoint("tinyXL", "sdxl", context=128, seed=4),
    Checkpoint("tinyInpaint", "inpaint", seed=5),
    Checkpoint("demo-sd1", width=64, seed=6),
    Checkpoint("demo-sdxl", "sdxl", width=64, context=128, seed=7),
    Checkpoint("demo-inpaint", "inpaint", width=64, seed=8),
)
"""The tiny ones are those of the recordings: SD1.x layout of context width 64 (two that share a configuration, one
wider), SDXL layout of context width 128."""


def available(folder: Path = TRAINED) -> dict[str, Checkpoint]:
    """All checkpoints by name; trained ones in `folder` come as NAME.safetensors beside NAME.json.

    The json holds `layout`, `width`, `context` and, where the defaults do not fit, `groups` and `config`, arguments
    of the UNet class. `trained` may hold `prediction` ("eps" or "v"), `buckets` (of the `toys.TextEncoder` in the same
    file) and `autoencoder` (`Widths` of the one in the same file). A trained checkpoint may carry the name of a
    built-in one and then stands in its place.
    """
    found = {checkpoint.name: checkpoint for checkpoint in BUILT_IN}
    for path in sorted(folder.glob("*.safetensors")):
        described = path.with_suffix(".json")
        if described.exists():
            known = json.loads(described.read_text(encoding="utf-8"))
            wanted = {key: known[key] for key in FIELDS if key in known}
            found[path.stem] = Checkpoint(path.stem, weights=path, **wanted)
    return found


def make_unet(checkpoint: Checkpoint) -> nn.Module:
    """A UNet of the checkpoint's layout: 12 / 1 / 12 blocks (ldm) or 9 / 1 / 9 (sgm). Weights are not yet those."""
    shared: dict[str, Any] = {
        "in_channels": 2 * LATENT_CHANNELS + 1 if checkpoint.layout == "inpaint" else LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "model_channels": checkpoint.width,
        "num_res_blocks": 2,
        "use_checkpoint": False,
        "context_dim": checkpoint.context,
    }
    if checkpoint.layout == "sdxl":
        arguments = shared | {
            "channel_mult": (1, 2, 4),
            "attention_resolutions": [4, 2],
            "transformer_depth": [1, 1, 2],
            "num_head_channels": 32,
            "num_classes": "sequential",
            "adm_in_channels": 1600,
            "use_linear_in_transformer": True,
        }
        unet = SgmUNet(**(arguments | checkpoint.config))
    else:
        arguments = shared | {
            "image_size": 32,
            "channel_mult": (1, 2, 4, 4),
            "attention_resolutions": [4, 2, 1],
            "num_heads": 8,
            "use_spatial_transformer": True,
            "legacy": False,
        }
        unet = LdmUNet(**(arguments | checkpoint.config))
    unet.out[0].num_groups = checkpoint.groups  # ldm and sgm have no argument for it
    return unet.eval().requires_grad_(False)


def state_dict(checkpoint: Checkpoint, unet: nn.Module) -> dict[str, torch.Tensor]:
    """The checkpoint's weights, for a UNet from `make_unet`."""
    if checkpoint.weights is not None:
        return _part(checkpoint, UNET)
    made = make_unet(checkpoint)
    _randomise(made, checkpoint.seed)
    _pass_input_on(made)
    return made.state_dict()


def text_encoder(checkpoint: Checkpoint) -> TextEncoder | None:
    """The trained text encoder of a checkpoint that has one."""
    if checkpoint.weights is None or "buckets" not in checkpoint.trained:
        return None
    encoder = TextEncoder(checkpoint.trained["buckets"], checkpoint.context)
    encoder.load_state_dict(_part(checkpoint, TEXT))
    return encoder.eval().requires_grad_(False)


def autoencoder(checkpoint: Checkpoint) -> Autoencoder | None:
    """The trained autoencoder of a checkpoint that has one; without, latents are the toys' fixed colours."""
    if checkpoint.weights is None or "autoencoder" not in checkpoint.trained:
        return None
    made = Autoencoder(Widths.of(checkpoint.trained["autoencoder"]))
    made.load_state_dict(_part(checkpoint, FIRST_STAGE))
    return made.eval().requires_grad_(False)


def _part(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """Those of the file's tensors whose names begin with `prefix`, without it; all if none does."""
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint.weights).items()}
    part = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return part or tensors


def _randomise(unet: nn.Module, seed: int) -> None:
    """Weights for every layer, of a size that keeps the signal's size; also where ldm starts from zero.

    With ldm's zeros in the last layer of every block the UNet would ignore its deep features, and caching
    them would change nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        if parameter.dim() < 2:
            if name.endswith("bias"):
                parameter.zero_()
            continue
        fan_in = parameter[0].numel()
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    last = unet.out[-1].weight
    # What silu leaves above zero on average would otherwise become a tint of its own, growing with every step.
    last.sub_(last.mean((1, 2, 3), keepdim=True)).mul_(0.5)


def _pass_input_on(unet: nn.Module) -> None:
    """Let the latent itself reach the output, beside what the blocks make of it.

    A random network as a denoiser blows the latent up to noise of 15 times the data's size. "The noise is what
    comes in" is the best linear guess for data of size 1, and keeps pictures in range: channels 2c and 2c + 1 hold
    +x and -x of latent channel c, from the first convolution by the last skip to the output, where
    silu(x) - silu(-x) = x.
    """
    first, block, last = unet.input_blocks[0][0], unet.output_blocks[-1], unet.out[-1]
    resnet, kept = block[0], 2 * LATENT_CHANNELS
    above = resnet.channels - first.weight.shape[0]  # channels that come up the ladder, before the skip's own
    first.weight[:kept].zero_()
    resnet.skip_connection.weight[:kept].zero_()
    resnet.skip_connection.bias[:kept].zero_()
    resnet.out_layers[-1].weight[:kept].zero_()
    for layer in block[1:]:
        layer.proj_out.weight[:kept].zero_()
    last.weight[:, :kept].zero_()
    for channel in range(LATENT_CHANNELS):
        for sign, place in ((1.0, 2 * channel), (-1.0, 2 * channel + 1)):
            first.weight[place, channel, 1, 1] = sign
            resnet.skip_connection.weight[place, above + place] = 1.0
            last.weight[channel, place, 1, 1] = sign
