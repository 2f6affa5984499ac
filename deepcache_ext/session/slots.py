"""Slots: what each kind of call left behind, and whether that belongs to the call at hand."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..plan.estimators import Kept, Moment
from ..report.pass_report import Reason
from ..unet.answers import Answers
from ..unet.calls import WHOLE, Call, Region, ask_lies_at, ask_same_content, is_whole, locate
from ..unet.ladder import Walks

Key = tuple[int, Region, int, frozenset[int]]
"""The number of a call's kind, its region of the latent, how many calls with the same two came before it in its
evaluation, and which other kinds did. The last two are its role: where a host leaves the own call out at some
evaluations (NGMS), a guider's further call comes first, and must not be taken for it.
"""


@dataclass
class Slot:
    """The memory of one call across evaluations: by branch what was kept, oldest first. `walks` is what its last full
    call did on the ladder.
    """

    keeps: int
    kept: dict[int, deque[Kept]] = field(default_factory=dict)
    conditioning: tuple[torch.Tensor, ...] = ()
    state: Hashable = None
    forward: object = None
    walks: Walks = field(default_factory=Walks)

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for those in self.kept.values() for kept in those)

    @property
    def newest(self) -> int:
        """The evaluation at which a feature was last kept, -1 for none."""
        return max((those[-1].moment.index for those in self.kept.values()), default=-1)

    def add(self, branch: int, features: Sequence[torch.Tensor], moment: Moment) -> None:
        """What a call kept at that branch, a feature for each walk."""
        self.kept.setdefault(branch, deque(maxlen=self.keeps)).append(Kept(tuple(features), moment))


class Slots:
    """All slots of one pass, by the key of their calls."""

    def __init__(self, keeps: int) -> None:
        self._keeps = keeps
        self._slots: dict[Key, Slot] = {}
        self._regions: dict[tuple[int, int], Region] = {}
        self._kinds: dict[Hashable, int] = {}
        """A number for each kind of call that was seen in this pass."""
        self._by_kind: Counter[int] = Counter()
        self._by_place: Counter[tuple[int, Region]] = Counter()
        self._alike: dict[tuple[int, Region], list[Call]] = {}
        """This evaluation's calls so far, by kind and region."""
        self._unclear: set[tuple[int, Region]] = set()
        """Of calls that cannot be told apart."""
        self._latent: torch.Tensor | None = None
        self._answers = Answers()
        self._same: tuple[Slot, Call, Callable[[], bool]] | None = None
        """Whether this slot's conditioning is this call's."""

    def start_evaluation(self, latent: torch.Tensor | None, answers: Answers) -> None:
        """`latent`: what the sampler asks about, (rows, channels, height, width), all parts of it; None if unknown.
        `answers`: among which this evaluation's questions about its calls are put.
        """
        self._by_kind.clear()
        self._by_place.clear()
        self._alike.clear()
        self._latent, self._answers, self._same = latent, answers, None

    def end_evaluation(self) -> None:
        self._latent = self._same = None
        self._answers = Answers()
        self._alike.clear()

    def place(self, call: Call, forwards: int, is_full: bool) -> Key | Reason:
        """The key of a call, or why there is none: its part of the latent cannot be proved, or it could be taken for
        another call. Ask once for each.

        `forwards`: a number for what runs in it, since a guider's further call may differ in nothing but what it has
        put on the layers. `is_full`: by the plan.
        """
        kind = self._kinds.setdefault((call.kind, forwards), len(self._kinds))
        nth = self._by_kind[kind]
        others = frozenset(self._by_kind) - {kind}
        self._by_kind[kind] += 1
        region = self._region(call, kind, nth, others, self._keeps > 1 or not is_full)
        if region is None:
            return Reason.UNPLACED if call.x.isfinite().all() else Reason.NO_NUMBERS
        place = kind, region
        key = self._key(kind, region, others)
        self._by_place[place] += 1
        alike = self._alike.setdefault(place, [])
        # What was kept for this very call was looked at when it was kept.
        if (is_full or key not in self._slots) and any(map(call.is_taken_for, alike)):
            self._unclear.add(place)
        alike.append(call)
        return Reason.UNCLEAR if place in self._unclear else key

    def with_further_channels(self, call: Call) -> Call:
        """What x holds besides the sampler's latent (an inpainting model's mask and picture, InstructPix2Pix's picture)
        counts as conditioning: it stays as it is from evaluation to evaluation, and tells calls apart.
        """
        channels = None if self._latent is None else self._latent.shape[1]
        if channels is None or call.x.dim() != 4 or call.x.shape[1] <= channels:
            return call
        return replace(call, conditioning=(*call.conditioning, call.x[:, channels:]))

    def _key(self, kind: int, region: Region, others: frozenset[int]) -> Key:
        return kind, region, self._by_place[kind, region], others

    def _region(self, call: Call, kind: int, nth: int, others: frozenset[int], goes_on: bool) -> Region | None:
        """`goes_on`: what its slot holds will be asked for."""
        latent = self._latent
        if latent is None:
            return None
        is_all = is_whole(call.x, latent)
        # Even a first call may ask about another latent (an extension's own, a blurred or shifted one). Tiles stay
        # where they are, so last evaluation's answer is tried before the search.
        guess = WHOLE if is_all else self._regions.get((kind, nth))
        if guess is not None:
            lies = (lambda: True) if call.x is latent else ask_lies_at(call.x, latent, guess, self._answers)
            slot = self._slots.get(self._key(kind, guess, others)) if goes_on else None
            if slot is not None:  # what will be asked next is read along with it
                self._same = slot, call, ask_same_content(slot.conditioning, call.conditioning, self._answers)
            if lies():
                return guess
        region = None if is_all else locate(call.x, latent)
        if region is not None:
            self._regions[kind, nth] = region
        return region

    def _is_same(self, slot: Slot, call: Call) -> bool:
        """Whether the conditioning that a slot's features were made with is this call's."""
        if self._same is None or self._same[0] is not slot or self._same[1] is not call:
            self._same = slot, call, ask_same_content(slot.conditioning, call.conditioning, self._answers)
        return self._same[2]()

    def find(
        self, key: Key, call: Call, forward: object, branch: int, oldest: int
    ) -> tuple[Slot | None, Reason | None]:
        """The slot whose feature at `branch` belongs to this call, or the reason why there is none.

        `forward`: the foreign forward that will run, or None; `oldest`: the kept feature may not be older.
        """
        slot = self._slots.get(key)
        if slot is None or branch not in slot.kept:
            return None, Reason.FIRST_SEEN
        if slot.kept[branch][-1].moment.index < oldest:
            return None, Reason.NOT_REFRESHED
        if slot.forward is not forward:
            return None, Reason.FORWARD
        if slot.state != call.state:
            return None, Reason.STATE
        if not self._is_same(slot, call):
            return None, Reason.CONDITIONING
        return slot, None

    def continues(self, key: Key, call: Call, forward: object) -> bool:
        """Whether a full call is of the same making as what its slot holds, which then stays for the estimator. To be
        asked before the call: it may wait for the device, which is to have little to do then.
        """
        slot = self._slots.get(key) if self._keeps > 1 else None
        return (
            slot is not None
            and bool(slot.kept)
            and slot.forward is forward
            and slot.state == call.state
            and self._is_same(slot, call)
        )

    def keep(self, key: Key, call: Call, forward: object, walks: Walks, continues: bool = False) -> Slot:
        """The slot for what a full call kept; the features before it stay only where it `continues` them. Never waits
        for the device.
        """
        slot = self._slots.get(key)
        if slot is None or not continues or slot.walks.count != walks.count:
            # Clones, since a host may fill the same buffers anew.
            conditioning = tuple(tensor.clone() for tensor in call.conditioning)
            slot = self._slots[key] = Slot(self._keeps, {}, conditioning, call.state, forward)
        slot.walks = replace(walks, features={})
        return slot

    def forget_older(self, oldest: int) -> None:
        """Free slots whose newest feature is older than evaluation `oldest`: moving windows leave them behind."""
        self._slots = {key: slot for key, slot in self._slots.items() if slot.newest >= oldest}

    def clear(self) -> None:
        self._slots.clear()
        self._regions.clear()

    @property
    def nbytes(self) -> int:
        return sum(slot.nbytes for slot in self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)
