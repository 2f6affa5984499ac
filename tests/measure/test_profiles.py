"""What was measured, on disk: which model it holds for, the plans that follow from it, and what is refused and why."""

import dataclasses
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcache_ext.interface import measure
from deepcache_ext.interface.asked import passes_of
from deepcache_ext.measure.profile import MadeFor, Profile, ProfileError, _digest, as_text, from_text
from deepcache_ext.measure.store import MEASURED, Held, Profiles
from deepcache_ext.measure.trial import Wish
from deepcache_ext.plan import cost
from deepcache_ext.plan.importance import Nature
from deepcache_ext.plan.preview import PassAhead, planned
from deepcache_ext.settings.fields import FIELDS, MAX_TEXT, SettingsError
from deepcache_ext.settings.settings import Settings, parse

SIGMAS = tuple(14.6 * (0.03 / 14.6) ** (k / 19) for k in range(20))
AHEAD = PassAhead(False, 20, SIGMAS, 12, checkpoint="photo", checksum="0123456789", sampler="Euler")
FRESH = dataclasses.replace(AHEAD, nature=Nature(fresh_noise=True), sampler="Euler a")
AGEING = {0: 1.0, 2: 0.3, 5: 0.02}
"""Deep features hold: at 2x there are medium evaluations."""
ASKED = Settings(enabled=True, preset="Balanced", speed_up=2.0)


def made_for(ahead=AHEAD, **changes):
    return MadeFor.of(dataclasses.replace(ahead, **changes))


def profile_of(ahead=AHEAD, ageing=AGEING, **changes):
    return Profile(made_for(ahead, **changes), ageing, 2)


@pytest.fixture
def book(tmp_path):
    known = Profiles(tmp_path / "DeepCache")
    known.add(profile_of())
    return known


def path_of(book, but=None):
    (found,) = (path for path in book._folder.glob("*.json") if path != but)
    return found


def plain(settings, ahead):
    return planned(settings, ahead).branches


def test_what_was_measured_becomes_a_list_that_needs_no_file(book):
    settings, found = book.planned(ASKED, AHEAD)
    assert found.branches != plain(ASKED, AHEAD) and "medium" in found.kinds
    assert found.speed_up() >= cost.NEARLY * 2.0 and found.hint == MEASURED and not found.remark
    assert (settings.strategy, settings.preset) == ("custom", "Custom") and "/" in settings.full_evaluations
    again, same = Profiles().planned(settings, AHEAD)
    assert again == settings and same.branches == found.branches and same.estimator.name == found.estimator.name
    next_batch, once_more = book.planned(settings, AHEAD)
    assert next_batch == settings and once_more.branches == found.branches


@pytest.mark.parametrize("speed_up", [1.3, 1.6, 2.0, 2.6, 4.0, 5.0])
@pytest.mark.parametrize("deepest", [0.01, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("ahead", [AHEAD, FRESH])
def test_the_list_runs_the_plan_that_the_measurement_gives(speed_up, deepest, ahead):
    held = Held(profile_of(ahead, {0: 1.0, 2: deepest**0.5, 5: deepest}))
    asked = dataclasses.replace(ASKED, speed_up=speed_up, start=0.1, end=0.9)
    (own,) = held.known()
    settings, found = held.planned(asked, ahead)
    wanted = planned(asked, ahead, own.whole)
    assert found.branches == wanted.branches and found.estimator.name == wanted.estimator.name
    assert parse([{"enabled": True, **_named(settings)}]) == dataclasses.replace(settings, preset="Custom")


def _named(settings):
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("enabled", "preset")}


def test_the_infotext_of_such_a_picture_says_all(book):
    settings, _ = book.planned(ASKED, AHEAD)
    written = {key.removeprefix("DeepCache ").replace(" ", "_"): value for key, value in settings.infotext().items()}
    names = {"branch": "cache_branch_id", "hires_branch": "hires_cache_branch_id", "full_steps": "full_evaluations"}
    written.pop("version")
    given_again = {"enabled": True, **{names.get(name, name): value for name, value in written.items()}}
    for hires in (False, True):
        ahead = dataclasses.replace(AHEAD, hires=hires)
        assert Profiles().planned(parse([given_again]), ahead)[1].branches == book.planned(ASKED, ahead)[1].branches


@pytest.mark.parametrize("branch", [-1, 0, 3])
@pytest.mark.parametrize("speed_up", [0.0, 1.4])
def test_the_hires_pass_is_planned_as_before(branch, speed_up):
    """Also where the first pass's cached evaluations run a deeper branch than the settings name."""
    held = Held(profile_of(ageing={0: 1.0, 2: 0.05, 5: 0.01}))
    asked = dataclasses.replace(ASKED, speed_up=1.6, hires_cache_branch_id=branch, hires_speed_up=speed_up)
    hires = dataclasses.replace(AHEAD, hires=True, sigmas=SIGMAS[5:], total=15)
    own, found = held.planned(asked, hires)
    assert own == asked and found.branches == plain(asked, hires) and MEASURED not in found.hint
    after_the_first, first = held.planned(asked, AHEAD)
    assert after_the_first.cache_branch_id > 0 and first.hint == MEASURED
    after = held.planned(after_the_first, hires)[1]
    assert after.branches == found.branches and after.estimator.name == found.estimator.name


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "uniform"},
        {"strategy": "custom", "full_evaluations": "0, 5"},
        {"cache_branch_id": 1},
        {"deeper_branch_id": 5},
        {"passes": "hires only"},
        {"enabled": False},
        {"speed_up": 1.0},
    ],
)
def test_settings_that_say_themselves_what_runs_are_left_alone(book, changes):
    asked = dataclasses.replace(ASKED, **changes)
    settings, found = book.planned(asked, AHEAD)
    assert settings == asked and found.branches == plain(asked, AHEAD) and MEASURED not in found.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"sigmas": None},
        {"sigmas": (*SIGMAS[:-1], 0.0)},
        {"sigmas": SIGMAS[:11], "total": 11},
        {"checksum": "9999999999"},
        {"checkpoint": "other", "checksum": ""},
        {"depth": 9},
        {"nature": Nature(fresh_noise=True)},
        {"hires": True},
    ],
)
def test_passes_of_which_nothing_was_measured_are_as_before(book, changes):
    ahead = dataclasses.replace(AHEAD, **changes)
    settings, found = book.planned(ASKED, ahead)
    assert settings == ASKED and found.branches == plain(ASKED, ahead) and MEASURED not in found.hint
    assert found.remark == planned(ASKED, ahead).remark


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": "renamed"},
        {"checksum": ""},
        {"sampler": "UniPC"},
        {"sigmas": SIGMAS[4:], "total": 16},
        {"sigmas": tuple(1.3 * sigma for sigma in SIGMAS)},
    ],
)
def test_it_holds_for_other_samplers_steps_and_schedules_of_the_model(book, changes):
    assert book.planned(ASKED, dataclasses.replace(AHEAD, **changes))[1].hint.startswith(MEASURED)


def test_a_hint_of_the_plan_itself_is_told_too(book):
    ahead = dataclasses.replace(AHEAD, sampler="UniPC")
    assert planned(ASKED, ahead).hint
    assert book.planned(ASKED, ahead)[1].hint.startswith(f"{MEASURED}; ")


def test_a_list_that_is_too_long_is_not_made():
    many = tuple(14.6 * (0.03 / 14.6) ** (k / 599) for k in range(600))
    ahead, held = dataclasses.replace(AHEAD, sigmas=many, total=600), Held(profile_of())
    assert len(Held(profile_of()).planned(ASKED, AHEAD)[0].full_evaluations) <= MAX_TEXT
    settings, found = held.planned(ASKED, ahead)
    assert settings == ASKED and found.branches == plain(ASKED, ahead) and MEASURED not in found.hint


def test_the_newest_of_two_that_fit(book):
    other = profile_of(checkpoint="as it is called now", ageing={0: 1.0, 2: 1.0, 5: 1.0})
    path = book.add(other)
    for one, age in ((path, 100), (path_of(book, but=path), 200)):
        os.utime(one, (age, age))
    assert book.planned(ASKED, AHEAD)[0].cache_branch_id == 0 and next(book.known()) == profile_of()
    assert book.of_model(made_for())[False] == profile_of()
    os.utime(path, (300, 300))
    assert next(book.known()) == other and book.of_model(made_for())[False] == other
    assert "medium" not in book.planned(ASKED, AHEAD)[1].kinds


def test_the_two_kinds_of_samplers_stand_beside_each_other_and_replace_their_own(book):
    other_steps = profile_of(sampler="DDIM", sigmas=SIGMAS[2:])
    book.add(profile_of(FRESH, checksum="9999999999"))
    assert book.of_model(made_for()) == {False: profile_of()}
    fresh = profile_of(FRESH)
    book.add(fresh)
    assert book.of_model(made_for()) == {False: profile_of(), True: fresh}
    assert len(list(book.known())) == 3
    book.add(other_steps)
    assert book.of_model(made_for()) == {False: other_steps, True: fresh} and len(list(book.known())) == 3


def test_without_a_folder_nothing_is_measured(tmp_path):
    for book in (Profiles(), Profiles(tmp_path / "not there")):
        assert book.planned(ASKED, AHEAD)[0] == ASKED and list(book.known()) == book.unread() == []
    with pytest.raises(ProfileError, match="no folder"):
        Profiles().add(profile_of())


def damaged(text, kind):
    body = json.loads(text)
    if kind == "changed":
        body["ageing"]["5"] = 0.9
    if kind == "newer":
        body["deepcache_profile"] = 3
    if kind == "unsigned":
        del body["checksum"]
    if kind == "list":
        body = [body]
    if kind == "deep":
        return "[" * 20_000
    return json.dumps(body) if kind != "cut" else text[: len(text) // 2]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("changed", "checksum is wrong"),
        ("newer", "of version 3, this DeepCache reads version 2"),
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
    assert settings == ASKED and found.branches == plain(ASKED, AHEAD)
    (told,) = book.unread()
    assert words in told and path.name in told and words in measure.status([found], book)
    book.add(profile_of())
    assert list(book.known()) == [profile_of()] and path.with_suffix(".unread").exists() and not book.unread()


def test_files_that_are_no_text_or_too_large(book, monkeypatch):
    path = path_of(book)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in book.unread()[0]
    monkeypatch.setattr("deepcache_ext.measure.store.LARGEST", 10)
    path.write_text("x" * 11)
    assert "too large" in book.unread()[0] and book.planned(ASKED, AHEAD)[0] == ASKED


def signed(body):
    return json.dumps({**body, "checksum": _digest(body)})


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("made_for", {"blocks": 10}),
        ("made_for", {"blocks": None}),
        ("made_for", {"blocks": [12]}),
        ("made_for", {"blocks": 9}),
        ("made_for", {"fresh_noise": 1}),
        ("made_for", {"sampler": 3}),
        ("made_for", {"more": 1}),
        ("made_for", {"checkpoint": "\ud800"}),
        ("made_for", {"checksum": "x\n"}),
        ("made_for", {"sampler": "x" * 400}),
        ("made_for", {"steps": 0}),
        ("made_for", {"steps": 20.5}),
        ("made_for", {"steps": 10**400}),
        ("ageing", {"5": 0.0}),
        ("ageing", {"5": 3.5}),
        ("ageing", {"5": "low"}),
        ("ageing", {"5": math.nan}),
        ("ageing", {"5": True}),
        ("ageing", {"0": 0.5}),
        ("ageing", {"7": 0.5}),
        (None, {"pictures": math.inf}),
        (None, {"pictures": 1.5}),
        (None, {"pictures": True}),
        (None, {"ageing": [1, 2, 3]}),
        (None, {"ageing": {"0": 1.0, "2": 0.5}}),
        (None, {"made_for": None}),
        (None, {"plans": []}),
    ],
)
def test_signed_nonsense_is_refused(part, change):
    body = json.loads(as_text(profile_of()))
    del body["checksum"]
    assert from_text(signed(body)) == profile_of()
    (body if part is None else body[part]).update(change)
    with pytest.raises(ProfileError, match="cannot be read"):
        from_text(signed(body))


NAMES = st.text(max_size=30).filter(str.isprintable)
LEVELS = st.floats(0.01, 3)


@given(NAMES, NAMES, NAMES, st.booleans(), st.integers(1, 1000), LEVELS, LEVELS)
def test_a_file_says_what_was_written(checkpoint, checksum, sampler, fresh, steps, medium, deep):
    found = Profile(MadeFor(checkpoint, checksum, 9, fresh, sampler, steps), {0: 1.0, 3: medium, 5: deep}, 4)
    assert from_text(as_text(found)) == found
    assert "/" not in found.file_name and "\\" not in found.file_name and len(found.file_name) < 130
    assert set(found.whole) == {0, 1, 2, 3, 4, 5} and found.in_words


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    with pytest.raises(ProfileError):
        from_text(text)


def test_what_the_page_foresees_is_what_runs(book):
    hires = dataclasses.replace(AHEAD, hires=True, sigmas=SIGMAS[5:])
    for asked in (ASKED, dataclasses.replace(ASKED, speed_up=3.0)):
        settings, run = asked, []
        for ahead in (AHEAD, hires):
            settings, one = book.planned(settings, ahead)
            run.append(one.branches)
        seen = passes_of(asked, {}, lambda _: [AHEAD, hires], book)
        assert [one.branches for one in seen] == run and seen[0].as_json()["remark"].startswith(MEASURED)


# The page's words --------------------------------------------------------------------------------------------


def status(ahead, *profiles):
    return measure.status([planned(ASKED, ahead)], Held(*profiles))


def test_the_page_says_what_was_measured_and_what_not():
    fresh = profile_of(FRESH, {0: 1.0, 2: 2.5, 5: 2.0})
    assert "photo: not measured yet." in status(AHEAD)
    half = status(AHEAD, profile_of())
    assert "photo: measured with Euler, 20 steps; for samplers that add noise, such as Euler a, not yet." in half
    assert (
        "What lies deep in its UNet keeps 50.0 times as long as what lies near the surface: medium or deeper steps pay."
        in half
    )
    assert "deep features" not in status(FRESH, profile_of())
    assert "measured with Euler a, 20 steps, for samplers that add noise; for others, such as Euler, not yet." in (
        status(FRESH, fresh)
    )
    both = status(FRESH, fresh, profile_of())
    assert "measured with Euler, 20 steps, and for samplers that add noise with Euler a, 20 steps." in both
    assert "keeps 0.5 times as long as what lies near the surface: the presets run as little of it as they can." in both
    assert "not measured yet" in status(dataclasses.replace(AHEAD, checksum="9999999999"), profile_of())


def test_before_a_host_has_loaded_its_model_the_page_knows_it_by_its_name():
    """As Forge does, for the first picture."""
    ahead = dataclasses.replace(AHEAD, depth=0)
    assert "measured with Euler, 20 steps" in status(ahead, profile_of())
    assert MEASURED not in Held(profile_of()).planned(ASKED, ahead)[1].hint


def test_the_page_says_what_it_costs_and_what_cannot_be_measured():
    assert "in the time of about 6 uncached ones" in measure.status([], Profiles())
    assert "in the time of about 5 uncached ones" in status(dataclasses.replace(AHEAD, depth=9))
    assert Wish(4).cost() == pytest.approx(2 * Wish(2).cost()) and 6 <= Wish(2).cost() <= 6.3
    other = status(dataclasses.replace(AHEAD, depth=8))
    assert "cannot be measured" in other and "in the time of" not in other
    assert "&lt;b&gt;" in status(dataclasses.replace(AHEAD, checkpoint="<b>"))


@pytest.mark.parametrize("word", [None, "", "something"])
def test_the_hidden_box_is_no_setting(word):
    requests = measure.Requests()
    controls = [field.default for field in FIELDS]
    assert requests.taken([*controls, word]) == (controls, None)
    assert requests.taken([{"enabled": True, "measure": word}]) == ([{"enabled": True}], word)
    assert requests.taken(controls) == (controls, None) and requests.taken([]) == ([], None)
    pressed = requests.press(3)
    assert requests.taken([*controls, pressed]) == (controls, Wish(3))
    assert requests.taken([*controls, pressed]) == (controls, None)


def test_a_wish():
    assert Wish.parse(True) == Wish() == Wish.parse({}) and Wish.parse({"pictures": 16}) == Wish(16)
    for wrong in ("soon", 3, {"pictures": 0}, {"pictures": 17}, {"tries": 4}, {"pictures": 1.5}, [True]):
        with pytest.raises(SettingsError):
            Wish.parse(wrong)
