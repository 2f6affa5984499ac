"""The laboratory's networks: what each is made of, what it learns, and whether rules may be chosen on it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.webui.checkpoints import Checkpoint

CONTEXT = 64
"""Width of a text token."""

CHOOSING, JUDGING, LATER = "choosing", "judging", "later"


def folder() -> Path:
    """Where weights and downloads are kept: DEEPCACHE_LAB, or ~/.cache/deepcache-lab."""
    named = os.environ.get("DEEPCACHE_LAB")
    return Path(named) if named else Path.home() / ".cache" / "deepcache-lab"


@dataclass(frozen=True)
class Network:
    """One network. `half`: rules are chosen on the CHOOSING ones and judged on the JUDGING ones, which nobody looks at
    before; fixed before anything was measured. LATER ones came when the rules stood, and were measured once.

    `pictures`: one of `pictures.SOURCES`. `prediction`: "eps" or "v". `layout`: "sd1" (ldm's class, 4 levels, 12 output
    blocks) or "sdxl" (sgm's, 3 levels, 9). `config`: further arguments of that class. `steps`, `batch`: of the
    training. `groups`: of each norm. With 32 of them 1 to 4 channels are scaled together, with 8 of them 4 to 16; in
    SD1.5 it is 10 and more.
    """

    name: str
    half: str
    pictures: str
    prediction: str
    layout: str
    config: dict[str, Any] = field(hash=False)
    steps: int = 500
    batch: int = 16
    seed: int = 1
    width: int = 32
    groups: int = 32

    @property
    def weights(self) -> Path:
        return folder() / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        return self.weights.with_suffix(".json")

    @property
    def attends_finest(self) -> bool:
        return 1 in self.config["attention_resolutions"]

    def checkpoint(self, channels: int) -> Checkpoint:
        """As the demo describes it, for `make_unet`; `channels` of the latent."""
        config = {"in_channels": channels, "out_channels": channels, **self.config}
        if self.layout == "sdxl":
            config["adm_in_channels"] = CONTEXT
        return Checkpoint(self.name, self.layout, self.width, CONTEXT, self.seed, config=config)


# 16x16 latents: 4 levels end at 2x2, 3 levels at 4x4.
_SD1 = {"channel_mult": [1, 2, 2, 2], "attention_resolutions": [4, 2], "num_heads": 1}
_SD1_FINEST = {"channel_mult": [1, 1, 2, 2], "attention_resolutions": [4, 2, 1], "num_heads": 1}
_XL = {"channel_mult": [1, 2, 2], "attention_resolutions": [4, 2], "transformer_depth": [0, 1, 3]}

NETWORKS = (
    Network("photos-eps-sd1", CHOOSING, "photos", "eps", "sd1", _SD1_FINEST, seed=1),
    Network("forty-eps-sd1", CHOOSING, "forty", "eps", "sd1", _SD1, seed=2, steps=800),
    Network("clothes-eps-xl", CHOOSING, "clothes", "eps", "sdxl", _XL, seed=3, steps=600),
    Network("emoji-v-xl", CHOOSING, "emoji", "v", "sdxl", _XL, seed=4),
    Network("clothes-v-sd1", CHOOSING, "clothes", "v", "sd1", _SD1_FINEST, seed=9),
    Network("clothes-eps-sd1", JUDGING, "clothes", "eps", "sd1", _SD1, seed=5),
    Network("photos-v-sd1", JUDGING, "photos", "v", "sd1", _SD1, seed=6),
    Network("forty-eps-xl", JUDGING, "forty", "eps", "sdxl", _XL, seed=7, steps=600),
    Network("emoji-eps-sd1", JUDGING, "emoji", "eps", "sd1", _SD1_FINEST, seed=8),
    Network("photos-eps-xl", JUDGING, "photos", "eps", "sdxl", _XL, seed=10),
    Network("later-photos-eps-sd1", LATER, "photos", "eps", "sd1", _SD1_FINEST, seed=21, steps=700, groups=8),
    Network("later-emoji-eps-xl", LATER, "emoji", "eps", "sdxl", _XL, seed=22, steps=600, groups=8),
    Network("later-emoji-v-sd1", LATER, "emoji", "v", "sd1", _SD1, seed=23, steps=600, groups=8),
)
"""In the choosing half and in the judging one: noise and v, 12 and 9 output blocks, attention at the finest level and
none, few pictures learned by heart and many, photographs and drawings.
"""


def called(name: str) -> Network:
    """Raises KeyError, with the known names, for another one."""
    for network in NETWORKS:
        if network.name == name:
            return network
    raise KeyError(f"{name}: the networks are {', '.join(network.name for network in NETWORKS)}")


def of_half(half: str) -> tuple[Network, ...]:
    return tuple(network for network in NETWORKS if network.half == half)
