"""Scripts of extensions: how they are loaded and how their hooks are called."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from modules import embedded, errors, extensions, launch_utils, paths, script_callbacks

AlwaysVisible = object()

HAS_CONTROL_TAB = "scripts.control_extensions" in embedded.table.components
"""A third tab, of SD.Next alone. Its scripts are told that they are txt2img's; their `parent` tells all three apart."""

if HAS_CONTROL_TAB:
    control_extensions: list[str] = []  # titles that may show there


@dataclass
class MaskBlendArgs:
    """[B, 4, h, w] each; `denoiser` is None for the last blend, after sampling."""

    current_latent: Any
    nmask: Any
    init_latent: Any
    mask: Any
    blended_latent: Any
    denoiser: Any = None
    sigma: Any = None

    @property
    def is_final_blend(self) -> bool:
        return self.denoiser is None


@dataclass
class PostSampleArgs:
    samples: Any


@dataclass
class PostprocessImageArgs:
    image: Any


@dataclass
class PostProcessMaskOverlayArgs:
    index: int
    mask_for_overlay: Any
    overlay_image: Any


@dataclass
class PostprocessBatchListArgs:
    images: list


class Script:
    """Base of all scripts. Every hook of the host's table exists here and does nothing."""

    name: str | None = None
    section: str | None = None
    filename: str | None = None
    args_from: int | None = None
    args_to: int | None = None
    alwayson = False
    is_txt2img = False
    is_img2img = False
    tabname: str | None = None
    group: Any = None
    create_group = True
    infotext_fields: list | None = None
    paste_field_names: list | None = None
    api_info: dict | None = None
    controls: list | None = None
    setup_for_ui_only = False

    def title(self) -> str:
        raise NotImplementedError

    def ui(self, is_img2img: bool) -> Any:
        """Make the controls; their values become the arguments of every hook."""

    def show(self, is_img2img: bool) -> Any:
        return True

    def run(self, p: Any, *args: Any) -> Any:
        """Selectable scripts only."""

    def describe(self) -> str:
        return ""

    def elem_id(self, item_id: str) -> str:
        """An id in the page that tells the tab where the script looks the same in both."""
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        if HAS_CONTROL_TAB:
            tab = f"{getattr(self, 'parent', None)}_"
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{tab}{title}_{item_id}"


def _no_hook(self: Script, p: Any, *args: Any, **kwargs: Any) -> None:
    """This script does not listen here."""


for _hook in embedded.table.hooks:
    setattr(Script, _hook, _no_hook)

ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data: list[ScriptClassData] = []
_current_basedir = paths.script_path


def basedir() -> str:
    """The folder of the extension whose script is being loaded."""
    return _current_basedir


def load_scripts() -> None:
    """Load scripts/*.py of all extensions, each with its folder on `sys.path` only meanwhile."""
    global _current_basedir
    scripts_data.clear()
    for extension in extensions.active():
        before = list(sys.path)
        for path in sorted(Path(extension.path, "scripts").glob("*.py")):
            sys.path[:] = [extension.path, *before]
            _current_basedir = extension.path
            try:
                module = launch_utils.load_module(path)
                for value in list(vars(module).values()):
                    if inspect.isclass(value) and issubclass(value, Script) and value.__module__ == path.name:
                        scripts_data.append(ScriptClassData(value, str(path), extension.path, module))
            except Exception:
                errors.report(f"Error loading script: {path.name}", exc_info=True)
            finally:
                sys.path[:] = before
                _current_basedir = paths.script_path


class ScriptRunner:
    """The scripts of one tab. `inputs` are all their controls: p.script_args has the same order."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.alwayson_scripts: list[Script] = []
        self.selectable_scripts: list[Script] = []
        self.titles: list[str] = []
        self.inputs: list[Any] = [None]
        self.infotext_fields: list[Any] = []
        self.paste_field_names: list[str] = []

    def initialize_scripts(self, is_img2img: bool, is_control: bool = False) -> None:
        for entries in (self.scripts, self.alwayson_scripts, self.selectable_scripts):
            entries.clear()
        for data in scripts_data:
            try:
                script = data.script_class()
                script.filename = data.path
                script.is_img2img, script.is_txt2img = is_img2img, not is_img2img
                script.tabname = "img2img" if is_img2img else "txt2img"
                shown = not is_control or script.title() in control_extensions
                visible = shown and script.show(is_img2img)
            except Exception:
                errors.report(f"Error initializing script {data.path}", exc_info=True)
                continue
            if visible is AlwaysVisible:
                script.alwayson = True
                self.alwayson_scripts.append(script)
                self.scripts.append(script)
            elif visible:
                self.selectable_scripts.append(script)
                self.scripts.append(script)

    def setup_ui(self, parent: str) -> list[Any]:
        """Draw the scripts into the Blocks that is open; returns all inputs, the first of which is the choice of one
        of the selectable scripts. `parent`: the tab.
        """
        if HAS_CONTROL_TAB:
            for script in self.scripts:
                script.parent = parent
        self.inputs[:] = [None]
        self.infotext_fields.clear()
        self.paste_field_names.clear()
        for script in self.alwayson_scripts:
            self._create_script_ui(script)
        self.titles[:] = [script.title() for script in self.selectable_scripts]
        choice = gr.Dropdown(["None", *self.titles], value="None", label="Script", type="index", elem_id="script_list")
        self.inputs[0] = choice
        groups = []
        for script in self.selectable_scripts:
            with gr.Group(visible=False) as group:
                self._create_script_ui(script)
            groups.append(group)
        if groups:

            def shown(index: int) -> Any:
                updates = [gr.update(visible=index == k) for k in range(1, len(groups) + 1)]
                return updates if len(updates) > 1 else updates[0]  # Gradio takes a list for one output's value

            choice.change(shown, inputs=[choice], outputs=groups, show_progress=False)
        return self.inputs

    def run(self, p: Any, *args: Any) -> Any:
        """What the chosen selectable script makes, or None where none is chosen."""
        if not args or not args[0]:
            return None
        script = self.selectable_scripts[args[0] - 1]
        return script.run(p, *args[script.args_from : script.args_to])

    def _create_script_ui(self, script: Script) -> None:
        script.args_from = script.args_to = len(self.inputs)
        try:
            script.name = script.title().lower()
            controls = script.ui(script.is_img2img) or []
        except Exception:
            errors.report(f"Error calling: {os.path.basename(str(script.filename))}/ui", exc_info=True)
            return
        script.controls = list(controls)
        script.api_info = {
            "name": script.name,
            "is_img2img": script.is_img2img,
            "is_alwayson": script.alwayson,
            "args": [_described(control) for control in script.controls],
        }
        self.inputs += script.controls
        script.args_to = len(self.inputs)
        self.infotext_fields += script.infotext_fields or []
        self.paste_field_names += script.paste_field_names or []

    def arguments(self, p: Any, script: Script) -> Any:
        return p.script_args[script.args_from : script.args_to]

    def run_hook(self, hook: str, p: Any, *own: Any, **kwargs: Any) -> None:
        """Call one hook of all scripts; `own` stands between p and the script's values. Errors are survived."""
        for script in self.alwayson_scripts:
            if hook == "setup" and p.is_api and script.setup_for_ui_only:
                continue
            try:
                getattr(script, hook)(p, *own, *self.arguments(p, script), **kwargs)
            except Exception:
                errors.report(f"Error running {hook}: {script.filename}", exc_info=True)

    def setup_scrips(self, p: Any, *, is_ui: bool = True) -> None:
        """The host's own spelling."""
        if embedded.table.calls_setup:
            self.run_hook("setup", p)


def _described(control: Any) -> dict[str, Any]:
    """What /sdapi/v1/script-info tells about a control."""
    known = {"label": control.label or "", "value": control.value}
    for name in ("minimum", "maximum", "step", "choices"):
        value = getattr(control, name, None)
        if name == "choices" and value is not None:
            value = [choice[1] if isinstance(choice, (tuple, list)) else choice for choice in value]
        if value is not None:
            known[name] = value
    return known


def _runner_method(hook: str) -> Any:
    def method(self: ScriptRunner, p: Any, *own: Any, **kwargs: Any) -> None:
        self.run_hook(hook, p, *own, **kwargs)

    method.__name__ = hook
    return method


for _hook in embedded.table.hooks:
    setattr(ScriptRunner, _hook, _runner_method(_hook))

scripts_txt2img = ScriptRunner()
scripts_img2img = ScriptRunner()
scripts_control = ScriptRunner()


def unload() -> None:
    """Tell the scripts that they go, and forget them."""
    script_callbacks.call("script_unloaded")
    script_callbacks.clear_callbacks()
    scripts_data.clear()
