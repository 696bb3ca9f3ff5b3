"""What all objectives share: their input and outcome, and the averages over the global batch.

Axes: B anchors of this worker, P positive slots, K distractor slots, D embedding width, S slots of a term.

A tuple is an anchor with its positives (other views of the identity) and distractors (other objects in the background
of the identity's views). Slots can be missing; a missing slot is absent from every numerator, denominator and count,
whatever its embedding holds. Averages run over the anchors of the global batch: each worker adds its part, one
all-reduce brings sums and counts together, and the value is the same on every worker.

Nothing here waits for the device and no shape depends on values, so that a step can be queued ahead or captured.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nearid_ray.errors import UsageError
from nearid_ray.training.pool import Pool, Workers

Reduction = Literal["paper", "pairs"]
Need = Literal["distractors", "oracle"]

DEFAULT_CHUNK = 8192
"""Pool entries handled at once; 128 anchors by 8192 entries are 4 MiB a float32 matrix."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedTuples:
    """L2-normalised embeddings of this worker's tuples; missing slots may hold anything.

    Embeddings may have an axis of several heads in front, for objectives that take it (`alike`).

    Raises:
        ValueError: shapes that do not belong together, or masks that are not boolean.
    """

    anchor_BD: Tensor
    positive_BPD: Tensor
    positive_valid_BP: Tensor
    distractor_BKD: Tensor
    distractor_valid_BK: Tensor
    oracle_BK: Tensor | None = None
    """How alike each distractor is to the anchor by an oracle, higher = more; NaN where it is not known."""
    draw_B: Tensor | None = None
    """A number in [0, 1) for each anchor: which of its positives an objective of one positive takes. None: first."""

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in vars(self).items() if value is not None}
        *heads, anchors, width = self.anchor_BD.shape
        positives, distractors = self.positive_valid_BP.shape[-1], self.distractor_valid_BK.shape[-1]
        expected = {
            "anchor_BD": (*heads, anchors, width),
            "positive_BPD": (*heads, anchors, positives, width),
            "positive_valid_BP": (anchors, positives),
            "distractor_BKD": (*heads, anchors, distractors, width),
            "distractor_valid_BK": (anchors, distractors),
            "oracle_BK": (anchors, distractors),
            "draw_B": (anchors,),
        }
        expected = {name: expected[name] for name in shapes}
        if shapes != expected:
            raise ValueError(f"tuples of shapes {shapes} do not belong together; expected {expected}")
        if self.positive_valid_BP.dtype != torch.bool or self.distractor_valid_BK.dtype != torch.bool:
            raise ValueError("the masks of valid slots must be boolean")


@dataclass(frozen=True, kw_only=True)
class LossValue:
    """The outcome of an objective."""

    loss: Tensor
    """Scalar. Its value is that of the global batch. Its gradients, averaged over the workers as
    DistributedDataParallel does, are those of one process holding the global batch. (In reference mode the value is
    the worker's own.)"""
    part_tensors: Mapping[str, Tensor]
    """The terms before their weights: scalars with values and gradients like the loss's. See `Objective`."""
    distractors: Tensor | None = None
    """Number of distractors of the global batch, where none are refused."""

    @cached_property
    def parts(self) -> dict[str, float]:
        """The terms as numbers. The first reading waits for the device.

        Raises:
            UsageError: see `check`.
        """
        self.check()
        values = torch.stack([value.detach() for value in self.part_tensors.values()]).tolist()
        return dict(zip(self.part_tensors, values, strict=True))

    def check(self) -> None:
        """Raises UsageError when the global batch lacks the distractors it needs; waits for the device."""
        if self.distractors is not None and not self.distractors.item():
            raise UsageError(_MISSING["distractors"].format(what="this global batch"))


class Objective(Protocol):
    """What a training step minimises.

    The parts of its value, always in this order, are those of `parts_names`: "disc" (the main contrastive term),
    "distractor" (distractors against the anchor), "rank" (distractors above the batch negatives), "oracle"
    (distractors among each other), "cohesion" (positives among each other).
    """

    @property
    def parts_names(self) -> tuple[str, ...]: ...

    @property
    def needs(self) -> frozenset[Need]:
        """What the data must have."""

    @property
    def reference(self) -> bool:
        """Whether empty slots must hold embeddings of blank images, and workers bring equal numbers of anchors."""

    def __call__(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> LossValue: ...


@dataclass(frozen=True)
class Term:
    """One term of a loss, before any average. Missing slots must hold 0."""

    name: str
    value_BS: Tensor
    valid_BS: Tensor
    weight: float = 1.0
    reduction: Reduction = "pairs"


@dataclass(frozen=True, kw_only=True)
class GlobalObjective:
    """An objective that is a weighted sum of averages over the global batch. Families say what their terms are."""

    chunk: int = DEFAULT_CHUNK
    """Pool entries compared with the anchors at once; memory grows with it, not with the pool. At least 1."""
    strict: bool = False
    """Whether a global batch without any distractor is refused if the objective needs them; otherwise such terms are 0,
    as those of a batch without oracle values always are."""

    def __post_init__(self) -> None:
        check_number("chunk", self.chunk, "a whole number, 1 or more", isinstance(self.chunk, int) and self.chunk >= 1)

    @property
    def parts_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"distractors"})

    @property
    def reference(self) -> bool:
        return False

    def terms(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> Sequence[Term]:
        """The terms, in the order of `parts_names`; missing slots of the input hold zeros."""
        raise NotImplementedError

    @property
    def alike(self) -> Hashable:
        """Objectives with an equal one differ in the terms' `weights` alone and take several heads at once; None: no
        other does."""
        return None

    @property
    def weights(self) -> tuple[float, ...]:
        """The terms' weights, in the order of `parts_names`; of objectives that have an `alike`."""
        raise NotImplementedError

    def __call__(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> LossValue:
        """The loss of the global batch. Every worker must call it, one without anchors too.

        Computed in float32, or float64 if the embeddings are, whatever autocast is around.

        Raises:
            UsageError: `strict`, and the global batch has no distractors though the objective needs them. On an
                accelerator it comes when the value's parts are read, to not wait for the device.
        """
        with torch.autocast(tuples.anchor_BD.device.type, enabled=False):
            tuples, pool = _at_least_float32(tuples), _at_least_float32(pool)
            if not self.reference:
                tuples, pool = _without_absent(tuples, pool)
            return self._value(tuples, self.terms(tuples, pool, workers), workers)

    def _value(self, tuples: EmbeddedTuples, terms: Sequence[Term], workers: Workers) -> LossValue:
        needed = [tuples.distractor_valid_BK.sum()] if self.strict and "distractors" in self.needs else []
        if self.reference:
            # The released code averages over each worker's own batch.
            parts, _ = global_averages(terms, Workers())
            found = [workers.sum(count) for count in needed]
        else:
            parts, found = global_averages(terms, workers, needed)
        loss = tuples.anchor_BD.sum() * 0.0
        for term in terms:
            if term.weight:
                loss = loss + term.weight * parts[term.name]
        value = LossValue(loss=loss, part_tensors=parts, distractors=found[0] if found else None)
        if loss.device.type == "cpu":
            value.check()
        return value


def stacked_values(
    objectives: Sequence[GlobalObjective], tuples: EmbeddedTuples, pool: Pool, workers: Workers
) -> list[LossValue]:
    """The losses of several heads, whose embeddings are stacked along the first axis, by objectives that are `alike`.

    The same as calling each, up to rounding, in as many operations as for one. Every worker must call it.
    """
    first = objectives[0]
    with torch.autocast(tuples.anchor_BD.device.type, enabled=False):
        tuples, pool = _without_absent(_at_least_float32(tuples), _at_least_float32(pool))
        terms = first.terms(tuples, pool, workers)
        needed = [tuples.distractor_valid_BK.sum()] if first.strict and "distractors" in first.needs else []
        parts, found = global_averages(terms, workers, needed)
        part_RT = torch.stack([parts[term.name] for term in terms], dim=-1)
        weight_RT = part_RT.new_tensor([objective.weights for objective in objectives])
        loss_R = (torch.where(weight_RT != 0, part_RT, 0.0) * weight_RT).sum(dim=-1)
        loss_R = loss_R + tuples.anchor_BD.sum(dim=(-2, -1)) * 0.0
    values = [
        LossValue(
            loss=loss,
            part_tensors=dict(zip(parts, part_T.unbind(), strict=True)),
            distractors=found[0] if found else None,
        )
        for loss, part_T in zip(loss_R.unbind(), part_RT.unbind(), strict=True)
    ]
    if loss_R.device.type == "cpu":
        values[0].check()
    return values


def global_averages(
    terms: Sequence[Term], workers: Workers, counts: Sequence[Tensor] = ()
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The terms' averages over the global batch, and global sums of counts, by one exchange for all of them.

    Values with an axis of several heads in front have averages with it.

    "paper" averages each slot over the anchors of the global batch that have it, then the slots that any anchor has;
    "pairs" averages all filled slots. Nothing filled is 0, still attached to the graph.
    """
    dtype = terms[0].value_BS.dtype
    wide = torch.float32 if terms[0].value_BS.device.type == "mps" else torch.float64
    sums = [term.value_BS.sum(dim=-2, dtype=wide) for term in terms]
    filled = [term.valid_BS.sum(dim=0).to(wide) for term in terms]
    flat = [*(sum_S.flatten() for sum_S in sums), *filled, *(count.to(wide).reshape(1) for count in counts)]
    pieces = workers.sum(torch.cat(flat)).split([len(piece) for piece in flat])
    parts = {}
    for term, sum_S, global_sum, count_S in zip(terms, sums, pieces, pieces[len(terms) :], strict=False):
        weight_S, global_sum_S = _slot_weights(count_S, term.reduction), global_sum.view(sum_S.shape)
        part = workers.with_global_value((sum_S * weight_S).sum(dim=-1), (global_sum_S * weight_S).sum(dim=-1))
        parts[term.name] = part.to(dtype)
    return parts, list(pieces[2 * len(terms) :])


def _slot_weights(count_S: Tensor, reduction: Reduction) -> Tensor:
    """What one filled slot of each column weighs in the average, from the global number of filled slots."""
    if reduction == "pairs":
        return (1.0 / count_S.sum().clamp(min=1)).expand_as(count_S)
    used = (count_S > 0).sum().clamp(min=1)
    return 1.0 / (count_S.clamp(min=1) * used)


def ordered_pairs(tuples: EmbeddedTuples) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of distractor slots, and for each anchor the sign of the oracle's order: +1, -1, or 0 for no pair.

    A pair needs two distractors that are there, both with an oracle value, and no tie.
    """
    slots = tuples.distractor_valid_BK.shape[1]
    first_S, second_S = torch.triu_indices(slots, slots, offset=1, device=tuples.anchor_BD.device)
    if tuples.oracle_BK is None:
        return first_S, second_S, tuples.anchor_BD.new_zeros(len(tuples.anchor_BD), len(first_S))
    oracle_BK = torch.where(tuples.distractor_valid_BK, tuples.oracle_BK, float("nan"))
    first_BS, second_BS = oracle_BK[:, first_S], oracle_BK[:, second_S]
    # Comparisons with not-a-number are false, so such pairs get 0.
    order_BS = (first_BS > second_BS).to(tuples.anchor_BD.dtype) - (first_BS < second_BS).to(tuples.anchor_BD.dtype)
    return first_S, second_S, order_BS


def check_data(
    objective: Objective, distractors: int, oracle_pairs: int | None = None, what: str = "the training data"
) -> None:
    """Refuses data that has nothing of what an objective needs; for the plan of a run, or of one of its batches.

    Args:
        objective: what is to be minimised.
        distractors: filled distractor slots.
        oracle_pairs: pairs of distractors of one anchor that the oracle orders; None is unknown and not checked.
        what: what was counted, for the message.

    Raises:
        UsageError: there are none, but the objective needs them.
    """
    found: dict[Need, int | None] = {"distractors": distractors, "oracle": oracle_pairs}
    for need in sorted(objective.needs):
        if found[need] == 0:
            raise UsageError(_MISSING[need].format(what=what))


_MISSING: dict[Need, str] = {
    "distractors": "the objective needs distractors, but {what} has none; add them (job synthesize), choose engines "
    "that have some, or take objective infonce, which needs none",
    "oracle": "the objective ranks distractors by an oracle, but {what} has no anchor with two distractors of known "
    "and different oracle values; add data with an oracle (Mind-the-Glitch), or take an objective without oracle",
}


def check_number(name: str, value: object, expected: str, holds: bool) -> None:
    """Raises UsageError when a setting of an objective is out of its range."""
    if not holds:
        raise UsageError(f"{name} is {value!r}; expected {expected}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises UsageError when a setting is not one of its choices."""
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def absent_as_zero(embedding: Tensor, valid: Tensor) -> Tensor:
    """Replaces missing embeddings, so that even a not-a-number in them reaches neither values nor gradients."""
    return torch.where(valid[..., None], embedding, 0.0)


def _without_absent(tuples: EmbeddedTuples, pool: Pool) -> tuple[EmbeddedTuples, Pool]:
    present = replace(
        tuples,
        positive_BPD=absent_as_zero(tuples.positive_BPD, tuples.positive_valid_BP),
        distractor_BKD=absent_as_zero(tuples.distractor_BKD, tuples.distractor_valid_BK),
    )
    return present, replace(pool, embedding_MD=absent_as_zero(pool.embedding_MD, pool.valid_M))


def _at_least_float32(held: Any) -> Any:
    """Tuples or a pool with embeddings of half precision in float32."""
    low = {
        f.name: getattr(held, f.name).float()
        for f in fields(held)
        if isinstance(getattr(held, f.name), Tensor) and getattr(held, f.name).dtype in (torch.float16, torch.bfloat16)
    }
    return replace(held, **low) if low else held
