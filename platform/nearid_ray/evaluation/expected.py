"""What a benchmark should have measured, and what is missing from it.

An engine is expected to have a distractor of every view of the identities it was given, and a scorer a similarity for
every pair. Whatever is missing lowers the coverage of the cells it belongs to; it is named, and never averaged away.

Axes: I identities, E engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.evaluation.counts import TrialCounts


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Directed trials that each identity and engine should have."""

    identities: tuple[str, ...]
    engines: tuple[str, ...]
    trials_IE: NDArray[np.int64]

    def of(self, engines: Sequence[str]) -> int:
        """Trials of these engines together; engines it does not know have none."""
        columns = [self.engines.index(engine) for engine in engines if engine in self.engines]
        return int(self.trials_IE[:, columns].sum())

    def coverage(self, counts: TrialCounts, engines: Sequence[str]) -> float:
        """Valid trials of these engines as a share of the expected ones; nan where none is expected."""
        wanted = self.of(engines)
        found = counts.of_engines([engine for engine in engines if engine in counts.engines]).trial_count()
        return found / wanted if wanted else float("nan")

    def lacking(self, counts: TrialCounts, engine: str) -> list[str]:
        """Identities with fewer valid trials at this engine than expected, in order."""
        wanted_I = self.trials_IE[:, self.engines.index(engine)]
        if engine in counts.engines:
            found_I = counts.of_engines([engine]).aligned(self.identities).valid_IE[:, 0]
        else:
            found_I = np.zeros_like(wanted_I)
        return [self.identities[row] for row in np.flatnonzero(found_I < wanted_I)]


def expected_trials(similarities: pa.Table) -> Expected:
    """What the records say there is to measure: two trials for every pair of views that any scorer looked at, at every
    engine that painted any identity of the same source.

    The source is the part of an identity's name before the colon, so that engines which were only given Mind-the-Glitch
    do not lack the identities of NearID.

    >>> rows = [("positive", "a:1", 0, 1, ""), ("positive", "a:2", 0, 1, ""), ("distractor", "a:1", 0, 0, "sdxl-512")]
    >>> names = ("kind", "identity_id", "view_index", "other_view_index", "engine")
    >>> found = expected_trials(pa.table({name: list(column) for name, column in zip(names, zip(*rows))}))
    >>> found.identities, found.engines, found.trials_IE.tolist()
    (('a:1', 'a:2'), ('sdxl-512',), [[2], [2]])
    """
    positive = similarities.filter(pc.field("kind") == "positive")
    pairs = positive.group_by(["identity_id", "view_index", "other_view_index"], use_threads=False).aggregate([])
    identities, pairs_I = np.unique(_strings(pairs["identity_id"]), return_counts=True)
    painted = similarities.filter(pc.field("kind") == "distractor")
    painted = painted.group_by(["identity_id", "engine"], use_threads=False).aggregate([])
    engine_N, source_N = _strings(painted["engine"]), _source(_strings(painted["identity_id"]))
    engines = np.unique(engine_N)
    source_I = _source(identities)
    given_IE = np.zeros((len(identities), len(engines)), np.int64)
    for column, engine in enumerate(engines):
        given_IE[:, column] = np.isin(source_I, source_N[engine_N == engine])
    return Expected(
        identities=tuple(identities.tolist()),
        engines=tuple(engines.tolist()),
        trials_IE=2 * pairs_I[:, None] * given_IE,
    )


def _source(identity: np.ndarray) -> np.ndarray:
    return np.char.partition(identity, ":")[:, 0] if len(identity) else identity


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=str)
