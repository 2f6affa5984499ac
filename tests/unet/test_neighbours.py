"""Who lives in the blocks that a cached call skips: found, named, and asked about in the table of the known."""

import contextlib
import functools
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers.models import attention_processor
from ldm.modules import attention
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deepcache_ext.unet import known, neighbours, tracing
from deepcache_ext.unet.diffusers import DiffusersLadder
from deepcache_ext.unet.known import Answer
from deepcache_ext.unet.ldm import Ladder
from deepcache_ext.unet.neighbours import cache_above, class_forward, home_of, in_part, look, origin, unknown_names
from tests import diffusers_unets, forge_unets, unets

HERE = "tests.unet.test_neighbours"


def from_file(name, code, **given):
    """What `code` makes as `found`, in a module as hosts load an extension's script: named after its file."""
    space = {"__name__": name, "functools": functools, "nn": nn, **given}
    exec(code, space)
    return space["found"]


def looked(unet, ladder, **more):
    return look(ladder.skipped(0), home_of(unet), **more)


@pytest.fixture
def unet():
    return unets.make("three-levels")


@pytest.mark.parametrize("layout", unets.LAYOUTS)
def test_a_plain_unet_has_none(layout):
    unet = unets.shared_unet(layout)
    assert looked(unet, Ladder(unet)) == neighbours.Foreign()


@pytest.mark.parametrize("layout", diffusers_unets.LAYOUTS)
def test_a_plain_unet_of_diffusers_has_none(layout):
    unet = diffusers_unets.shared_unet(layout)
    assert looked(unet, DiffusersLadder(unet)) == neighbours.Foreign()
    assert class_forward(type(unet), home_of(unet)) is None


@pytest.mark.parametrize("protocol", forge_unets.PROTOCOLS)
def test_a_plain_unet_of_forge_has_none(protocol):
    unet = forge_unets.make(protocol)
    assert looked(unet, Ladder(unet)) == neighbours.Foreign()


def own_forward(module):
    own = module.forward
    module.forward = lambda *args, **kwargs: own(*args, **kwargs)


def wrapped_forward(module):
    own = module.forward
    module.forward = functools.partial(functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs)))


def other_class(module):
    module.__class__ = type("Counting", (type(module),), {"__module__": HERE})


def hook(module):
    module.register_forward_hook(lambda *_: None)


def pre_hook(module):
    module.register_forward_pre_hook(lambda *_: None)


WAYS = [own_forward, wrapped_forward, other_class, hook, pre_hook]


@pytest.mark.parametrize("way", WAYS)
def test_who_is_inside_is_named(unet, way):
    way(unet.middle_block[0].in_layers[2])
    assert looked(unet, Ladder(unet)).unknown == (HERE,)
    assert looked(unet, Ladder(unet), trusted={HERE}) == neighbours.Foreign()


@pytest.mark.parametrize("way", WAYS)
def test_what_runs_at_every_call_needs_no_look(unet, way):
    way(unet.output_blocks[-1])
    assert looked(unet, Ladder(unet)) == neighbours.Foreign()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["down_blocks.0", "up_blocks.2"])
def test_who_is_on_a_block_that_runs_in_part_is_named(where, way):
    """It is given fewer skip connections by a cached call than by a full one, or gives fewer."""
    unet = diffusers_unets.make("sd1")
    way(unet.get_submodule(where))
    skipped = DiffusersLadder(unet).skipped(1)
    partly = in_part(unet, {id(module) for block in skipped for module in block.modules()})
    assert look(skipped, home_of(unet), in_part=partly).unknown == (HERE,)
    assert look(skipped, home_of(unet)) == neighbours.Foreign()


def test_a_forward_put_on_the_class(unet, monkeypatch):
    layer = unet.middle_block[0].in_layers[2]
    own = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", lambda self, *args: own(self, *args))
    assert looked(unet, Ladder(unet)).unknown == (HERE,)


@pytest.mark.parametrize("name", ["_forward", "__call__"])
def test_another_method_put_on_a_class(unet, monkeypatch, name):
    kind = type(unet.middle_block[0])
    own = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *args: own(self, *args))
    assert looked(unet, Ladder(unet)).unknown == (HERE,)


def test_a_call_put_on_all_modules(unet, monkeypatch):
    own = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *args: own(self, *args))
    assert looked(unet, Ladder(unet)).unknown == (HERE,)


def test_another_method_put_on_an_instance(unet):
    """As asymmetric tiling does it."""
    layer = unet.middle_block[0].in_layers[2]
    own = layer._conv_forward
    layer._conv_forward = lambda *args: own(*args)
    assert looked(unet, Ladder(unet)).unknown == (HERE,)


def test_functions_that_forwards_ask_for(unet, monkeypatch):
    """Recorders of attention maps stand in place of the module's own functions, or of torch's."""
    own = attention.einsum
    monkeypatch.setattr(attention, "einsum", lambda *args: own(*args))
    assert looked(unet, Ladder(unet)).unknown == (HERE,)
    monkeypatch.undo()
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *args: None)
    assert looked(unet, Ladder(unet)).unknown == (HERE,)
    monkeypatch.undo()
    assert looked(unet, Ladder(unet)) == neighbours.Foreign()


def test_a_processors_class_that_was_patched(monkeypatch):
    unet = diffusers_unets.make("sd1")
    kind = type(unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor)
    own = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *args, **kwargs: own(*args, **kwargs))
    assert looked(unet, DiffusersLadder(unet)).unknown == (HERE,)


class Watching(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Watching, Counting])
def test_modes_of_torch(mode):
    assert tracing.modes() == []
    with mode(), torch.device("cpu"):
        names = [origin(type(one)) for one in tracing.modes()]
        assert unknown_names(names) == [HERE]


def test_a_hook_on_all_modules(unet):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert looked(unet, Ladder(unet)).unknown == (HERE,)
    handle.remove()
    assert looked(unet, Ladder(unet)) == neighbours.Foreign()


def test_the_classs_own_forward_left_behind_is_nobody(unet):
    """ControlNet, accelerate and others leave it bound in the instance."""
    for module in unet.modules():
        module.forward = module.forward
    assert looked(unet, Ladder(unet)) == neighbours.Foreign()


class Storing(attention_processor.AttnProcessor2_0):
    pass


def test_attention_processors():
    unet = diffusers_unets.make("sd1")
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor = attention_processor.AttnProcessor()
    assert looked(unet, DiffusersLadder(unet)) == neighbours.Foreign()
    attention.processor = Storing()
    assert looked(unet, DiffusersLadder(unet)).unknown == (HERE,)


def test_pipelines_of_diffusers_are_not_its_networks():
    """SAG's, LEDITS++'s and others' processors store attention for their pipelines."""
    names = ("diffusers.pipelines.ledits_pp.pipeline:LEDITSCrossAttnProcessor", "diffusers.hooks.faster_cache:Hook")
    assert unknown_names(names) == [name.partition(":")[0] for name in names]
    assert unknown_names(["diffusers.models.attention_processor:AttnProcessor"]) == []


def test_diffusers_own_registry_tells_by_its_names(unet):
    registry = SimpleNamespace(hooks={"layerwise_casting": nn.Identity(), "fbc_block_hook": nn.Identity()})
    unet.middle_block[0].__dict__["_diffusers_hook"] = registry
    assert looked(unet, Ladder(unet)).unknown == ("diffusers hook fbc_block_hook",)


def test_a_class_on_a_librarys_unet_is_not_the_library():
    """HiDiffusion puts its own classes on UNet and blocks: the UNet's must not vouch for the blocks'."""
    unet = diffusers_unets.make("sd1")
    for module in (unet, unet.mid_block):
        other_class(module)
    assert home_of(unet) == frozenset()
    assert looked(unet, DiffusersLadder(unet)).unknown == (HERE,)


def test_origins_are_where_the_code_stands():
    disguised = functools.wraps(torch.relu)(lambda x: x)
    disguised.__module__ = "torch.nn"
    assert origin(disguised).startswith(f"{HERE}:")
    assert origin(functools.partial(disguised)).startswith(f"{HERE}:")
    assert origin(contextlib.contextmanager(disguised)) == origin(disguised)  # as a method of peft's layers is
    assert origin(Storing()).startswith(HERE) and origin(Storing().__call__).startswith("diffusers.models.")
    assert from_file("negpip.py", "found = lambda: None").__globals__["__name__"] == "negpip.py"
    assert origin(from_file("negpip.py", "def found(): pass")) == "negpip.py:found"


def test_the_main_modules_functions_are_told_apart():
    assert unknown_names([origin(from_file("__main__", "def found(): pass"))]) == ["__main__:found"]


@pytest.mark.parametrize("row", known.TABLE, ids=lambda row: row.who)
def test_every_row_of_the_table_is_needed(row):
    """Its patterns are anchored, and no library vouches for its names already."""
    example = EXAMPLES[row.who]
    assert row.matches(example) and known.known(example) is row.answer
    assert not neighbours.LIBRARIES.match(example)
    module, _, name = example.partition(":")
    assert not row.matches(f"x{module}:{name}")
    assert row.code.endswith(".*") or "(\\..*)" in row.code or not row.matches(f"{module}x:{name}")
    re.compile(row.code)


def test_an_attention_that_is_made_anew_at_each_call_is_not_believed():
    """sd-perturbed-attention's two guidances stand in one module."""
    theirs = ["guidance_utils:perturbed_attention", "guidance_utils:seg_attention_wrapper.<locals>.seg_attention"]
    assert unknown_names(theirs[:1]) == [] and unknown_names(theirs) == ["guidance_utils"]


EXAMPLES = {
    "A1111's attention and casts": "modules.sd_hijack_optimizations:xformers_attention_forward",
    "A1111's cross-attention": "modules.hypernetworks.hypernetwork:attention_CrossAttention_forward",
    "A1111's forward switch, manual cast, low VRAM": "modules.sd_unet:create_unet_forward.<locals>.UNetModel_forward",
    "LoRA of A1111 and Forge: loaded networks are watched": "networks:network_Linear_forward",
    "LoRA of the LyCORIS extension: loaded networks are watched": "l_networks:network_Linear_forward",
    "A1111's HyperTile": "hypertile:self_attn_forward.<locals>.wrapper",
    "ToMe": "tomesd.patch:make_tome_block.<locals>.ToMeBlock",
    "kernels put in place of torch's attention": "sageattention.core:sageattn",
    "SD.Next's attention for all of torch": "modules.attention:set_sage_attention.<locals>.sdpa_sage_atten",
    "ControlNet's forward of the UNet; not its reference units": "scripts.hook:UnetHook.hook.<locals>.forward_webui",
    "ControlNet's IP-Adapter": "scripts.ipadapter.plugable_ipadapter:attn_forward_hacked",
    "ControlNet's LLLite": "scripts.controlnet_lllite:forward",
    "AnimateDiff": "motion_module:MotionModule",
    "Kohya HRFix": "khrfix.py:Scaler",
    "BMAB's Kohya HRFix": "sd_bmab.external.kohyahiresfix:Scaler",
    "IC-Light (sd-forge-ic-light) on A1111: further channels": "lib_iclight.backends.a1111:new_forward",
    "LLuL": "scripts.llul_hooker:pre_hook",
    "Incantations' PAG: its state lives within one call": "scripts.pag:pag_pre_hook",
    "Incantations' SEG": "scripts.smoothed_energy_guidance:SEG.hijack.<locals>.seg_to_q_hook",
    "Agent Attention: as ToMe; its second pass is other classes": "agentsd.patch:make_tome_block.<locals>.ToMeBlock",
    "FABRIC: two walks in one call, whose rows are watched": "scripts.patching:new_forward",
    "additional-networks": "scripts.lora_compvis:LoRAModule.forward",
    "Regional Prompter with LoRA, latent mode": "scripts.latent:h_Linear_forward",
    "NegPiP": "negpip.py:hook_forward.<locals>.forward",
    "NegPiP with Regional Prompter's latent mode": "negpip.py:hook_forward.<locals>.forward with regions",
    "Regional Prompter, attention mode": "scripts.attention:hook_forward.<locals>.forward",
    "Forge's Kohya HRFix": "kohya_hrfix.py:KohyaHRFix.patch.<locals>.input_block_patch",
    "NAG as sd-forge-nag has it: as PAG": "nag.py:create_nag_attention_processor.<locals>.nag_attention",
    "PAG as sd-perturbed-attention has it": "guidance_utils:perturbed_attention",
    "FreeU": "forge_freeu.py:Script.patch.<locals>.output_block_patch",
    "reForge's ToMe and HyperTile": "ldm_patched.contrib.nodes_tomesd:tomesd_m",
    "IP-Adapter, InstantID, PuLID": "lib_ipadapter.IPAdapterPlus:CrossAttentionPatch",
    "Fooocus inpaint: acts on input block 0": "forge_fooocus_inpaint.py:input_block_patch",
    "tile preprocessor: acts on the first and the last block": "preprocessor_tile.py:block_proc",
    "StyleAlign: shares among the rows of a call": "forge_stylealign.py:attn1_proc",
    "PAG: a further call of another role": "forge_perturbed_attention.py:attn_proc",
    "MultiDiffusion, Mixture of Diffusers": "lib_multidiffusion.tiled_diffusion:MultiDiffusion",
    "forge-couple": "lib_couple.attention_couple:attn2_patch",
    "LayerDiffuse": "lib_layerdiffusion.attention_sharing:AttentionSharingUnit",
    "SD.Next's HyperTile and attention": "modules.sd_hijack_hypertile:wrapper",
    "SD.Next's ToDo": "modules.todo.todo_merge:TokenMergeAttentionProcessor",
    "SD.Next's PAG": "modules.pag.pipe_sdxl:PAGIdentitySelfAttnProcessor",
    "SD.Next's SDNQ, offload, LinFusion": "modules.sdnq.layers.linear:forward",
    "SD.Next's ControlLLLite": "modules.control.units.lite_model:forward",
    "diffusers' AutoGuidance": "diffusers.hooks.layer_skip:AttentionProcessorSkipHook",
    "diffusers' smoothed energy guidance": "diffusers.hooks.smoothed_energy_guidance_utils:SmoothedEnergyGuidanceHook",
    "Text2Video-Zero: rows of one call": "diffusers.pipelines.text_to_video_synthesis.pipeline:CrossFrameAttnProcessor",
}


def test_readers_are_in_no_row():
    """They look at what skipped blocks would do: the pass runs in full."""
    for name in (
        "scripts.hook:UnetHook.hook.<locals>.hacked_basic_transformer_inner_forward",
        "SAG.py:xattn_forward_log",
        "forge_sag.py:attn_and_record",
        "ldm_patched.contrib.nodes_sag:attn_and_record",
        "scripts.scfg:to_q_hook",
        "scripts.daam.trace:UNetCrossAttentionHooker",
        "lib_controllllite.lib_controllllite:LLLiteModule",
        "modules.hidiffusion.hidiffusion:forward",
        "hidiffusion.hidiffusion:forward",
        "tgate.tgate_utils:forward",
        "forge_reference.py:block_proc",
        "modules.sd_hijack_freeu_x:forward",
    ):
        assert unknown_names([name]), name


def test_those_who_count_layers_are_told_apart(unet):
    layer = unet.middle_block[0].in_layers[2]
    layer.forward = from_file("negpip.py", "def found(*args, **kwargs): return own(*args, **kwargs)", own=layer.forward)
    found = looked(unet, Ladder(unet))
    assert found.unknown == () and found.counting == ("negpip.py",)
    assert known.known("negpip.py:found") is Answer.COUNTS_LAYERS


@pytest.mark.parametrize("regions", [False, True])
def test_negpip_beside_latent_regions_must_see_every_layer(unet, regions):
    """It says so on the script that its forwards know as `self`."""
    layer = unet.middle_block[0].in_layers[2]
    code = """
def found(self, own):
    def forward(*args):
        self.count += 1
        return own(*args)
    return forward
"""
    script = SimpleNamespace(count=0, enable_rp_latent=regions)
    layer.forward = from_file("negpip.py", code)(script, layer.forward)
    found = looked(unet, Ladder(unet))
    assert (found.unknown, found.counting) == ((("negpip.py",), ()) if regions else ((), ("negpip.py",)))


def test_regional_prompter_must_see_every_layer(unet):
    layer = unet.middle_block[0].in_layers[2]
    layer.forward = from_file("scripts.attention", "def found(*args): return own(*args)", own=layer.forward)
    assert looked(unet, Ladder(unet)).unknown == ("scripts.attention",)


@pytest.mark.parametrize(
    ("module", "name", "shown"),
    [
        ("lib_spectrum.forecaster", "spectrum_unet_wrapper", "lib_spectrum.forecaster"),
        ("spectrum_core.forecaster", "spectrum_unet_wrapper", "spectrum_core.forecaster"),
        ("spectrum_reforge.py", "spectrum_unet_wrapper", "spectrum_reforge.py"),
        ("nodes", "Teacache.patch.<locals>.teacache_wrapper", "teacache_wrapper"),
        ("lib_multidiffusion.tiled_diffusion", "MultiDiffusion.__call__", None),
        ("sd_forge_radial.py", "unet_wrapper_function", None),
    ],
)
def test_caches_above_the_calls_go_by_their_names(module, name, shown):
    wrapper = from_file(module, f"def found(): pass\nfound.__qualname__ = {name!r}")
    assert cache_above(wrapper) == cache_above(functools.partial(wrapper)) == shown
    assert cache_above(None) is None
