"""Starting the host inside this process, with or without its page and HTTP server."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.webui.hosts import HOSTS

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WEBUI = Path(__file__).resolve().parent
REPOSITORY = WEBUI.parents[1]
RECORDER = WEBUI / "recorder"

MODELS = {"sd1": "demo-sd1", "sdxl": "demo-sdxl", "inpaint": "demo-inpaint"}
"""Short names for the checkpoints of the demo; `boot` takes any name of `checkpoints.available()` as well."""


class _Apart:
    """Keeps the host's modules and the extensions' own apart from whatever the process imported before.

    `modules` is a name that tests of other hosts use too, and an extension's package binds to the `modules` it first
    met. On leaving, everything is as before.
    """

    def __init__(self, extensions: Sequence[Path]) -> None:
        self.folders = [str(folder) + os.sep for folder in extensions]
        self.path = list(sys.path)
        self.set_aside = self._ours()
        for name in self.set_aside:
            del sys.modules[name]
        sys.path.insert(0, str(WEBUI))

    def _ours(self) -> dict[str, types.ModuleType]:
        return {name: module for name, module in list(sys.modules.items()) if self._is_ours(name, module)}

    def _is_ours(self, name: str, module: Any) -> bool:
        top = name.partition(".")[0]
        if top in ("modules", "modules_forge"):
            return True
        if top in ("demo", "tests", "bench", "conftest", "__main__", "__mp_main__"):
            return False
        file = getattr(module, "__file__", None) or ""
        return any(file.startswith(folder) and "site-packages" not in file for folder in self.folders)

    def leave(self) -> None:
        for name in self._ours():
            del sys.modules[name]
        sys.modules.update(self.set_aside)
        sys.path[:] = self.path


class Host:
    """A running host. Close it, or use it in a `with` statement; there is one at a time in a process."""

    def __init__(self, apart: _Apart) -> None:
        self._apart = apart
        self.url: str | None = None

    def module(self, name: str) -> Any:
        """A module of the host, as `host.module("shared")`."""
        return importlib.import_module(f"modules.{name}")

    @property
    def name(self) -> str:
        """Which host it plays."""
        return self.module("embedded").table.name

    @property
    def unet(self) -> Any:
        """The loaded UNet."""
        return self.module("sd_model").unet_of(self.module("shared").sd_model)

    def txt2img(self, **request: Any) -> Any:
        """A generation as by the API, without HTTP; returns the host's `Processed`, errors come as exceptions."""
        return self.api.generate("txt2img", request)

    def img2img(self, **request: Any) -> Any:
        """As `txt2img`; `init_images` and `mask` may be PIL images or base64 text."""
        return self.api.generate("img2img", request)

    def interrupt(self) -> None:
        self.module("shared").state.interrupt()

    @property
    def _recorder(self) -> Any:
        for data in self.module("scripts").scripts_data:
            if data.basedir == str(RECORDER):
                return data.module
        raise LookupError("this host was booted without the recorder")

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the recorder saw (boot with `record=True`), in the recordings' format."""
        return self._recorder.EVENTS

    def restart_recording(self) -> None:
        """Forget the events so far."""
        self._recorder.restart()

    def serve(self, port: int | None = None) -> str:
        """Start page and API on 127.0.0.1 in the background; returns the address."""
        shared = self.module("shared")
        app, url, _ = shared.demo.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            show_api=False,
        )
        self.api.mount(app)
        self.module("script_callbacks").call("app_started", shared.demo, app)
        self.url = url.rstrip("/")
        return self.url

    def close(self) -> None:
        """Stop the server, unload the scripts, and forget the host's modules."""
        if self._apart is None:
            return
        if self.url:
            self.module("shared").demo.close(verbose=False)
        self.module("page").announce_components(False)
        self.module("scripts").unload()
        self.module("shared").sd_model = None
        self._apart.leave()
        self._apart = None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def boot(
    extension_dir: str | Path | Sequence[str | Path] | None = REPOSITORY,
    model: str = "sd1",
    arguments: Sequence[str] = (),
    record: bool = False,
    install: bool = False,
    host: str = "a1111",
) -> Host:
    """Start the host in the order of the real one: preload, command line, installers, scripts, model, page.

    `extension_dir`: one or more folders of extensions, None for none. `arguments`: the host's command line.
    `record`: add the recorder as a further extension. `install`: run the extensions' install.py. `host`: which one to
    play, a name of `hosts.HOSTS`.
    """
    given = [] if extension_dir is None else extension_dir
    folders = [given] if isinstance(given, (str, Path)) else list(given)
    folders = [Path(folder).resolve() for folder in folders] + ([RECORDER] if record else [])
    made = Host(_Apart(folders))
    try:
        _play(made, host)
        _start(made, folders, MODELS.get(model, model), arguments, install)
    except BaseException:
        made._apart.leave()
        raise
    return made


def _play(host: Host, name: str) -> None:
    table = HOSTS[name]
    if table.folder:
        own = WEBUI / table.folder
        importlib.import_module("modules").__path__.insert(0, str(own / "modules"))
        sys.path.insert(0, str(own))
    host.module("embedded").table = table


def _start(host: Host, folders: list[Path], checkpoint: str, arguments: Sequence[str], install: bool) -> None:
    extensions = host.module("extensions")
    extensions.extensions[:] = [extensions.Extension(folder.name, str(folder)) for folder in folders]
    host.module("launch_utils").prepare(arguments, install)
    shared, callbacks = host.module("shared"), host.module("script_callbacks")
    scripts, models = host.module("scripts"), host.module("sd_models")
    models.list_models()
    shared.opts.sd_model_checkpoint = models.checkpoint_aliases[checkpoint].title
    scripts.load_scripts()
    if host.module("embedded").table.loads_at_start:
        models.reload_model_weights()
    else:
        shared.sd_model = host.module("sd_model").AT_FIRST
    callbacks.call("before_ui")
    callbacks.call("ui_settings")
    shared.demo = host.module("ui").create_ui()
    host.api = host.module("api.api").Api()
