"""One profile: what was measured of one checkpoint, and the text of the file that holds it.

JSON with a version and a checksum over all the rest. The checksum tells damage, not who wrote it: every value is
checked as if a stranger had written it, and nothing in the file is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..plan.ageing import SOUNDED, UNMEASURED, Ageing, learned, least_error
from ..plan.importance import Nature
from ..plan.preview import PassAhead

VERSION = 2

LONGEST_NAME = 300
"""Letters of a checkpoint's or sampler's name in a file. Chosen by hand."""
MOST_EVALUATIONS = 1000
"""Of a run that a file was measured with. Chosen by hand, far above any in use."""
LEAST, MOST = 0.01, 3.0
"""Bounds of an ageing. Chosen by hand; the laboratory's networks have 0.03 to 1.5."""

USUAL_SIGMAS = tuple(14.6 * (0.03 / 14.6) ** (k / 19) for k in range(20))
"""Noise levels of a run of 20 steps, about, to say in words what an ageing is good for."""


class ProfileError(ValueError):
    """A profile that cannot be used; `str()` says why."""


@dataclass(frozen=True)
class MadeFor:
    """`checksum`: of the checkpoint, as the host tells it, "" where it does not. `blocks`: how many output blocks the
    UNet has. `fresh_noise`: whether the sampler adds some. `sampler` and `steps`: with which it was measured, to be
    told; it holds for others too.
    """

    checkpoint: str
    checksum: str
    blocks: int
    fresh_noise: bool
    sampler: str
    steps: int

    @classmethod
    def of(cls, ahead: PassAhead) -> MadeFor:
        fresh_noise = ahead.nature.fresh_noise
        return cls(ahead.checkpoint, ahead.checksum, ahead.depth, fresh_noise, ahead.sampler, ahead.evaluations)

    def is_same_model(self, other: MadeFor) -> bool:
        """By checksum where both know it; a UNet that is not loaded yet has 0 blocks."""
        known = self.checksum and other.checksum
        same = self.checksum == other.checksum if known else self.checkpoint == other.checkpoint
        return same and (self.blocks == other.blocks or not other.blocks)

    def fits(self, other: MadeFor) -> bool:
        """Whether what was measured of this holds for `other`."""
        return self.is_same_model(other) and (self.blocks, self.fresh_noise) == (other.blocks, other.fresh_noise)

    @property
    def titled(self) -> str:
        """With what it was measured."""
        return f"{self.sampler}, {self.steps} steps"


@dataclass(frozen=True)
class Profile:
    """`ageing`: of `SOUNDED`'s branches. `pictures`: by how many it was measured."""

    made_for: MadeFor
    ageing: Ageing
    pictures: int

    @property
    def whole(self) -> Ageing:
        """The ageing of all branches that plans choose among."""
        return learned(self.ageing, UNMEASURED[self.made_for.blocks, self.made_for.fresh_noise])

    @property
    def in_words(self) -> str:
        """What was found, and what follows from it for a run of 20 steps at 2x."""
        nature = Nature(self.made_for.fresh_noise)
        *_, deepest = least_error(USUAL_SIGMAS, 2.0, self.made_for.blocks, self.whole, nature=nature)
        times = 1 / self.ageing[max(self.ageing)]
        follows = "medium or deeper steps pay" if deepest else "the presets run as little of it as they can"
        return f"what lies deep in its UNet keeps {times:.1f} times as long as what lies near the surface: {follows}"

    @property
    def file_name(self) -> str:
        """The same for what is measured of one model for samplers of one kind, and for nothing else."""
        made_for = self.made_for
        kind = "fresh-noise" if made_for.fresh_noise else "no-fresh-noise"
        words = re.sub(r"[^A-Za-z0-9.+]+", "-", made_for.checkpoint)[:100]
        which = {**asdict(made_for), "sampler": "", "steps": 0}
        return f"{words}-{kind}-{_digest(which)[:8]}.json"


def as_text(profile: Profile) -> str:
    """The file's text: JSON with a version, and a checksum over all the rest."""
    ageing = {str(branch): value for branch, value in profile.ageing.items()}
    body = {
        "deepcache_profile": VERSION,
        "made_for": asdict(profile.made_for),
        "ageing": ageing,
        "pictures": profile.pictures,
    }
    return json.dumps({**body, "checksum": _digest(body)}, indent=1) + "\n"


def from_text(text: str) -> Profile:
    """Raises `ProfileError`."""
    try:
        body = json.loads(text)
        version, checksum = body.pop("deepcache_profile"), body.pop("checksum")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProfileError("it is not a profile of DeepCache") from error
    if version != VERSION:
        raise ProfileError(f"it is of version {version!r:.20}, this DeepCache reads version {VERSION}")
    try:
        if checksum != _digest({"deepcache_profile": version, **body}):
            raise ProfileError("its checksum is wrong: it was changed or damaged")
        return _profile(**body)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"it cannot be read: {str(error)[:80]!r}") from error


def _profile(*, made_for: Any, ageing: Any, pictures: Any) -> Profile:
    found = _made_for(**made_for)
    sounded = SOUNDED[found.blocks]
    if set(ageing) != {str(branch) for branch in sounded} or ageing["0"] != 1:
        raise ValueError("an ageing")
    known = {branch: _number(ageing[str(branch)], LEAST, MOST) for branch in sounded}
    return Profile(found, known, _whole(pictures, 1, 1000))


def _made_for(*, checkpoint: Any, checksum: Any, blocks: Any, fresh_noise: Any, sampler: Any, steps: Any) -> MadeFor:
    if not isinstance(fresh_noise, bool):
        raise ValueError("true or false")
    if blocks not in SOUNDED:
        raise ValueError("a UNet that is measured")
    return MadeFor(
        _name(checkpoint),
        _name(checksum),
        _whole(blocks, 1, 100),
        fresh_noise,
        _name(sampler),
        _whole(steps, 1, MOST_EVALUATIONS),
    )


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"a number from {low:g} to {high:g}")
    return float(value)


def _whole(value: Any, low: int, high: int) -> int:
    number = _number(value, low, high)
    if number != int(number):
        raise ValueError("a whole number")
    return int(number)


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError("a name")
    return value


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
