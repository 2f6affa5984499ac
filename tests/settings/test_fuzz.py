"""Whatever the API or an infotext hands to the script: no hook raises, and what is wrong is said in words."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepcache_ext.settings.fields import CUSTOM, FIELD, FIELDS, OBEYED, PRESETS, SettingsError
from deepcache_ext.settings.settings import Settings, parse
from tests import unets
from tests.replay import fakehost

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.sampled_from([CUSTOM, "custom ", *PRESETS, "copy", "forecast", "auto", "both", "hires only", "3", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def likely(field: Any) -> st.SearchStrategy[Any]:
    """Values of the field's own type, in its range and just outside, and now and then anything."""
    if field.choices:
        own: st.SearchStrategy[Any] = st.sampled_from(field.choices)
    elif isinstance(field.default, bool):
        own = st.booleans()
    elif isinstance(field.default, str):
        own = st.text(max_size=20) | st.sampled_from(["0-3, 6", "0 40-999999:7", "3-1"])
    elif isinstance(field.default, int):
        own = st.integers(int(field.minimum) - 1, int(field.maximum) + 1)
    else:
        own = st.floats(field.minimum - 0.1, field.maximum + 0.1)
    return st.one_of(own, own, own, ANY)


EACH = {field.name: likely(field) for field in FIELDS}
POSITIONAL = st.tuples(*EACH.values()).flatmap(
    lambda values: st.integers(0, len(values)).map(lambda count: list(values[:count]))
)
STRANGE = st.dictionaries(st.sampled_from([*FIELD, "intervall", ""]), ANY, max_size=2)
NAMED = st.tuples(STRANGE, st.fixed_dictionaries({}, optional=EACH)).map(lambda both: [{**both[0], **both[1]}])
ARGUMENTS = st.one_of(POSITIONAL, NAMED, st.lists(ANY, max_size=12))


@pytest.fixture(scope="module")
def host() -> Any:
    with fakehost.host_with_extension() as running:
        running.load_model(unets.make("three-levels"))
        yield running


def generation(host: fakehost.Host, args: list[Any]) -> tuple[fakehost.Processing, torch.Tensor]:
    """All hooks and callbacks of a generation with these arguments, and a call of the UNet in between."""
    p = fakehost.processing(host, "StableDiffusionProcessingTxt2Img")
    p.sampler = fakehost.sampler(p, "Euler", "CFGDenoiserKDiffusion")
    denoiser = p.sampler.model_wrap_cfg
    denoiser.step, denoiser.total_steps = 0, 4
    host.new_job()
    script, arguments = host.script, unets.inputs("three-levels", size=(8, 8))
    script.before_process(p, *args)
    script.process_batch(p, *args)
    script.process_before_every_sampling(p, *args)
    for step in range(3):
        recorded = {"sigma": [14.0 / (step + 1)], "sampling_step": step, "total_sampling_steps": 4}
        params = fakehost.CFGDenoiserParams(arguments["x"], recorded, denoiser)
        host.call_back("cfg_denoiser", params)
        with torch.no_grad():
            output = host.shared.sd_model.model.diffusion_model(**arguments)
    script.post_sample(p, None, *args)
    script.postprocess_batch(p, *args)
    script.postprocess(p, None, *args)
    return p, output


@given(args=ARGUMENTS)
@settings(max_examples=settings.default.max_examples * 6 // 5)
@example(args=[True, "Custom", math.nan])
@example(args=[True, "Custom", 10**400])
@example(args=[True, "Custom", -(10**5000)])
@example(args=[{"enabled": True, "start": 1e308, "end": -math.inf}])
@example(args=[None])
def test_no_argument_makes_a_hook_raise(host: Any, args: list[Any]) -> None:
    host.log.said.clear()
    unet = host.shared.sd_model.model.diffusion_model
    before = unets.traces(unet)
    p, output = generation(host, args)
    assert unets.traces(unet) == before
    assert not [line for line in host.log.said if "error inside" in line]
    told = p.extra_generation_params.get("DeepCache error")
    try:
        wanted = parse(args)
    except SettingsError as error:
        # In the infotext and under the picture: which setting, what it was, and what may stand there.
        assert told == str(error) and str(error) in p.comments[0]
        assert error.field in told and " is not allowed: " in told and len(told) < 400
        assert "DeepCache" not in p.extra_generation_params
    else:
        assert told is None
        assert bool(p.comments) <= wanted.enabled
        assert ("DeepCache version" in p.extra_generation_params) is wanted.enabled
    assert torch.isfinite(output).all()


@st.composite
def usable(draw: Any) -> Settings:
    values = {
        f.name: draw(st.sampled_from(f.choices))
        if f.choices
        else draw(st.booleans())
        if isinstance(f.default, bool)
        else draw(st.sampled_from(["0", "0-3, 6"]))
        if isinstance(f.default, str)
        else draw(
            st.integers(int(f.minimum), int(f.maximum))
            if isinstance(f.default, int)
            else st.floats(f.minimum, f.maximum)
        )
        for f in FIELDS
    }
    values["start"], values["end"] = sorted((values["start"], values["end"]))
    values["hires_speed_up"] *= values["hires_speed_up"] >= 1
    return parse([{**values, "enabled": True}])


@given(wanted=usable())
def test_an_infotext_says_what_was_set(wanted: Settings) -> None:
    """From the settings to the text under a picture, as the host writes it, and back."""
    written = {key: str(value) for key, value in wanted.infotext().items()}
    read = {f.name: type(f.default)(written[f.infotext]) for f in FIELDS if f.infotext in written}
    again = parse([{"enabled": True, **read}])
    assert again.infotext() == wanted.infotext()
    assert all(getattr(again, name) == getattr(wanted, name) for name in OBEYED[wanted.strategy])


@given(params=st.dictionaries(st.sampled_from([f.infotext for f in FIELDS] + ["DeepCache version", "Steps"]), ANY))
def test_no_infotext_makes_pasting_raise(host: Any, params: dict[str, Any]) -> None:
    """A reader gives what its control can show, or None for what it had before."""
    from deepcache_ext.interface.infotext import paste_fields

    logging.getLogger("deepcache").setLevel(logging.ERROR)
    *fields, (notice, note) = paste_fields({f.name: f for f in FIELDS}, "notice")
    assert notice == "notice" and isinstance(note(params), str)
    for field, read in fields:
        value = read(params)
        if field.name == "enabled":
            assert value is ("DeepCache version" in params)
        else:
            assert value is None or field.parse(value) == value
