"""The Calibrate button: what it asks the next generation for, and what is calibrated so far."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..calibrate.profile import MadeFor, ProfileError
from ..calibrate.search import PICTURES, TRIES, Wish
from ..calibrate.store import Profiles
from ..plan.preview import PlannedPass
from ..settings.fields import FIELDS
from ..settings.settings import Settings

NAME = "calibrate"
"""In the API's object of settings: true, or an object with `pictures` and `tries`."""

NOTE = (
    "Calibrate tries plans with the prompt and settings of this page, and keeps the one whose pictures come closest to "
    "uncached ones, for this model, sampler, number of steps and speed-up."
)
MOST = 100
"""So many presses without a generation are remembered. Chosen by hand."""


class Requests:
    """Presses of the button. A press goes as a word, in a hidden text box, to the generation that it starts; there it
    counts once, though the word stays in the box.
    """

    def __init__(self) -> None:
        self._pressed: dict[str, Wish] = {}

    def press(self, pictures: Any = PICTURES.default, tries: Any = TRIES.default) -> str:
        """A new word. Raises `SettingsError`."""
        wish, word = Wish.parse({"pictures": pictures, "tries": tries}), secrets.token_hex(8)
        self._pressed[word] = wish
        while len(self._pressed) > MOST:
            self._pressed.pop(next(iter(self._pressed)))
        return word

    def taken(self, args: Sequence[Any]) -> tuple[Sequence[Any], Any]:
        """The script's arguments as `settings.parse` takes them, and what was asked for: what the API says, a `Wish`,
        or None.
        """
        rest, asked = split(args)
        from_box = asked is not None and not isinstance(args[0], Mapping)
        return rest, self._pressed.pop(asked, None) if from_box else asked


def split(args: Sequence[Any]) -> tuple[Sequence[Any], Any]:
    """The arguments that are settings, and what asks for calibrating: the box's word, or what the API says, or None."""
    if args and isinstance(args[0], Mapping):
        settings = {name: value for name, value in args[0].items() if name != NAME}
        return [settings, *args[1:]], args[0].get(NAME)
    if len(args) == len(FIELDS) + 1 and isinstance(args[-1], (str, type(None))):
        return args[:-1], args[-1]
    return args, None


def status(passes: Sequence[PlannedPass], profiles: Profiles, settings: Settings) -> str:
    """What the button does and how long it takes, and what is calibrated for the run that is set up, in HTML."""
    try:
        said = f"{NOTE} It takes about as long as {Wish().cost(settings.speed_up):.0f} uncached pictures."
        if passes and passes[0].ahead.checkpoint:
            made_for = MadeFor.of(passes[0].ahead, settings)
            known = "; ".join(
                f"{one.speed_up:g}x {one.psnr:.1f} dB (weighted {one.weighted_psnr:.1f})"
                for one in profiles.fitting(made_for)
            )
            here = f"{made_for.checkpoint}, {made_for.sampler}, {len(made_for.sigmas)} steps"
            said += f" {here}: {known or 'not calibrated yet'}."
    except (ValueError, ProfileError) as error:
        said = str(error)
    return f"<p class='deepcache-note'>{escape(said)}</p>"
