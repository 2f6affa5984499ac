"""AUTOMATIC1111 1.10: how its hooks and callbacks begin, drive and end a pass.

Facts of the host: one evaluation is one `CFGDenoiser.forward`, announced by `on_cfg_denoiser`; a crash runs no
post hook; the refiner swaps the checkpoint in mid-run before `on_cfg_denoiser`; `params.x` is the batch for all
UNet calls of the evaluation, unscaled, conds first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules import shared

from ...measure.store import Profiles
from ...plan.importance import Nature
from ...plan.preview import PassAhead
from ...unet.controlnet import ControlledLadder
from ...unet.ladder import AnyLadder
from ...unet.support import UnknownLayout
from ..adapter import Adapter, guarded, is_hires, sampler_of
from ..checkpoint import checkpoint_of
from ..generations import Generation
from . import preview
from .controlnet import control_units
from .networks import free_u_acts, loaded_networks
from .schedule import adds_noise, noise_level, noise_levels, replaces_noise


class A1111(Adapter):
    """The adapter: evaluations are announced, and the session hooks the UNet itself."""

    def __init__(self, disabled: bool = False, profiles: Profiles | None = None) -> None:
        super().__init__(disabled, profiles)
        self._last_params: Callable[[], Any] = lambda: None

    def foresee(self, values: Mapping[str, Any]) -> list[PassAhead]:
        return preview.foresee(values)

    def branches(self) -> int:
        return preview.branches()

    def refused(self) -> str:
        unet = preview.loaded_unet()
        try:
            if unet is not None:
                self.ladder_of(unet)
        except UnknownLayout as reason:
            return str(reason)
        return ""

    @guarded
    def before_sampling(self, p: Any, args: Sequence[Any]) -> None:
        """A pass begins: the first one, a hires pass, or the next batch."""
        generation = self._generations.of(p) or self._begin(p, args)
        self._begin_batch(p, generation)
        told, broken_off = len(generation.reports), generation.session
        self._end_pass(p, generation)
        if broken_off is not None and broken_off.report.hires is is_hires(p):
            del generation.reports[told:]  # an error that somebody caught: the picture is made of the pass to come
        generation.ready = generation.announce(is_hires(p))

    @guarded
    def on_cfg_denoiser(self, params: Any) -> None:
        """An evaluation begins."""
        if params is self._last_params():  # registered twice, as after a reload of the page
            return
        # Weakly: through its denoiser it holds p, whose end tells that a crashed generation is over.
        self._last_params = weakref.ref(params)
        p = getattr(params.denoiser, "p", None)
        generation = self._generations.of(p)
        if generation is None:
            # No hook of ours ran for this generation (ADetailer filters scripts by name): not our evaluation.
            self._generations.forget_steps()
            for other in self._generations.sessions():
                other.pause()
            return
        generation.seen = True
        if generation.ready:
            self._begin_pass(p, generation, params)
        session = generation.session
        if session is not None:
            sigma = noise_level(params, p)
            above = self.above(p, params) or generation.left_out(getattr(params, "sampling_step", 0), sigma)
            if above is not None:
                session.turn_off(above)
            else:
                session.attach(self.unet_of(p, params))
            held = weakref.ref(params)
            session.tick(lambda: getattr(held(), "x", None), sigma)

    @guarded
    def on_cfg_after_cfg(self, _params: Any) -> None:
        """An evaluation's calls are over. What is known so far goes into the text under the picture: ersatzForge writes
        that when the last pass has ended, before it calls any hook; others write a picture before hires so.
        """
        generation = self._generations.active
        p = generation.p() if generation is not None and generation.session is not None else None
        if generation is not None and p is not None:
            p.extra_generation_params.update(generation.infotext())

    # The model ----------------------------------------------------------------------------------------------

    def unet_of(self, p: Any, params: Any) -> Any:
        """The UNet that the host is about to call, at `on_cfg_denoiser`'s `params`; None where there is none. It
        changes when a refiner or another checkpoint takes over.
        """
        model = getattr(p, "sd_model", None) or shared.sd_model
        return getattr(getattr(model, "model", None), "diffusion_model", None)

    def above(self, p: Any, params: Any) -> UnknownLayout | None:
        """What stands above the UNet's calls so that they cannot be cached, where that is seen: another cache."""
        return None

    def ladder_of(self, unet: Any) -> AnyLadder:
        """The ladder of one of this host's UNets. Raises `UnknownLayout`."""
        return ControlledLadder(unet, control_units, lambda: (loaded_networks(shared), free_u_acts()))

    # Passes and evaluations ---------------------------------------------------------------------------------

    def _begin_pass(self, p: Any, generation: Generation, params: Any) -> None:
        """Now the host knows how many evaluations it expects."""
        generation.ready, generation.step = False, None
        hires, model = is_hires(p), getattr(p, "sd_model", None) or shared.sd_model
        total = getattr(params.denoiser, "total_steps", None) or params.total_sampling_steps
        blocks = getattr(self.unet_of(p, params), "output_blocks", None)
        sigmas = noise_levels(params, p, total)
        checkpoint, checksum = checkpoint_of(model)
        ahead = PassAhead(
            hires=hires,
            total=total,
            sigmas=None if sigmas is None else tuple(sigmas),
            depth=len(blocks or ()),
            nature=Nature(adds_noise(p), replaces_noise(p)),
            checkpoint=checkpoint,
            checksum=checksum,
            sampler=sampler_of(p),
        )
        found = self._planned(p, generation, ahead)
        generation.session = self._session(found, self.ladder_of)
        if found.remark:
            self._say(p, found.remark)
