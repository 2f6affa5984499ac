"""The button *Measure this model*: what it asks the next generation for, and what is measured so far."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..measure.profile import MadeFor, Profile
from ..measure.store import Profiles
from ..measure.trial import PICTURES, Wish
from ..plan.ageing import SOUNDED
from ..plan.cost import USUAL_DEPTH
from ..plan.preview import PlannedPass
from ..settings.fields import FIELDS

NAME = "measure"
"""In the API's object of settings: true, or an object with `pictures`."""

BUTTON = "Measure this model"

NOTE = (
    "Measure this model finds out how well this model bears caching. It makes pictures with this page's prompt and "
    "settings, in the time of about {cost:.0f} uncached ones. From then on the presets go by it."
)
MOST = 100
"""So many presses without a generation are remembered. Chosen by hand."""


class Requests:
    """Presses of the button. A press goes as a word, in a hidden text box, to the generation that it starts; there it
    counts once, though the word stays in the box.
    """

    def __init__(self) -> None:
        self._pressed: dict[str, Wish] = {}

    def press(self, pictures: Any = PICTURES.default) -> str:
        """A new word. Raises `SettingsError`."""
        wish, word = Wish.parse({"pictures": pictures}), secrets.token_hex(8)
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
    """The arguments that are settings, and what asks for measuring: the box's word, or what the API says, or None."""
    if args and isinstance(args[0], Mapping):
        settings = {name: value for name, value in args[0].items() if name != NAME}
        return [settings, *args[1:]], args[0].get(NAME)
    if len(args) == len(FIELDS) + 1 and isinstance(args[-1], (str, type(None))):
        return args[:-1], args[-1]
    return args, None


def status(passes: Sequence[PlannedPass], profiles: Profiles) -> str:
    """What the button does and how long it takes, and what is measured of the model that is loaded, in HTML."""
    ahead = passes[0].ahead if passes else None
    said = []
    note = NOTE.format(cost=Wish().cost(ahead.depth if ahead is not None and ahead.depth else USUAL_DEPTH))
    if ahead is not None and ahead.checkpoint:
        model = MadeFor.of(ahead)
        if model.blocks and model.blocks not in SOUNDED:
            note = f"{model.checkpoint} has another kind of UNet, which cannot be measured."
        else:
            known = profiles.of_model(model)
            said.append(f"{model.checkpoint}: {_with_what(known)}.")
            if model.fresh_noise in known:  # what was found for the sampler that is chosen
                found = known[model.fresh_noise].in_words
                said.append(f"{found[:1].upper()}{found[1:]}.")
    said += [f"Not used: {one}." for one in profiles.unread()]
    return "".join(f"<p class='deepcache-note'>{escape(text)}</p>" for text in (note, " ".join(said)) if text)


def _with_what(known: Mapping[bool, Profile]) -> str:
    quiet, fresh = (known[one].made_for.titled if one in known else "" for one in (False, True))
    if quiet and fresh:
        return f"measured with {quiet}, and for samplers that add noise with {fresh}"
    if quiet:
        return f"measured with {quiet}; for samplers that add noise, such as Euler a, not yet"
    if fresh:
        return f"measured with {fresh}, for samplers that add noise; for others, such as Euler, not yet"
    return "not measured yet"
