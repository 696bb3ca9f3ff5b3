"""What a scorer of pairs is: it looks at two pictures and says how alike their objects are. It runs without Ray.

Axes: H height, W width, 3 colour channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.gpu_batches import FittingBatches


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One side of a pair: uint8 RGB, its background black in the condition `foreground`."""

    image_id: str
    """The same for the same pixels and mask."""
    image_HW3: np.ndarray
    mask_HW: np.ndarray | None = None
    """uint8, 255 = object; for scorers with `uses_masks` alone."""


@dataclass(frozen=True)
class Pair:
    """Two pictures to compare. Scores may depend on which comes first."""

    first: Picture
    second: Picture


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a scorer says of one pair. Where `error` says what went wrong there is no similarity; where nothing went
    wrong and there is none all the same, `answer` says why."""

    similarity: float = math.nan
    """Higher = more alike."""
    answer: str = ""
    """The scorer's own words, kept also where they cannot be read."""
    error: str = ""


class PairScorer(Protocol):
    """A scorer of pairs. Objects are checked on the driver, pickled to the workers and loaded there."""

    @property
    def batch_size(self) -> int:
        """Pairs given to `score` at once, at most."""

    @property
    def uses_masks(self) -> bool:
        """Whether it needs the object's mask of both pictures, in every condition."""

    def check(self) -> None:
        """Refuse, with UsageError, what cannot work, before a worker starts."""

    def described(self) -> dict[str, Any]:
        """All that decides its scores, JSON-like; an output holds those of one such description. After `check`."""

    def load(self, device: str) -> None:
        """Bring models into memory, once a worker; `device` is cpu or cuda. UsageError where that cannot be."""

    def score(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """One judgement a pair, in order. UsageError for what would be wrong with every pair; any other exception is of
        this batch, whose pairs are then tried one by one."""


class Batches:
    """Gives pairs to a scorer in batches, and remembers how many fit the GPU's memory."""

    def __init__(self, scorer: PairScorer, tell: Callable[[str], None] | None = None) -> None:
        self.scorer = scorer
        self.fitting = FittingBatches(
            self._score, max(1, scorer.batch_size), what="pairs", fatal=(UsageError,), tell=tell
        )

    def run(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """One judgement a pair, in order.

        Raises:
            UsageError: the scorer refuses all pairs, or answers for more or fewer than it was given.
        """
        return [
            Judgement(error=f"{type(made).__name__}: {made}") if isinstance(made, Exception) else made
            for made in self.fitting.run(pairs)
        ]

    def _score(self, part: list[Pair]) -> list[Judgement]:
        made = self.scorer.score(part)
        if len(made) != len(part):
            raise UsageError(f"the scorer gave {len(made)} judgements for {len(part)} pairs; expected one a pair")
        return made
