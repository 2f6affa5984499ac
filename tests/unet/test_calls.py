"""What tells calls apart; where a call's x lies in the evaluation's latent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.unet.answers import Answers
from deepcache_ext.unet.calls import WHOLE, Call, NoLatent, ask_lies_at, ask_same_content, autocast, locate


def latent(rows=3, height=12, width=10, seed=0):
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(seed))


def lies_at(x, source, region):
    return ask_lies_at(x, source, region, Answers())()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    top=st.integers(0, 4),
    left=st.integers(0, 2),
    scale=st.floats(0.07, 1.0),
    extra=st.sampled_from([0, 5]),
    whole_size=st.booleans(),
)
def test_a_part_is_found_where_it_was_taken(dtype, rows, top, left, scale, extra, whole_size):
    source = latent()
    part = source[rows] if whole_size else source[rows, :, top : top + 8, left : left + 8]
    x = torch.cat([(part * scale).to(dtype), torch.zeros(len(rows), extra, *part.shape[2:], dtype=dtype)], 1)
    region = locate(x, source)
    place = (0, 0) if whole_size else (top, left)
    expected = tuple((row, *place) for row in rows)
    if whole_size and len(rows) == 3:
        assert region == WHOLE  # the latent's own shape is the latent: rows are not looked into
        return
    assert region == expected
    assert lies_at(x, source, region)
    for wrong in [tuple((row, place[0], place[1] + 1) for row in rows), tuple(((row + 1) % 3, *place) for row in rows)]:
        assert not lies_at(x, source, wrong)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_large_latents_lie_where_they_are(size):
    """Rounding that grows with their size: of pictures of few, and of many, different numbers."""
    plain = torch.randint(0, 2, (1, 4, size, size), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    for source in (plain, latent(1, size, size)):
        for scale in (1.0, 0.9, 0.7071, 0.0683):
            assert lies_at(source * scale, source, WHOLE)
        other = source + 0.01 * latent(1, size, size, seed=1)
        assert not lies_at(other * 0.9, source, WHOLE)


def test_equal_rows_are_one_place():
    one = latent(2)
    both = one.repeat(2, 1, 1, 1)
    assert locate(both[2:] * 0.5, both) == locate(both[:2] * 0.5, both) == ((0, 0, 0), (1, 0, 0))


@pytest.mark.parametrize("amount", [0.03, 0.2])
def test_a_frame_that_differs_by_its_noise_is_another(amount):
    """Neighbouring frames of an animation at the end of a run: the same picture with little noise of its own."""
    picture = latent(1).repeat(4, 1, 1, 1)
    frames = picture + amount * latent(4, seed=1)
    assert locate(frames[2:3] * 0.9, frames) == ((2, 0, 0),)
    assert not lies_at(frames[2:3] * 0.9, frames, ((1, 0, 0),))
    assert locate(picture[:1] + amount * latent(1, seed=2), frames) is None


def test_what_is_not_there_is_not_found():
    assert locate(latent(1, seed=5), latent()) is None
    assert locate(latent(1, 8, 8, seed=5), latent()) is None
    assert locate(-latent()[:1], latent()) is None  # a factor is positive
    assert locate(latent(1, 13, 10), latent()) is None
    assert locate(torch.zeros(1, 4, 8, 8), latent()) is None


def test_other_dimensions_are_whole_or_unknown():
    video = torch.randn(2, 4, 3, 8, 8)
    assert locate(video, video) == WHOLE
    assert locate(video[:1], video) is None


def call(*args, **kwargs):
    return Call.of(args, kwargs)


def test_kind():
    x, t, context = torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 77, 64)
    base = call(x, t, context=context)
    assert base.kind == call(x + 1, t + 1, context).kind  # values and spelling do not make another kind
    assert base.kind == call(x=x, timesteps=t, context=context, y=None).kind
    for other in [
        call(x[:1], t, context=context),
        call(x.half(), t, context=context),
        call(x, t, context=context[:, :50]),
        call(x, t, context=context, y=torch.zeros(2, 9)),
        call(x, t, context=context, control=[context]),
        call(x, t, context=context, options={"a": 1}),
        call(x, t),
    ]:
        assert other.kind != base.kind
    assert call(x, t, options={"a": 1}).kind != call(x, t, options={"a": 2}).kind
    assert call(x, t, patch=object()).kind != call(x, t, patch=object()).kind
    assert len(call(x, t, context, control=[context, {"deep": t}]).conditioning) == 3
    with pytest.raises(NoLatent, match="without a tensor x"):
        call(None)


def same_content(one, other):
    return ask_same_content(one, other, Answers())()


def test_same_content():
    a, b = torch.zeros(3), torch.zeros(3)
    assert same_content([a], [b]) and same_content([], []) and same_content([a], [a])
    b[1] = 1e-6
    assert not same_content([a], [b])
    assert not same_content([a], [])
    assert not same_content([a], [torch.zeros(4)]) and not same_content([a], [a.double()])


def test_autocast_as_old_and_new_versions_of_torch_tell_it(monkeypatch):
    assert autocast("cpu") is autocast("meta") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast("cpu") is torch.bfloat16
    monkeypatch.delattr(torch, "get_autocast_dtype")
    monkeypatch.setattr(torch, "is_autocast_cpu_enabled", lambda: True)
    monkeypatch.setattr(torch, "get_autocast_cpu_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda: False)
    assert (autocast("cpu"), autocast("cuda")) == (torch.bfloat16, None)
