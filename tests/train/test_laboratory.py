"""The laboratory: which networks there are, that a training repeats itself, and that latents are the pictures."""

import json
from dataclasses import replace

import pytest
import torch

from train.laboratory import cards, learn, model, networks
from train.laboratory.networks import CHOOSING, JUDGING, LATER, NETWORKS, Network, of_half
from train.laboratory.pictures import SIDE, SOURCES, Pictures

TINY = {"channel_mult": [1, 1, 1], "num_res_blocks": 1, "attention_resolutions": [2], "num_heads": 1}


def pictures(count: int = 6, colours: int = 3) -> Pictures:
    drawn = torch.randint(0, 256, (count, colours, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    return Pictures(drawn.byte(), tuple(f"word{k}" for k in range(count)), "nobody's")


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Network:
    monkeypatch.setenv("DEEPCACHE_LAB", str(tmp_path))
    return Network("tiny", CHOOSING, "forty", "eps", "sd1", TINY, steps=3, batch=2)


def test_both_halves_hold_every_kind():
    assert len(NETWORKS) >= 6 and len({one.name for one in NETWORKS}) == len(NETWORKS)
    for half in (CHOOSING, JUDGING):
        of = of_half(half)
        assert {one.prediction for one in of} == {"eps", "v"}
        assert {one.layout for one in of} == {"sd1", "sdxl"}
        assert {one.attends_finest for one in of} == {True, False}
        assert {one.pictures for one in of} == set(SOURCES)
    kinds = [(one.pictures, one.prediction, one.layout) for one in NETWORKS if one.half != LATER]
    assert len(set(kinds)) == len(kinds)  # no network of one half has its like in the other


def test_three_and_four_levels_have_nine_and_twelve_output_blocks():
    depths = {"sd1": 12, "sdxl": 9}
    for one in NETWORKS[:3]:
        made = model.Model(one, 3)
        assert len(made.unet.output_blocks) == len(made.unet.input_blocks) == depths[one.layout]


def test_norms_scale_as_many_channels_together_as_the_network_says():
    for one in (of_half(JUDGING)[0], of_half(LATER)[0]):
        norms = [module for module in model.Model(one, 3).unet.modules() if isinstance(module, torch.nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == {one.groups}
    assert {one.groups for one in of_half(LATER)} == {8}


def test_a_name_that_is_not_there_is_told_with_the_known_ones():
    with pytest.raises(KeyError, match="photos-eps-sd1"):
        networks.called("nothing")


def test_a_latent_is_the_picture():
    of = pictures()
    code, shown = of.code(), of.pixels.float() / 255
    latents = code.encode(shown * 2 - 1)
    assert latents.shape == (6, 3, SIDE, SIDE)
    assert abs(float(latents.mean())) < 0.01 and abs(float(latents.std()) - 1) < 0.01
    assert torch.allclose(code.decode(latents), shown, atol=1e-5)


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_a_training_repeats_itself_and_its_card_tells_what_it_is(tiny, layout):
    config = {**TINY, "transformer_depth": [0, 1, 1]} if layout == "sdxl" else TINY
    network = replace(
        tiny, layout=layout, config={k: v for k, v in config.items() if layout == "sd1" or k[:5] != "num_h"}
    )
    card = learn.train(network, pictures())
    first = network.weights.read_bytes()
    learn.train(network, pictures())
    assert network.weights.read_bytes() == first
    learn.train(replace(network, seed=2), pictures())
    assert network.weights.read_bytes() != first
    assert json.loads(network.card.read_text())["half"] == CHOOSING
    assert card["prediction"] == "eps" and card["steps"] == 3 and len(card["texts"]) == 6
    loaded, code, read = model.load(network)
    assert read["channels"] == 3 and code.mean == pictures().code().mean
    x, t = torch.randn(1, 3, SIDE, SIDE), torch.tensor([500.0])
    outputs = [loaded(x, t, loaded.text.numbers(text)) for text in ("word1", "word2")]
    assert torch.isfinite(outputs[0]).all() and not torch.equal(*outputs)


def test_before_its_training_a_network_says_how_to_train_it(tiny):
    with pytest.raises(FileNotFoundError, match=r"python -m train\.laboratory tiny"):
        model.load(tiny)


def test_the_page_tells_of_both_halves_what_is_trained_and_what_is_not(tiny):
    other = replace(tiny, name="other", half=JUDGING, prediction="v")
    learn.train(tiny, pictures())
    first, second = cards.page([tiny, other]).split("## The judging half")
    assert "| tiny | eps | 12 | no | forty: 6, nobody's |" in first and "other" not in first
    assert "| other | v | 12 | no | forty | – | 3 | not trained yet |" in second
