"""Calibrated plans on disk: what fits, what is refused and why."""

import dataclasses
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.calibrate.profile import CalibratedPlan, MadeFor, Profile, ProfileError, _digest, as_text, from_text
from deepcache_ext.calibrate.search import Wish
from deepcache_ext.calibrate.store import Profiles
from deepcache_ext.interface import calibrate
from deepcache_ext.interface.asked import passes_of
from deepcache_ext.plan.preview import PassAhead
from deepcache_ext.settings.fields import FIELDS
from deepcache_ext.settings.settings import Settings, overridden, parse

SIGMAS = tuple(14.6 * (0.03 / 14.6) ** (k / 19) for k in range(20))
AHEAD = PassAhead(False, 20, SIGMAS, 12, checkpoint="photo", checksum="0123456789", sampler="Euler")
PLAN = CalibratedPlan(2.0, "0, 2/5, 4, 8, 15-19", 44.5, 42.25, 4, 40)
"""Of 1.94x, for 20 evaluations."""
ASKED = Settings(enabled=True, preset="Custom", strategy="calibrated", speed_up=2.0)


def made_for(settings=ASKED, **changes):
    return MadeFor.of(dataclasses.replace(AHEAD, **changes), settings)


@pytest.fixture
def book(tmp_path):
    known = Profiles(tmp_path / "DeepCache")
    known.add(made_for(), PLAN)
    return known


def path_of(book, but=None):
    (found,) = (path for path in book._folder.glob("*.json") if path != but)
    return found


def test_a_profile_becomes_a_list_that_needs_none(book):
    settings, found = book.planned(ASKED, AHEAD)
    assert settings.strategy == "custom" and settings.full_evaluations == PLAN.evaluations and found.remark == ""
    assert [k for k, kind in enumerate(found.kinds) if kind == "full"] == [0, 4, 8, 15, 16, 17, 18, 19]
    assert [k for k, kind in enumerate(found.kinds) if kind == "medium"] == [2]
    again, same = Profiles().planned(settings, AHEAD)
    assert again == settings and same.branches == found.branches


def test_the_infotext_of_a_calibrated_picture_says_all(book):
    settings, _ = book.planned(ASKED, AHEAD)
    written = {key.removeprefix("DeepCache ").replace(" ", "_"): value for key, value in settings.infotext().items()}
    names = {"branch": "cache_branch_id", "medium_branch": "deeper_branch_id", "full_steps": "full_evaluations"}
    written.pop("version")
    given_again = {"enabled": True, **{names.get(name, name): value for name, value in written.items()}}
    for hires in (False, True):
        ahead = dataclasses.replace(AHEAD, hires=hires)
        assert Profiles().planned(parse([given_again]), ahead)[1].branches == book.planned(ASKED, ahead)[1].branches


def test_the_hires_pass_is_weighted(book):
    ahead = dataclasses.replace(AHEAD, hires=True)
    weighted = Settings(enabled=True, strategy="weighted", speed_up=2.0)
    own, found = book.planned(ASKED, ahead)
    assert own == ASKED and found.branches == book.planned(weighted, ahead)[1].branches and not found.remark
    after_the_first = book.planned(ASKED, AHEAD)[0]
    assert book.planned(after_the_first, ahead)[1].branches == found.branches


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checksum": "9999999999"}, r"made for checkpoint photo \[0123456789\], this is photo \[9999999999\]"),
        ({"checkpoint": "other", "checksum": ""}, "this is other"),
        ({"sampler": "Euler a"}, "made for sampler Euler, this is Euler a"),
        ({"sigmas": SIGMAS[:19]}, "made for 20 steps, this run has 19"),
        ({"sigmas": tuple(1.1 * s for s in SIGMAS)}, "other noise levels"),
        ({"depth": 9}, "a UNet of 12 output blocks"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(book, change, words):
    settings, found = book.planned(ASKED, dataclasses.replace(AHEAD, **change))
    assert settings.strategy == "weighted" and found.plan.caches
    with pytest.raises(ProfileError, match=words):
        book.plan_for(made_for(**change), 2.0)
    assert found.remark.startswith(f"profile {path_of(book).name}: made for")
    assert found.remark.endswith("weighted instead of calibrated")


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": "renamed"}, {"checksum": ""}, {"sigmas": tuple(1.005 * s for s in SIGMAS)}],
)
def test_what_is_the_same_in_other_words_fits(book, change):
    assert book.plan_for(made_for(**change), 2.01) == PLAN


def test_the_newest_of_two_that_fit(book):
    better = dataclasses.replace(PLAN, evaluations="0, 2, 4, 8, 15-19")
    path = book.add(made_for(checkpoint="as it is called now"), better)
    for one, age in ((path, 100), (path_of(book, but=path), 200)):
        os.utime(one, (age, age))
    assert book.plan_for(made_for(), 2.0) == PLAN
    os.utime(path, (300, 300))
    assert book.plan_for(made_for(), 2.0) == better


def test_another_speed_branch_or_window_does_not_fit(book):
    with pytest.raises(ProfileError, match=r"made for 2x, not 1\.6x"):
        book.plan_for(made_for(), 1.6)
    with pytest.raises(ProfileError, match="made for branch 0, not 1"):
        book.plan_for(made_for(dataclasses.replace(ASKED, cache_branch_id=1)), 2.0)
    with pytest.raises(ProfileError, match=r"made for start 0 and end 1, not start 0\.3 and end 1"):
        book.plan_for(made_for(dataclasses.replace(ASKED, start=0.3)), 2.0)


def test_the_reason_is_of_the_profile_that_comes_closest(book):
    for other in ("Heun", "LMS"):
        book.add(made_for(sampler=other), PLAN)
    book.add(made_for(sampler="DDIM", sigmas=SIGMAS[:19]), PLAN)
    with pytest.raises(ProfileError, match="made for 19 steps, this run has 20"):
        book.plan_for(made_for(sampler="DDIM"), 2.0)


def test_noise_levels_that_are_not_known():
    settings, found = Profiles().planned(ASKED, dataclasses.replace(AHEAD, sigmas=None))
    assert settings.strategy == "weighted"
    assert found.remark == "the noise levels of this run are not known beforehand: weighted instead of calibrated"


def test_without_a_folder_nothing_is_calibrated(tmp_path):
    for book in (Profiles(), Profiles(tmp_path / "not there")):
        assert book.planned(ASKED, AHEAD)[1].remark == "nothing has been calibrated: weighted instead of calibrated"
        assert book.fitting(made_for()) == []
    with pytest.raises(ProfileError, match="no folder"):
        Profiles().add(made_for(), PLAN)


def test_speeds_stand_beside_each_other_and_replace_their_own(book):
    faster, better = dataclasses.replace(PLAN, speed_up=2.6), dataclasses.replace(PLAN, psnr=46.0)
    assert book.add(made_for(), faster) == book.add(made_for(), better) == path_of(book)
    assert book.fitting(made_for()) == [better, faster]
    assert book.fitting(made_for(sampler="Heun")) == []


def damaged(text, kind):
    body = json.loads(text)
    if kind == "changed":
        body["plans"][0]["evaluations"] = "0"
    if kind == "newer":
        body["deepcache_profile"] = 2
    if kind == "unsigned":
        del body["checksum"]
    if kind == "list":
        body = [body]
    if kind == "deep":
        return "[" * 100_000
    return json.dumps(body) if kind != "cut" else text[: len(text) // 2]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("changed", "checksum is wrong"),
        ("newer", "of version 2, this DeepCache reads version 1"),
        ("unsigned", "not a profile"),
        ("list", "not a profile"),
        ("deep", "not a profile"),
        ("cut", "not a profile"),
    ],
)
def test_damaged_files_are_told_and_stop_nothing(book, kind, words):
    path = path_of(book)
    path.write_text(damaged(path.read_text(), kind))
    settings, found = book.planned(ASKED, AHEAD)
    assert settings.strategy == "weighted" and words in found.remark and path.name in found.remark
    assert book.fitting(made_for()) == []
    book.add(made_for(), PLAN)
    assert book.plan_for(made_for(), 2.0) == PLAN and path.with_suffix(".unread").exists()


def test_files_that_are_no_text_or_too_large(book, monkeypatch):
    path = path_of(book)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in book.planned(ASKED, AHEAD)[1].remark
    monkeypatch.setattr("deepcache_ext.calibrate.store.LARGEST", 10)
    path.write_text("x" * 11)
    assert "too large" in book.planned(ASKED, AHEAD)[1].remark


def signed(body):
    return json.dumps({**body, "checksum": _digest(body)})


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("made_for", {"sigmas": []}),
        ("made_for", {"sigmas": [1, "x"]}),
        ("made_for", {"sigmas": [-1.0]}),
        ("made_for", {"sampler": 3}),
        ("made_for", {"more": 1}),
        ("plans", {"speed_up": 50}),
        ("plans", {"evaluations": "0-x"}),
        ("plans", {"evaluations": "0, 3/0"}),
        ("plans", {"psnr": "high"}),
        ("plans", {"evaluations": 7}),
        ("plans", {"evaluations": "0, 3/12"}),
        ("plans", {"evaluations": "0"}),
        ("plans", {"evaluations": "0" + " " * 1000}),
        ("plans", {"pictures": math.inf}),
        ("plans", {"tries": True}),
        ("plans", {"branch": 12}),
        ("plans", {"estimator": "oracle"}),
        ("plans", {"speed_up": 10**400}),
        ("plans", {"psnr": math.nan}),
        ("made_for", {"sigmas": [5e-324]}),
        ("made_for", {"checkpoint": "\ud800"}),
        ("made_for", {"sampler": "x" * 400}),
        ("made_for", {"branch": None}),
        ("made_for", {"sigmas": {"0": 1}}),
        ("made_for", {"sigmas": [1.0] * 2000}),
    ],
)
def test_signed_nonsense_is_refused(part, change):
    body = json.loads(as_text(Profile(made_for(), (PLAN,))))
    del body["checksum"]
    target = body[part] if part == "made_for" else body[part][0]
    target.update(change)
    with pytest.raises(ProfileError, match="cannot be read"):
        from_text(signed(body))


NAMES = st.text(max_size=30).filter(str.isprintable)


@given(
    NAMES,
    NAMES,
    NAMES,
    st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=30),
    st.floats(1, 5),
    st.floats(0, 100),
)
def test_a_file_says_what_was_written(checkpoint, checksum, sampler, sigmas, speed_up, psnr):
    plan = CalibratedPlan(speed_up, "0-99, 5/4", psnr, psnr, 4, 40)
    profile = Profile(MadeFor(checkpoint, checksum, sampler, tuple(sigmas), 0, 12), (plan,))
    assert from_text(as_text(profile)) == profile
    assert "/" not in profile.file_name and "\\" not in profile.file_name and len(profile.file_name) < 130


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    with pytest.raises(ProfileError):
        from_text(text)


def test_what_the_page_foresees_is_what_runs(book):
    hires = dataclasses.replace(AHEAD, hires=True, sigmas=SIGMAS[5:])
    for asked in (ASKED, dataclasses.replace(ASKED, speed_up=3.0, deeper_branch_id=0)):
        settings, run = asked, []
        for ahead in (AHEAD, hires):
            settings, one = book.planned(settings, ahead)
            run.append(one.branches)
        seen = passes_of(asked, {}, lambda _: [AHEAD, hires], book)
        assert [one.branches for one in seen] == run


def test_an_axis_of_speeds_stays_calibrated():
    assert overridden(ASKED, {"speed_up": 2.6}) == dataclasses.replace(ASKED, speed_up=2.6)
    assert overridden(ASKED, {"cache_interval": 3}).strategy == "uniform"


@pytest.mark.parametrize("word", [None, "", "something"])
def test_the_hidden_box_is_no_setting(word):
    requests = calibrate.Requests()
    controls = [field.default for field in FIELDS]
    assert requests.taken([*controls, word]) == (controls, None)
    assert requests.taken([{"enabled": True, "calibrate": word}]) == ([{"enabled": True}], word)
    assert requests.taken(controls) == (controls, None) and requests.taken([]) == ([], None)
    pressed = requests.press(2, 5)
    assert requests.taken([*controls, pressed]) == (controls, Wish(2, 5))
    assert requests.taken([*controls, pressed]) == (controls, None)
