"""`/deepcache/v1/report` and `/deepcache/v1/plan` over HTTP."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import requests

from demo.webui.boot import boot

REQUEST = {"prompt": "a cat", "steps": 14, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 1}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_second_pass_steps": 13}


@pytest.fixture(scope="module")
def url():
    with boot(model="tinyA") as host:
        yield host.serve()


def payload(*args, **changes):
    return {**REQUEST, **changes, "alwayson_scripts": {"DeepCache": {"args": list(args)}}}


def plan(url, *args, **changes):
    return requests.post(f"{url}/deepcache/v1/plan", json=payload(*args, **changes), timeout=30)


def report(url):
    answer = requests.get(f"{url}/deepcache/v1/report", timeout=30)
    assert answer.status_code == 200
    return answer.json()["last_run"]


def make(url, *args, **changes):
    answer = requests.post(f"{url}/sdapi/v1/txt2img", json=payload(*args, **changes), timeout=120)
    assert answer.status_code == 200


def test_nothing_to_report_at_first():
    with boot(model="tinyA") as host:
        assert report(host.serve()) is None


@pytest.mark.parametrize("args", [[True], [{"enabled": True, "cache_interval": 3, "passes": "hires only"}]])
def test_the_plan_is_what_the_report_tells_afterwards(url, args):
    asked = plan(url, *args, **HIRES)
    assert asked.status_code == 200, asked.text
    make(url, *args, **HIRES)
    ran = {one["pass"]: one for one in report(url)["passes"]}
    assert asked.json()["enabled"] and [one["pass"] for one in asked.json()["passes"]] == ["first", "hires"]
    for one in asked.json()["passes"]:
        if one["pass"] in ran:
            was = ran[one["pass"]]
            assert len(one["full"]) == was["full_evaluations"] == was["planned_full_evaluations"]
            assert one["evaluations"] == was["evaluations"]
            assert one["speed_up"] == was["predicted_speed_up"] > 1
            assert was["full_call_seconds"] > 0
        else:
            assert len(one["full"]) == one["evaluations"]
    assert "hires" in ran and report(url)["settings"]["DeepCache version"] == 2


def test_the_report_counts_batches_and_names_errors(url):
    make(url, True, "Fast", n_iter=2)
    assert [one["pass"] for one in report(url)["passes"]] == ["first", "first"]
    make(url, {"enabled": True, "cache_interval": 0})
    assert report(url)["error"].startswith("cache_interval = 0 is not allowed") and report(url)["passes"] == []
    make(url)
    assert report(url)["enabled"] is False and report(url)["settings"] == {}


@pytest.mark.parametrize(
    ("args", "changes", "detail"),
    [
        ([{"cache_interval": 0}], {}, ("cache_interval", 0, "a whole number from 1 to 50")),
        ([True, "Slow"], {}, ("preset", "Slow", "one of Quality, Balanced, Fast, Custom")),
        ([{"speed": "high"}], {}, ("speed", "high", None)),
        ([{"full_evaluations": "0, x"}], {}, ("full_evaluations", "0, x", None)),
        ([{"cache_interval": 10**100}], {}, ("cache_interval", "1" + "0" * 76 + "...", None)),
        ([{"start": [1]}], {}, ("start", "[1]", "a number from 0 to 1")),
        ([{"cache_branch_id": 12}], {}, ("cache_branch_id", 12, "the loaded model's branches are 0 to 11")),
        (
            [{"cache_interval": 3, "deeper_branch_id": 13}],
            {},
            ("deeper_branch_id", 13, "the loaded model's branches are 0 to 11"),
        ),
        ([{"hires_cache_branch_id": 14}], HIRES, ("hires_cache_branch_id", 14, None)),
        ([True], {"steps": 0}, ("steps", 0, "a whole number from 1 to 150")),
        ([True], {"steps": "many"}, ("steps", "many", "a whole number from 1 to 150")),
        ([True], {"sampler_name": "Nonsense"}, ("sampler_name", "Nonsense", None)),
        ([True], {"denoising_strength": 2.0}, ("denoising_strength", 2.0, "a number from 0 to 1")),
        ([True], {"enable_hr": "yes"}, ("enable_hr", "yes", "true or false")),
    ],
)
def test_what_cannot_be_used(url, args, changes, detail):
    answer = plan(url, *args, **changes)
    assert answer.status_code == 422
    found = answer.json()["detail"]
    assert (found["field"], found["value"]) == detail[:2] and detail[2] in (None, found["range"])


@pytest.mark.parametrize("scripts", [[], {"DeepCache": {"args": "yes"}}, {"deepcache": 3}])
def test_payloads_of_another_shape(url, scripts):
    answer = requests.post(f"{url}/deepcache/v1/plan", json={**REQUEST, "alwayson_scripts": scripts or "x"}, timeout=30)
    assert answer.status_code == 422 and answer.json()["detail"]["field"] in ("alwayson_scripts", "args")


def test_a_plan_without_the_script_is_off(url):
    answer = requests.post(f"{url}/deepcache/v1/plan", json=REQUEST, timeout=30).json()
    assert answer["enabled"] is False and answer["passes"][0]["evaluations"] == 14


def test_img2img_counts_its_part_of_the_steps(url):
    answer = plan(url, {"enabled": True, "cache_interval": 2}, init_images=["x"], denoising_strength=0.5).json()
    assert [one["evaluations"] for one in answer["passes"]] == [8]


def test_they_are_on_the_openapi_page(url):
    paths = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]
    assert paths["/deepcache/v1/report"]["get"]["tags"] == ["DeepCache"]
    body = paths["/deepcache/v1/plan"]["post"]["requestBody"]["content"]["application/json"]
    assert requests.post(f"{url}/deepcache/v1/plan", json=body["example"], timeout=30).status_code == 200


def test_whose_users_may_ask(tmp_path):
    from deepcache_ext.interface.routes import auth_of

    listed = tmp_path / "users"
    listed.write_text("bob:two\ncy:three,di:four\n\n", encoding="utf-8")
    assert auth_of(SimpleNamespace(api_auth=None)) is None
    assert auth_of(SimpleNamespace(api_auth="ann:one")) == "ann:one"
    assert auth_of(SimpleNamespace(auth=None, auth_file=None)) is None
    assert auth_of(SimpleNamespace(auth="ann:one", auth_file=str(listed))) == "ann:one,bob:two,cy:three,di:four"


def test_api_auth_guards_them():
    with boot(model="tinyA", arguments=["--api-auth", "ann:secret,bob:p:w"]) as host:
        url = host.serve()
        for method, path, body in (("GET", "report", None), ("POST", "plan", payload(True))):

            def ask(auth, method=method, path=path, body=body):
                return requests.request(
                    method, f"{url}/deepcache/v1/{path}", json=body, auth=auth, timeout=30
                ).status_code

            assert [ask(auth) for auth in (None, ("ann", "wrong"), ("eve", "secret"), ("ann", "sécret"))] == [401] * 4
            assert ask(("ann", "secret")) == ask(("bob", "p:w")) == 200
