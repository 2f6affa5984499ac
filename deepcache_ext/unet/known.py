"""Other people's code known to live in or on a UNet: one line and one test each (tests/unet/test_neighbours.py).

Names are those of the modules in which the code stands. Hosts load an extension's `scripts/negpip.py` as a module named
`negpip.py`; what that imports has its own name. A pattern with a colon asks for the qualified name too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache


class Answer(Enum):
    """What a cached call may do about code in blocks that it skips."""

    HARMLESS = "may be skipped"
    COUNTS_LAYERS = "counts the layers of an evaluation: right only where that has a single call"
    NEEDS_ALL = "must see every layer at every call"


@dataclass(frozen=True)
class Known:
    """`code`: the module, or `module:qualified name`. `who`: whose code that is; `why`: *run*: the product was run with
    it and was right (docs/compatibility.md); *read*: it keeps nothing from one call for another.
    """

    code: str
    who: str
    why: str
    answer: Answer = Answer.HARMLESS

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.code, name if ":" in self.code else name.partition(":")[0]) is not None


TABLE = (
    # A1111's own
    Known(r"modules\.sd_hijack_(optimizations|utils|checkpoint)", "A1111's attention and casts", "run"),
    Known(r"modules\.hypernetworks\.hypernetwork", "A1111's cross-attention", "run"),
    Known(r"modules\.(sd_unet|devices|lowvram)", "A1111's forward switch, manual cast, low VRAM", "run"),
    Known(r"networks", "LoRA of A1111 and Forge: loaded networks are watched", "run"),
    Known(r"l_networks", "LoRA of the LyCORIS extension: loaded networks are watched", "run"),
    Known(r"hypertile", "A1111's HyperTile", "run"),
    Known(r"tomesd\.patch", "ToMe", "run: A1111, SD.Next"),
    # Other attention for all of torch
    Known(r"(sageattention|flash_attn|spas_sage_attn)(\..*)?", "kernels put in place of torch's attention", "read"),
    Known(r"modules\.(attention|intel\.ipex\.attention)", "SD.Next's attention for all of torch", "read"),
    # A1111's extensions
    Known(r"scripts\.hook:(?!.*hacked_).*", "ControlNet's forward of the UNet; not its reference units", "run"),
    Known(r"scripts\.ipadapter\.plugable_ipadapter", "ControlNet's IP-Adapter", "read"),
    Known(r"scripts\.controlnet_lllite", "ControlNet's LLLite", "read"),
    Known(r"motion_module|scripts\.animatediff_mm", "AnimateDiff", "run"),
    Known(r"khrfix\.py", "Kohya HRFix", "run"),
    Known(r"sd_bmab\.external\.kohyahiresfix", "BMAB's Kohya HRFix", "run"),
    Known(r"lib_iclight\.backends\.a1111", "IC-Light (sd-forge-ic-light) on A1111: further channels", "run"),
    Known(r"scripts\.(llul_hooker|sdhook)", "LLuL", "run"),
    Known(r"scripts\.pag", "Incantations' PAG: its state lives within one call", "run"),
    # A flag on the middle block's layers says whether it acts: flags are watched.
    Known(r"scripts\.smoothed_energy_guidance", "Incantations' SEG", "run"),
    Known(r"agentsd\.patch", "Agent Attention: as ToMe; its second pass is other classes", "run"),
    Known(r"scripts\.patching", "FABRIC: two walks in one call, whose rows are watched", "run"),
    Known(r"scripts\.lora_compvis|lora_compvis", "additional-networks", "read"),
    Known(r"scripts\.latent", "Regional Prompter with LoRA, latent mode", "run"),
    # With regions it counts by layers which of them comes next.
    Known(r"negpip\.py:.* with regions", "NegPiP with Regional Prompter's latent mode", "read", Answer.NEEDS_ALL),
    # Begins to count anew at each evaluation, and looks at the count only to tell a second call's layers from the first
    # one's: a single call is right with any number of rows (CFG 1 too).
    Known(r"negpip\.py", "NegPiP", "run", Answer.COUNTS_LAYERS),
    # Its count goes on from evaluation to evaluation; where a call has the rows of one prompt alone (NGMS, Forge at CFG
    # 1) it decides whose regions they get. Prompt mode sums up all layers' attention.
    Known(r"scripts\.attention", "Regional Prompter, attention mode", "read", Answer.NEEDS_ALL),
    # Forge and its kin
    Known(r"forge_freeu\.py|ldm_patched\.contrib\.nodes_freelunch", "FreeU", "run"),
    Known(r"kohya_hrfix\.py|ldm_patched\.contrib\.nodes_model_downscale", "Forge's Kohya HRFix", "run"),
    Known(r"ldm_patched\.contrib\.nodes_(tomesd|hypertile)", "reForge's ToMe and HyperTile", "run"),
    Known(r"lib_ipadapter\.IPAdapterPlus|(pulid\.)?PuLID", "IP-Adapter, InstantID, PuLID", "run"),
    Known(r"forge_fooocus_inpaint\.py", "Fooocus inpaint: acts on input block 0", "run"),
    Known(r"preprocessor_tile\.py", "tile preprocessor: acts on the first and the last block", "run"),
    Known(r"forge_stylealign\.py", "StyleAlign: shares among the rows of a call", "read"),
    Known(r"forge_perturbed_attention\.py|pag_neo\.py|pag_nodes", "PAG: a further call of another role", "run"),
    Known(r"nag\.py:create_nag_attention_processor\..*", "NAG as sd-forge-nag has it: as PAG", "run"),
    # Its smoothed energy guidance beside it makes its attention anew at each call, so no call is like another.
    Known(r"guidance_utils:perturbed_attention", "PAG as sd-perturbed-attention has it", "run"),
    Known(r"lib_multidiffusion\.tiled_diffusion", "MultiDiffusion, Mixture of Diffusers", "run"),
    Known(r"lib_couple\.attention_couple", "forge-couple", "run"),
    Known(r"lib_layerdiffusion\.attention_sharing", "LayerDiffuse", "run"),
    # SD.Next and diffusers
    Known(r"modules\.sd_hijack_(hypertile|dynamic_atten)", "SD.Next's HyperTile and attention", "run"),
    Known(r"modules\.todo\.todo_(merge|utils)", "SD.Next's ToDo", "run"),
    Known(r"modules\.pag\.pipe_sd(xl)?", "SD.Next's PAG", "run"),
    Known(r"modules\.(sdnq(\..*)?|sd_offload|linfusion\.attention)", "SD.Next's SDNQ, offload, LinFusion", "run"),
    Known(r"modules\.control\.units\.lite_model", "SD.Next's ControlLLLite", "read"),
    Known(r"diffusers\.hooks\.layer_skip", "diffusers' AutoGuidance", "run"),
    Known(r"diffusers\.hooks\.smoothed_energy_guidance_utils", "diffusers' smoothed energy guidance", "run"),
    Known(
        r"diffusers\.pipelines\.(deprecated\.)?text_to_video_synthesis\..*", "Text2Video-Zero: rows of one call", "run"
    ),
)


@lru_cache(maxsize=1000)
def known(name: str) -> Answer | None:
    """The answer for code with this origin (`neighbours.origin`); None where nothing is known."""
    return next((row.answer for row in TABLE if row.matches(name)), None)
