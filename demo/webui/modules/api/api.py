"""The HTTP API: /sdapi/v1/..."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import time
import traceback
from collections.abc import Callable
from secrets import compare_digest
from typing import Any

import gradio as gr
from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import processing, scripts, sd_models, sd_samplers, shared
from modules.call_queue import queue_lock
from PIL import Image, PngImagePlugin

KINDS = {
    "txt2img": processing.StableDiffusionProcessingTxt2Img,
    "img2img": processing.StableDiffusionProcessingImg2Img,
}


def encode_pil_to_base64(image: Image.Image) -> str:
    """PNG with the infotext in it."""
    known = PngImagePlugin.PngInfo()
    if "parameters" in image.info:
        known.add_text("parameters", image.info["parameters"])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=known)
    return base64.b64encode(buffer.getvalue()).decode()


def decode_base64_to_image(encoding: Any) -> Image.Image:
    """From base64, with or without a `data:` head; an image is given back as it is."""
    if isinstance(encoding, Image.Image):
        return encoding
    try:
        return Image.open(io.BytesIO(base64.b64decode(encoding.rpartition(",")[2])))
    except (binascii.Error, OSError, AttributeError) as error:
        raise HTTPException(status_code=500, detail="Invalid encoded image") from error


class Api:
    """Answers requests; `generate` does so without HTTP too."""

    def __init__(self) -> None:
        self._defaults: dict[str, list[Any]] = {}

    # Generations --------------------------------------------------------------------------------------------

    def generate(self, kind: str, request: dict[str, Any]) -> processing.Processed:
        """One generation, behind the queue. Unknown fields are ignored, as the host does."""
        runner = getattr(scripts, f"scripts_{kind}")
        script_args = self._script_args(kind, runner, request.get("alwayson_scripts") or {})
        self._choose(runner, script_args, request.get("script_name") or "", request.get("script_args") or [])
        known = {field.name for field in dataclasses.fields(KINDS[kind])} - {"sd_model"}
        wishes = {key: value for key, value in request.items() if key in known}
        name = request.get("sampler_name") or request.get("sampler_index") or "Euler"
        wishes["sampler_name"] = sd_samplers.samplers_map.get(name.lower(), name)
        if kind == "img2img":
            if not request.get("init_images"):
                raise HTTPException(status_code=404, detail="Init image not found")
            wishes["init_images"] = [decode_base64_to_image(image) for image in request["init_images"]]
            wishes["mask"] = decode_base64_to_image(request["mask"]) if request.get("mask") else None
        wishes["override_settings"] = dict(request.get("override_settings") or {})
        with queue_lock:
            p = KINDS[kind](**wishes)
            sd_samplers.fix_p_invalid_sampler_and_scheduler(p)
            if sd_samplers.find_sampler_config(p.sampler_name) is None:
                raise HTTPException(status_code=404, detail="Sampler not found")
            try:
                p.is_api = True
                p.scripts = runner
                shared.state.begin(job=f"scripts_{kind}")
                p.script_args = tuple(script_args)
                return runner.run(p, *p.script_args) or processing.process_images(p)
            finally:
                p.close()
                shared.state.end()

    @staticmethod
    def _choose(runner: Any, args: list[Any], title: str, values: list[Any]) -> None:
        """A selectable script, which then makes the pictures."""
        if not title:
            return
        names = [script.title().lower() for script in runner.selectable_scripts]
        if title.lower() not in names:
            raise HTTPException(status_code=422, detail=f"Script '{title}' not found")
        args[0] = names.index(title.lower()) + 1
        first = runner.selectable_scripts[args[0] - 1].args_from
        args[first : first + len(values)] = values

    def _script_args(self, kind: str, runner: Any, wanted: dict[str, Any]) -> list[Any]:
        """Defaults of all scripts' controls, overwritten by position where the request says so."""
        if kind not in self._defaults:
            defaults: list[Any] = [None] * len(runner.inputs)
            defaults[0] = 0
            with gr.Blocks():  # controls can only be made inside one
                for script in runner.scripts:
                    controls = script.ui(script.is_img2img) or []
                    defaults[script.args_from : script.args_to] = [control.value for control in controls]
            self._defaults[kind] = defaults
        args = self._defaults[kind].copy()
        for title, given in wanted.items():
            script = next((one for one in runner.scripts if one.title().lower() == title.lower()), None)
            if script is None:
                raise HTTPException(status_code=422, detail=f"Script '{title}' not found")
            values = given.get("args") or []
            for i, value in enumerate(values[: script.args_to - script.args_from]):
                args[script.args_from + i] = value
        return args

    # Routes -------------------------------------------------------------------------------------------------

    def mount(self, app: FastAPI) -> None:
        """Add the routes; with --api-auth they ask for a user and a password."""
        known = dict(pair.split(":", 1) for pair in (shared.cmd_opts.api_auth or "").split(",") if ":" in pair)

        def auth(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - FastAPI's way
            right = known.get(given.username)
            if right is None or not compare_digest(given.password.encode(), right.encode()):
                raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

        guards = [Depends(auth)] if known else []
        for path, method, answer in (
            ("txt2img", "POST", self._generation("txt2img")),
            ("img2img", "POST", self._generation("img2img")),
            ("interrupt", "POST", self.interrupt),
            ("skip", "POST", self.skip),
            ("progress", "GET", self.progress),
            ("options", "GET", self.get_options),
            ("options", "POST", self.set_options),
            ("samplers", "GET", self.samplers),
            ("sd-models", "GET", self.sd_models),
            ("scripts", "GET", self.scripts_list),
            ("script-info", "GET", self.script_info),
        ):
            app.add_api_route(f"/sdapi/v1/{path}", answer, methods=[method], dependencies=guards)
        # The page's own: no password, no pictures.
        app.add_api_route("/internal/progress", self.progress, methods=["GET"])

    def _generation(self, kind: str) -> Callable[..., Any]:
        def answer(request: dict[str, Any] = Body(...)) -> Any:  # noqa: B008 - FastAPI's way
            try:
                made = self.generate(kind, request)
            except HTTPException:
                raise
            except Exception as error:
                traceback.print_exc()
                return JSONResponse(
                    {"error": type(error).__name__, "detail": "", "body": "", "errors": str(error)}, status_code=500
                )
            pictures = [encode_pil_to_base64(image) for image in made.images]
            return {
                "images": pictures if request.get("send_images", True) else [],
                "parameters": {key: value for key, value in request.items() if key not in ("init_images", "mask")},
                "info": made.js(),
            }

        return answer

    def interrupt(self) -> dict:
        shared.state.interrupt()
        return {}

    def skip(self) -> dict:
        shared.state.skip()
        return {}

    def progress(self, skip_current_image: bool = True) -> dict[str, Any]:
        """`progress` is 0 to 1; `eta_relative` in seconds."""
        state = shared.state
        done = state.progress()
        elapsed = time.time() - (state.time_start or time.time())
        eta = elapsed / done - elapsed if done else 0.0
        return {
            "progress": done,
            "eta_relative": eta,
            "state": state.dict(),
            "current_image": None,
            "textinfo": state.textinfo,
        }

    def get_options(self) -> dict[str, Any]:
        return dict(shared.opts.data)

    def set_options(self, request: dict[str, Any] = Body(...)) -> dict:  # noqa: B008 - FastAPI's way
        name = request.get("sd_model_checkpoint")
        if name is not None:
            info = sd_models.get_closet_checkpoint_match(name)
            if info is None:
                raise HTTPException(404, f"model {name!r} not found")
            request["sd_model_checkpoint"] = info.title
        for key, value in request.items():
            shared.opts.set(key, value, is_api=True)
        return {}

    def samplers(self) -> list[dict[str, Any]]:
        return [{"name": s.name, "aliases": s.aliases, "options": {}} for s in sd_samplers.all_samplers]

    def sd_models(self) -> list[dict[str, Any]]:
        return [{"title": i.title, "model_name": i.model_name} for i in sd_models.checkpoints_list.values()]

    def scripts_list(self) -> dict[str, list[str]]:
        return {kind: [s.name for s in getattr(scripts, f"scripts_{kind}").scripts] for kind in KINDS}

    def script_info(self) -> list[dict[str, Any]]:
        return [s.api_info for kind in KINDS for s in getattr(scripts, f"scripts_{kind}").scripts if s.api_info]
