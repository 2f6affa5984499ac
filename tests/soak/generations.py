"""Random pictures in the embedded A1111, each compared with the naive DeepCache's."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests import unets
from tests.controlnet import ControlNet, Hook, Pluggable, Unit
from tests.replay.checker import FEW
from tests.soak.naive import Naive, on

SAMPLERS = (
    "Euler",
    "Euler a",
    "Heun",
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM2 a",
    "DDIM",
    "LMS",
    "DPM++ 2M SDE",
    "Restart",
    "LCM",
)
PROMPTS = ("a cat", "a cat " * 60, "a cat AND a dog :0.5", "a [cat:dog:0.5] on grass", "a [cat|dog]", "")
CHECKPOINTS = ("tinyA", "tinyB", "tinyInpaint")
LEVELS = 1.0
"""How far a forecast picture may be from the reference's, in mean levels of 255: sums in another order."""
MEMORY_MIB = 128.0
"""How much the process may grow from a tenth of the pictures on to the end; short runs are not long enough to tell."""
MEMORY_FROM = 200
"""From how many pictures on that is looked at."""


class Provoked(RuntimeError):
    """An error in the UNet."""


@dataclass
class Scene:
    """One picture: the request, the extension's settings, ControlNet's units, and what happens on the way."""

    seed: int
    kind: str
    request: dict[str, Any]
    settings: dict[str, Any]
    checkpoint: str
    units: list[tuple[float, float, float]]
    interrupted_at: int | None
    crashed_at: int | None
    between: str

    @classmethod
    def draw(cls, seed: int) -> Scene:
        """The scene of this number; the same every time."""
        chance = random.Random(seed)
        sometimes, one_of = (lambda part: chance.random() < part), chance.choice
        kind = "img2img" if sometimes(0.25) else "txt2img"
        request: dict[str, Any] = {
            "prompt": one_of(PROMPTS),
            "negative_prompt": one_of(("", "", "bad " * 90)),
            "seed": chance.randrange(1000),
            "steps": chance.randint(2, 9),
            "sampler_name": one_of(SAMPLERS),
            "cfg_scale": one_of((1.0, 4.0, 7.0)),
            "width": one_of((64, 64, 72)),
            "height": one_of((64, 64, 88)),
            "batch_size": one_of((1, 1, 2)),
            "n_iter": one_of((1, 1, 1, 2)),
        }
        if kind == "txt2img" and sometimes(0.3):
            request |= {
                "enable_hr": True,
                "hr_scale": 1.5,
                "denoising_strength": 0.6,
                "hr_upscaler": "Latent",
                "hr_second_pass_steps": chance.randint(0, 5),
                "hr_sampler_name": one_of(("Euler", "DDIM", None)),
            }
            request = {name: value for name, value in request.items() if value is not None}
        # DPM++ 2M SDE as k-diffusion has it fails where a pass has one step only.
        request["steps"] = max(3, request["steps"])
        if request.get("hr_second_pass_steps") == 1:
            request["hr_second_pass_steps"] = 2
        if kind == "txt2img" and sometimes(0.15):
            request |= {"refiner_checkpoint": "tinyB", "refiner_switch_at": one_of((0.3, 0.5, 0.8))}
        interval, branch = chance.choice((1, 2, 2, 3, 3, 4, 6)), chance.randint(0, 11)
        start = one_of((0.0, 0.0, 0.0, 0.25, 0.5))
        deep = f"/{chance.randint(branch + 1, 11)}" if branch < 11 and sometimes(0.4) else ""
        typed = ", ".join(f"{k}{one_of((deep, ''))}" for k in range(1, 20) if sometimes(0.4)) or "0"
        settings = {
            "enabled": True,
            "preset": "Custom",
            "cache_interval": interval,
            "cache_branch_id": branch,
            "estimator": one_of(("copy", "copy", "forecast")),
            "start": start,
            "end": one_of((1.0, 1.0, 0.8, 0.6)),
            "passes": one_of(("both", "both", "both", "first only", "hires only")),
            "hires_cache_interval": one_of((0, 0, 2, 4)),
            "hires_cache_branch_id": one_of((-1, -1, 0, 5)),
            "strategy": one_of(("uniform", "uniform", "custom")),
            "full_evaluations": typed,
            "speed_up": 2.0,
            "hires_speed_up": 0.0,
            "center": 0.3,
            "power": 1.4,
            "deeper_branch_id": one_of((0, 0, 0, 2, 5, 9)),
        }
        checkpoint = one_of(CHECKPOINTS) if "refiner_checkpoint" not in request else "tinyA"
        units: list[tuple[float, float, float]] = []
        if sometimes(0.3) and checkpoint != "tinyInpaint" and "refiner_checkpoint" not in request:
            units = [(one_of((1.0, 0.4)), one_of((0.0, 0.3)), one_of((1.0, 0.6))) for _ in range(chance.randint(1, 2))]
        return cls(
            seed,
            kind,
            request,
            settings,
            checkpoint,
            units,
            interrupted_at=chance.randint(1, 8) if sometimes(0.1) else None,
            crashed_at=chance.randint(0, 8) if sometimes(0.15) else None,
            between=one_of(("", "", "", "", "reload", "unload", "off", "twice")),
        )


@dataclass
class Tally:
    """What was made, and what was wrong with it."""

    pictures: int = 0
    full_calls: int = 0
    cached_calls: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    grown_mib: float = 0.0
    tensors: tuple[int, int] = (0, 0)

    def lines(self) -> list[str]:
        happened = ", ".join(f"{count} {what}" for what, count in sorted(self.happened.items()))
        return [
            f"{self.pictures} pictures, {self.pictures - len(self.failures)} as the reference's; "
            f"{self.full_calls} full and {self.cached_calls} cached calls",
            f"  of these {happened}",
            f"  memory grew by {self.grown_mib:.1f} MiB, tensors alive from {self.tensors[0]} to {self.tensors[1]}",
            *self.failures,
        ]


class Studio:
    """Makes scenes in one host that lives on from picture to picture."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self._networks: dict[int, Pluggable] = {}
        self._said: list[str] = []

    @property
    def ours(self) -> Any:
        data = self.host.module("scripts").scripts_data
        return next(one.module.host for one in data if one.module.__file__.endswith("deepcache.py"))

    def check(self, scene: Scene) -> tuple[list[str], Naive]:
        """Make the scene with the extension and with the naive rule; returns what is wrong."""
        self.host.module("sd_models").reload_model_weights(
            self.host.module("sd_models").get_closet_checkpoint_match(scene.checkpoint)
        )
        before = unets.traces(self.host.unet)
        hook = self._hook(scene)
        self._in_between(scene)
        if scene.crashed_at is not None:
            self._crash(scene, hook)
        with self._control(hook), self._interrupting(scene):
            made = self._make(scene, [scene.settings])
        wrong = [f"said under the picture: {line}" for line in self._said if "DeepCache" in line and FEW not in line]
        after = unets.traces(self.host.unet)
        if (*after[:2], after[2] - {"forward"}) != before and "refiner_checkpoint" not in scene.request:
            wrong.append(f"left on the UNet: {after}, before: {before}")
        naive = Naive(scene.settings, hook)
        self._reload(scene)
        with self._progress(hook), self._interrupting(scene), on(self.host, naive):
            expected = self._make(scene, [])
        wrong += self._compare(scene, made, expected)
        if self.ours._generations.active is not None:
            wrong.append("a generation is still under way")
        return wrong, naive

    def _make(self, scene: Scene, args: list[Any]) -> list[np.ndarray[Any, Any]]:
        request = dict(scene.request)
        if scene.kind == "img2img":
            picture = np.random.default_rng(scene.seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            request |= {"init_images": [Image.fromarray(picture)], "denoising_strength": 0.7}
            if scene.seed % 2:
                request["mask"] = Image.fromarray((picture[..., 0] > 120).astype(np.uint8) * 255)
        if args:
            request["alwayson_scripts"] = {"DeepCache": {"args": args}}
        processed = getattr(self.host, scene.kind)(**request)
        self._said = str(processed.comments or "").splitlines()
        return [np.asarray(image) for image in processed.images]

    def _compare(self, scene: Scene, made: list[Any], expected: list[Any]) -> list[str]:
        if len(made) != len(expected):
            return [f"{len(made)} pictures instead of {len(expected)}"]
        exact, wrong = scene.settings["estimator"] == "copy", []
        for number, (one, other) in enumerate(zip(made, expected, strict=True)):
            away = float(np.abs(one.astype(float) - other).mean())
            if (exact and away) or away > LEVELS:
                wrong.append(f"picture {number} is {away:.3f} levels from the reference")
        return wrong

    # What may happen on the way -----------------------------------------------------------------------------

    def _reload(self, scene: Scene) -> None:
        models = self.host.module("sd_models")
        models.reload_model_weights(models.get_closet_checkpoint_match(scene.checkpoint))

    def _in_between(self, scene: Scene) -> None:
        """Between two pictures: another model and back, scripts unloaded, a picture without us, callbacks twice."""
        callbacks = self.host.module("script_callbacks")
        if scene.between == "reload":
            models = self.host.module("sd_models")
            models.reload_model_weights(models.get_closet_checkpoint_match("mid15"))
            self._reload(scene)
        elif scene.between == "unload":
            self.ours.on_script_unloaded()
        elif scene.between == "off":
            self._make(scene, [False])
        elif scene.between == "twice":
            callbacks.remove_callbacks_for_function(self.ours.on_cfg_denoiser)
            callbacks.on_cfg_denoiser(self.ours.on_cfg_denoiser)
            callbacks.on_cfg_denoiser(self.ours.on_cfg_denoiser)

    def _crash(self, scene: Scene, hook: Hook | None) -> None:
        """The same picture, with an error in one call of the UNet."""
        calls = 0

        def fail(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == (scene.crashed_at or 0) + 1:
                raise Provoked

        handle = self.host.unet.output_blocks[-1].register_forward_pre_hook(fail)
        with self._control(hook), contextlib.suppress(Provoked):
            self._make(scene, [scene.settings])
        handle.remove()
        self._reload(scene)

    @contextlib.contextmanager
    def _interrupting(self, scene: Scene) -> Iterator[None]:
        seen = 0

        def interrupt(_: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == scene.interrupted_at:
                self.host.interrupt()

        with self._callback(interrupt):
            yield

    @contextlib.contextmanager
    def _callback(self, function: Callable[[Any], None]) -> Iterator[None]:
        callbacks = self.host.module("script_callbacks")
        callbacks.on_cfg_denoiser(function)
        try:
            yield
        finally:
            callbacks.remove_callbacks_for_function(function)

    def _hook(self, scene: Scene) -> Hook | None:
        if not scene.units:
            return None
        hint = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(scene.seed))
        units = []
        for number, (weight, start, end) in enumerate(scene.units):
            if number not in self._networks:
                copied = copy.deepcopy(self.host.unet)
                copied.__dict__.pop("forward", None)
                self._networks[number] = Pluggable(ControlNet(copied, seed=number))
            units.append(Unit(self._networks[number], hint, weight=weight, start=start, end=end))
        return FittedHook(units)

    @contextlib.contextmanager
    def _progress(self, hook: Hook | None) -> Iterator[None]:
        def begin(params: Any) -> None:
            if hook is not None:
                hook.begin_evaluation(params.sampling_step / params.total_sampling_steps)

        with self._callback(begin):
            yield

    @contextlib.contextmanager
    def _control(self, hook: Hook | None) -> Iterator[None]:
        if hook is not None:
            hook.hook(self.host.unet)
        try:
            with self._progress(hook):
                yield
        finally:
            self.host.unet.__dict__.pop("forward", None)


class FittedHook(Hook):
    """ControlNet's hook with residuals scaled by weight alone, as the naive rule has them."""

    @staticmethod
    def scaled(unit: Unit, residuals: list[torch.Tensor], mark: torch.Tensor) -> list[torch.Tensor]:
        return [unit.weight * residual for residual in residuals]


def resident_mib() -> float:
    """The most that this process has held in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def run(host: Any, pictures: int, first: int = 0, say: Callable[[str], None] = print) -> Tally:
    """So many random pictures, from scene number `first` on."""
    studio, tally = Studio(host), Tally()
    # As on the settings page: our counterpart of ControlNet is harmless.
    host.module("shared").opts.set("deepcache_trusted", ControlNet.__module__)
    warm, held, alive = max(1, pictures // 10), 0.0, 0
    for number in range(pictures):
        scene = Scene.draw(first + number)
        try:
            wrong, naive = studio.check(scene)
            tally.full_calls, tally.cached_calls = tally.full_calls + naive.full, tally.cached_calls + naive.cached
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        tally.pictures += 1
        tally.happened.update(_names(scene))
        if wrong:
            tally.failures.append(f"scene {scene.seed}: {'; '.join(wrong)}   {scene}")
        if number + 1 == warm:
            held, alive = resident_mib(), tensors_alive()
        if (number + 1) % 100 == 0:
            say(f"{number + 1} pictures, {len(tally.failures)} wrong")
    tally.grown_mib, tally.tensors = resident_mib() - held, (alive, tensors_alive())
    if pictures >= MEMORY_FROM and tally.grown_mib > MEMORY_MIB:
        tally.failures.append(f"the process grew by {tally.grown_mib:.1f} MiB, more than {MEMORY_MIB:.0f}")
    return tally


def _names(scene: Scene) -> list[str]:
    names = [scene.kind, f"estimator {scene.settings['estimator']}"]
    names += ["hires"] if "enable_hr" in scene.request else []
    names += ["refiner"] if "refiner_checkpoint" in scene.request else []
    names += ["ControlNet"] if scene.units else []
    names += ["interrupted"] if scene.interrupted_at else []
    names += ["after a crash"] if scene.crashed_at is not None else []
    names += [f"after {scene.between}"] if scene.between else []
    return names
