"""What a training step reads: the global batches of an epoch, and the cached items of each sample's slots.

Axes: I identities, B samples of a batch, V views, E training engines, P positive slots, K distractor slots.

A sample is an identity (and its repeat, where its source is repeated within an epoch). Everything drawn for it, the
anchor, the other views, each slot's engine, augmentation and mask, follows from (seed, epoch, repeat, identity, slot),
so it is the same on any number of workers and whatever else is in the batch. No random state exists.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearid_ray.errors import UsageError
from nearid_ray.training.draws import uniforms, words
from nearid_ray.training.items import ItemTable, Rows

DistractorScope = Literal["views", "anchor"]
Mask = NDArray[np.bool_]
Name = tuple[int | NDArray[Any], ...]

# What a draw is for; part of its name, so that draws of one sample are independent of each other.
_ORDER, _VIEW, _ENGINE, _DRAW, _MASK, _TIE, _POSITIVE = range(7)


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """How the slots of a sample are filled."""

    seed: int = 0
    """Names all draws."""
    positives: int = 2
    """Positive slots P; filled with views other than the anchor, as many as there are."""
    distractor_slots: int = 3
    """Distractor slots K."""
    distractors: DistractorScope = "views"
    """"views": one distractor a view, the anchor's own background first; "anchor": different engines, all in the
    anchor's own background."""
    anchor_mask_probability: float = 0.5
    """Chance that an anchor's background is blacked out, where the cache has such items."""
    positive_mask_probability: float = 0.2
    """The same for a positive."""
    distractor_mask_probability: float = 0.6
    """The same for a distractor."""
    repeats: Mapping[str, int] = field(default_factory=dict)
    """How often an epoch goes through the identities of a source; 1 where not named."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some samples of an epoch."""

    identity_B: Rows
    """Place in the item table."""
    repeat_B: Rows
    """Which of the identity's repeats."""

    def __getitem__(self, part: slice) -> "Samples":
        return Samples(identity_B=self.identity_B[part], repeat_B=self.repeat_B[part])

    def __len__(self) -> int:
        return len(self.identity_B)


@dataclass(frozen=True, kw_only=True)
class StepItems:
    """Index rows of the items a step reads; -1 in slots that are not filled."""

    anchor_B: Rows
    positive_BP: Rows
    distractor_BK: Rows

    @property
    def positive_valid_BP(self) -> Mask:
        return self.positive_BP >= 0

    @property
    def distractor_valid_BK(self) -> Mask:
        return self.distractor_BK >= 0

    def rows_BS(self) -> Rows:
        """All slots side by side: the anchor, the positives, the distractors."""
        return np.concatenate([self.anchor_B[:, None], self.positive_BP, self.distractor_BK], axis=1)


class Selection:
    """Chooses what each step reads from a table of items."""

    def __init__(self, items: ItemTable, settings: SelectionSettings) -> None:
        self.items = items
        self.settings = settings
        sources = items.sources()
        unknown = sorted(set(settings.repeats) - set(sources))
        if unknown:
            found = sorted(set(sources))
            raise UsageError(f"repeats names the sources {unknown}; the training identities come from {found}")
        self._repeats_I = np.array([settings.repeats.get(source, 1) for source in sources], np.int64)
        if not len(self._repeats_I) or self._repeats_I.min() < 1:
            raise UsageError(f"repeats must be at least 1, got {dict(settings.repeats)}")

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples of an epoch, repeats counted."""
        return int(self._repeats_I.sum())

    def batches_per_epoch(self, global_batch: int) -> int:
        """Number of steps of an epoch; the last one can be short."""
        return -(-self.samples_per_epoch // global_batch)

    def epoch(self, epoch: int, global_batch: int) -> list[Samples]:
        """All global batches of an epoch: every sample once, copies of one identity never in one batch.

        Raises:
            UsageError: an identity is repeated more often than there are batches to keep its copies apart.
        """
        if self._repeats_I.max() == 1:
            key_I = words(self.settings.seed, epoch, _ORDER, self.items.identity_hash_I)
            order = np.argsort(key_I, kind="stable")
            everyone = Samples(identity_B=order, repeat_B=np.zeros_like(order))
            return [everyone[start : start + global_batch] for start in range(0, len(order), global_batch)]
        return self._dealt(epoch, global_batch)

    def choose(self, samples: Samples, epoch: int) -> StepItems:
        """The items of some samples; each depends on its own sample alone."""
        settings, items = self.settings, self.items
        name = (settings.seed, epoch, samples.repeat_B, items.identity_hash_I[samples.identity_B])
        view_BV = self._views_in_random_order(samples, name)
        anchor_picture_B = self._view_picture(samples, view_BV[:, :1])[:, 0]
        positive_BP = self._view_picture(samples, _columns(view_BV[:, 1:], settings.positives))
        distractor_BK = self._distractors(samples, view_BV, name)
        return StepItems(
            anchor_B=self._items(anchor_picture_B[:, None], name, 0, settings.anchor_mask_probability)[:, 0],
            positive_BP=self._items(positive_BP, name, 1, settings.positive_mask_probability),
            distractor_BK=self._items(
                distractor_BK, name, 1 + settings.positives, settings.distractor_mask_probability
            ),
        )

    def positive_draw(self, samples: Samples, epoch: int) -> NDArray[np.float64]:
        """A uniform number for each sample, for objectives that take one of its positives."""
        hash_B = self.items.identity_hash_I[samples.identity_B]
        return uniforms(self.settings.seed, epoch, samples.repeat_B, hash_B, _POSITIVE)

    def _views_in_random_order(self, samples: Samples, name: Name) -> Rows:
        """The usable views of each sample in random order, the anchor first; -1 after the last."""
        usable_BV = self.items.view_IV[samples.identity_B] >= 0
        key_BV = uniforms(*_spread(name), _VIEW, np.arange(usable_BV.shape[1]))
        order_BV = np.argsort(np.where(usable_BV, key_BV, 2.0), axis=1, kind="stable")
        return np.where(np.take_along_axis(usable_BV, order_BV, axis=1), order_BV, -1)

    def _distractors(self, samples: Samples, view_BV: Rows, name: Name) -> Rows:
        slots = self.settings.distractor_slots
        engines = len(self.items.engines)
        if self.settings.distractors == "anchor":
            candidate_BE = self._candidates(samples, view_BV[:, :1])[:, 0]
            order_BE = self._engine_order(candidate_BE, name, 0)
            return _columns(np.take_along_axis(candidate_BE, order_BE, axis=1), slots)
        background_BK = _columns(view_BV, slots)
        chosen = np.full(background_BK.shape, -1, np.int64)
        if not engines:
            return chosen
        candidate_BKE = self._candidates(samples, background_BK)
        for slot in range(slots):
            first_B = self._engine_order(candidate_BKE[:, slot], name, slot)[:, :1]
            chosen[:, slot] = np.take_along_axis(candidate_BKE[:, slot], first_B, axis=1)[:, 0]
        return chosen

    def _engine_order(self, candidate_BE: Rows, name: Name, slot: int) -> Rows:
        """Engines in random order, those without a picture last.

        The first is a uniform draw among the engines that have one: the same as drawing again until one has.
        """
        key_BE = uniforms(*_spread(name), _ENGINE, slot, np.arange(candidate_BE.shape[1]))
        return np.argsort(np.where(candidate_BE >= 0, key_BE, 2.0), axis=1, kind="stable")

    def _candidates(self, samples: Samples, view_BS: Rows) -> Rows:
        """Pictures of all engines' distractors in the background of given views; -1 where there is none."""
        found = self.items.distractor_IVE[samples.identity_B[:, None], np.maximum(view_BS, 0)]
        return np.where(view_BS[..., None] >= 0, found, -1)

    def _view_picture(self, samples: Samples, view_BS: Rows) -> Rows:
        found = self.items.view_IV[samples.identity_B[:, None], np.maximum(view_BS, 0)]
        return np.where(view_BS >= 0, found, -1)

    def _items(self, picture_BS: Rows, name: Name, first_slot: int, mask_probability: float) -> Rows:
        """An item of each picture: its augmentation uniform, its background blacked out with a probability."""
        slot_S = first_slot + np.arange(picture_BS.shape[1])
        draw_BS = uniforms(*_spread(name), _DRAW, slot_S)
        plain_BS = _drawn(self.items.plain_OA, picture_BS, draw_BS)
        if not self.items.has_masked or mask_probability == 0:
            return plain_BS
        masked_BS = _drawn(self.items.masked_OA, picture_BS, draw_BS)
        wanted_BS = uniforms(*_spread(name), _MASK, slot_S) < mask_probability
        return np.where(wanted_BS & (masked_BS >= 0), masked_BS, plain_BS)

    def _dealt(self, epoch: int, global_batch: int) -> list[Samples]:
        """Batches when some identities are repeated.

        Identities with the most copies choose first; each puts its copies into the batches with most room left, ties
        broken at random. This finds a solution whenever there is one (Gale and Ryser).
        """
        seed, hash_I = self.settings.seed, self.items.identity_hash_I
        batches = self.batches_per_epoch(global_batch)
        sizes = np.full(batches, global_batch)
        sizes[-1] = self.samples_per_epoch - global_batch * (batches - 1)
        tie = words(seed, epoch, _TIE, np.arange(batches)[:, None], np.arange(global_batch + 1)).tolist()
        room = [(-int(size), tie[b][int(size)], b) for b, size in enumerate(sizes)]
        heapq.heapify(room)
        members: list[list[tuple[int, int]]] = [[] for _ in range(batches)]
        for identity in np.lexsort((words(seed, epoch, _ORDER, hash_I), -self._repeats_I)).tolist():
            copies = int(self._repeats_I[identity])
            taken = [heapq.heappop(room) for _ in range(min(copies, len(room)))]
            if len(taken) < copies:
                raise UsageError(
                    f"identity {self.items.identities[identity]} is repeated {copies} times, but its copies cannot be "
                    f"kept apart in {batches} batches of {global_batch}; lower global_batch or repeats"
                )
            for repeat, (minus_free, _, batch) in enumerate(taken):
                members[batch].append((identity, repeat))
                free = -minus_free - 1
                if free:
                    heapq.heappush(room, (-free, tie[batch][free], batch))
        return [self._shuffled(np.array(pairs, np.int64), epoch) for pairs in members]

    def _shuffled(self, pair_B2: Rows, epoch: int) -> Samples:
        """A batch in random order, so that workers' parts are alike."""
        identity_B, repeat_B = pair_B2.T
        key_B = words(self.settings.seed, epoch, _ORDER, self.items.identity_hash_I[identity_B], 1 + repeat_B)
        order = np.argsort(key_B, kind="stable")
        return Samples(identity_B=identity_B[order], repeat_B=repeat_B[order])


def _spread(name: Name) -> Name:
    """The parts of a sample's name, shaped to broadcast against slots on axis 1."""
    return tuple(part[:, None] if isinstance(part, np.ndarray) else part for part in name)


def _columns(value_BN: Rows, columns: int) -> Rows:
    """The first columns; -1 where there are fewer."""
    kept = value_BN[:, :columns]
    return np.pad(kept, ((0, 0), (0, columns - kept.shape[1])), constant_values=-1)


def _drawn(row_OA: Rows, picture_BS: Rows, uniform_BS: NDArray[np.float64]) -> Rows:
    """One of each picture's items, by a uniform number; -1 where there is no picture or no item."""
    if not row_OA.size:
        return np.full(picture_BS.shape, -1, np.int64)
    row_BSA = row_OA[np.maximum(picture_BS, 0)]
    count_BS = (row_BSA >= 0).sum(axis=-1)
    place_BS = (uniform_BS * count_BS).astype(np.int64)
    return np.where(picture_BS >= 0, np.take_along_axis(row_BSA, place_BS[..., None], axis=-1)[..., 0], -1)
