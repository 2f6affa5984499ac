"""`GET /deepcache/v1/report` and `POST /deepcache/v1/plan`, on the host's own server and its OpenAPI page."""

# No `from __future__ import annotations` here: FastAPI reads these annotations when a route is added.

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import compare_digest
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ..measure.store import Profiles
from ..plan.preview import speed_up_of
from ..report.run_report import RunOutcome
from ..settings.fields import SettingsError
from ..settings.settings import Settings, parse
from . import measure
from .asked import Foresee, passes_of

TITLE = "deepcache"
EXAMPLE = {
    "steps": 30,
    "sampler_name": "Euler",
    "enable_hr": False,
    "alwayson_scripts": {TITLE: {"args": [{"enabled": True, "speed_up": 2.0}]}},
}


def mount(
    app: FastAPI,
    foresee: Foresee,
    latest: Callable[[], RunOutcome | None],
    api_auth: str | None,
    profiles: Profiles | None = None,
) -> None:
    """Add the routes. `api_auth`: the host's `--api-auth`, `user:password[,user:password]`; the host guards its own
    routes only, so these ask for the same.
    """
    guards = [Depends(_guard(api_auth))] if api_auth else []

    def report() -> dict[str, Any]:
        """What the latest generation did, in whichever tab or through the API: `null` before the first one."""
        run = latest()
        return {"last_run": None if run is None else run.as_json()}

    def plan(payload: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - FastAPI's way
        """What a payload of /sdapi/v1/txt2img (or img2img, which has `init_images`) would do; nothing is made.

        A value that cannot be used gives 422 with its field, the value and what is allowed.
        """
        try:
            settings = settings_in(payload)
            passes = passes_of(settings, asked_in(payload), foresee, profiles)
        except SettingsError as error:
            detail = {"field": error.field, "value": _short(error.value), "range": error.allowed}
            raise HTTPException(status_code=422, detail=detail) from error
        gain = speed_up_of(passes)
        return {
            "enabled": settings.enabled,
            "speed_up": None if gain is None else round(gain, 3),
            "passes": [one.as_json() for one in passes],
        }

    example = {"requestBody": {"content": {"application/json": {"example": EXAMPLE}}}}
    app.add_api_route("/deepcache/v1/report", report, methods=["GET"], dependencies=guards, tags=["DeepCache"])
    app.add_api_route(
        "/deepcache/v1/plan",
        plan,
        methods=["POST"],
        dependencies=guards,
        tags=["DeepCache"],
        openapi_extra=example,
    )


def auth_of(cmd_opts: Any) -> str | None:
    """Who may use the host's API: `--api-auth`; on SD.Next, whose API asks for the page's own users, `--auth` and
    `--auth-file`, the latter with one `user:password` a line or several between commas.
    """
    given = getattr(cmd_opts, "api_auth", None)
    if given or not hasattr(cmd_opts, "auth_file"):
        return given
    pairs = [cmd_opts.auth] if getattr(cmd_opts, "auth", None) else []
    if cmd_opts.auth_file:
        pairs += Path(cmd_opts.auth_file).read_text(encoding="utf-8").split("\n")
    return ",".join(pair.strip() for pair in ",".join(pairs).split(",") if pair.strip()) or None


def settings_in(payload: Mapping[str, Any]) -> Settings:
    """The script's settings in a payload, found by its title in any case; off where it is not named. Raises
    `SettingsError`.
    """
    scripts = payload.get("alwayson_scripts") or {}
    if not isinstance(scripts, Mapping):
        raise SettingsError("alwayson_scripts", scripts, "an object of scripts by their titles")
    given: Any = next((value for title, value in scripts.items() if str(title).lower() == TITLE), {})
    args = (given.get("args") or []) if isinstance(given, Mapping) else given
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise SettingsError("args", args, "a list of values, or of one object with names")
    return parse(measure.split(args)[0])


def asked_in(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The host's part of a payload. `sampler_index` is the older name of `sampler_name`."""
    values = {**payload, "img2img": bool(payload.get("init_images"))}
    values["sampler_name"] = payload.get("sampler_name") or payload.get("sampler_index")
    return values


def _guard(api_auth: str) -> Callable[..., None]:
    known = dict(pair.split(":", 1) for pair in api_auth.split(",") if ":" in pair)

    def ask(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - FastAPI's way
        right = known.get(given.username)
        if right is None or not compare_digest(given.password.encode(), right.encode()):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return ask


def _short(value: Any) -> Any:
    """A plain value as it came, anything longer as text."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # a whole number of more digits than Python writes out
        text = "(too long to show)"
    return text if len(text) <= 80 else text[:77] + "..."
