"""What others turn in mid-run on the modules of a diffusers UNet: one full step, and then on as planned."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from deepcache_ext import DeepCache
from deepcache_ext.report.pass_report import Reason
from tests import diffusers_unets as unets
from tests.python.loops import CONTEXT, THIRD, call, latent

pytestmark = pytest.mark.usefixtures("quiet")


def test_gligens_boxes_that_end_in_mid_run():
    """Its pipeline switches the layers that see them off after the first steps."""
    unet, text = unets.make("sd1", attention_type="gated"), CONTEXT.shape[2]
    gligen = {
        "boxes": torch.tensor([[[0.1, 0.1, 0.6, 0.6]]]),
        "masks": torch.ones(1, 1),
        "positive_embeddings": torch.randn(1, 1, text, generator=torch.Generator().manual_seed(0)),
    }

    def outputs():
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            for module in unet.modules():
                if type(module).__name__ == "GatedSelfAttentionDense":
                    module.enabled = k < 4
            kwargs = {"cross_attention_kwargs": {"gligen": dict(gligen)}}
            found.append(unet(latent(k), t, encoder_hidden_states=CONTEXT[:1], **kwargs).sample)
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD) as cache:
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k in (0, 3, 4, 6) for k in range(7)]
    assert cache.report().passes[0].misses == {Reason.FIRST_SEEN: 1}


@pytest.mark.parametrize("was_on", [False, True])
def test_freeu_that_begins_in_mid_run(was_on):
    unet, free = unets.make("sd1"), {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
    if was_on:  # its numbers are None from then on
        unet.enable_freeu(**free)
        unet.disable_freeu()

    def outputs():
        unet.disable_freeu()
        found = []
        for k, t in enumerate(torch.arange(900, 200, -100)):
            if k == 4:
                unet.enable_freeu(**free)
            found.append(call(unet, k, t))
        return found

    plain = outputs()
    with DeepCache(unet, **THIRD):
        cached = outputs()
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [k in (0, 3, 4, 6) for k in range(7)]


class Counting(AttnProcessor2_0):
    """Somebody else's, which is to see every call."""

    seen = 0

    def __call__(self, *args, **kwargs):
        type(self).seen += 1
        return super().__call__(*args, **kwargs)


def test_a_processor_that_counts_and_comes_in_mid_run():
    """On any one of the attentions: those of the part that always runs see every call in any case."""
    refused = []
    for place in range(len(unets.make("sd1").attn_processors)):
        unet = unets.make("sd1")
        layer = [module for module in unet.modules() if type(module).__name__ == "Attention"][place]
        Counting.seen = 0
        with DeepCache(unet, **THIRD) as cache:
            for k, t in enumerate(torch.arange(900, 200, -100)):
                if k == 4:
                    layer.set_processor(Counting())
                call(unet, k, t)
        assert Counting.seen == 3
        (told,) = cache.report().passes
        assert told.off or told.misses == {Reason.STATE: 1}
        refused.append("test_mid_run` watches layers" in told.off)
    assert any(refused) and not all(refused)
