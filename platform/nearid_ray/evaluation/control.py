"""The artefact control: does a scorer call the same object, painted anew by an engine, the same identity?

A scorer that knows identities tells a distractor from its view by the object. One that has learned what generated
pixels look like would do as well on distractors, and would fail here: the control shows the same object through the
same engine.

Axes: P pairs of a view with its control and its distractor of the same engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from nearid_ray.evaluation.counts import TrialCounts, count_trials
from schemas.distractors import CONTROL_SUFFIX


@dataclass(frozen=True, kw_only=True)
class ControlRate:
    """What a scorer makes of an engine's controls."""

    rate: float
    """Share of controls that are more like their view than the distractor of the same engine is; nan without pairs."""
    pairs: int
    """How many controls that is the share of."""


def is_control(engine: str) -> bool:
    """Whether an engine's name is that of an artefact control.

    >>> is_control("sdxl-512-control"), is_control("sdxl-512")
    (True, False)
    """
    return engine.endswith(CONTROL_SUFFIX)


def without_controls(engines: Sequence[str]) -> list[str]:
    """The engines that paint distractors, in order.

    >>> without_controls(["sdxl-512", "sdxl-512-control"])
    ['sdxl-512']
    """
    return [engine for engine in engines if not is_control(engine)]


def control_rate(control_similarity_P: ArrayLike, distractor_similarity_P: ArrayLike) -> ControlRate:
    """Share of pairs with s(view, control) > s(view, distractor); 1 is best, and 0.5 is what chance gives.

    Both hold similarities to the same view, the distractor by the control's engine. A tie counts as a failure, as a
    scorer that cannot tell the two apart has not called the control the same. A pair in which either is nan (missing,
    or an image that could not be embedded) is left out; without pairs the rate is nan.

    >>> control_rate([0.9, 0.8, 0.5, float("nan")], [0.4, 0.8, 0.6, 0.1])
    ControlRate(rate=0.3333333333333333, pairs=3)
    >>> control_rate([], [])
    ControlRate(rate=nan, pairs=0)

    Raises:
        ValueError: they are not of one length.
    """
    control_P, distractor_P = np.asarray(control_similarity_P, float), np.asarray(distractor_similarity_P, float)
    if control_P.ndim != 1 or control_P.shape != distractor_P.shape:
        raise ValueError(
            f"similarities of shapes {control_P.shape} and {distractor_P.shape}; expected two lists of one length"
        )
    known_P = ~(np.isnan(control_P) | np.isnan(distractor_P))
    pairs = int(known_P.sum())
    won = int((control_P[known_P] > distractor_P[known_P]).sum())
    return ControlRate(rate=won / pairs if pairs else float("nan"), pairs=pairs)


def control_rates(similarities: pa.Table) -> dict[tuple[str, str, str], ControlRate]:
    """(scorer, condition, engine) -> rate of that engine's controls, from the table `similarities`; empty without any.

    A control is compared with the distractor that the same engine painted into the same view; one without such a
    distractor is left out.
    """
    rates = {}
    for key, (_, control_P, distractor_P) in sorted(_pairs(similarities).items()):
        rates[key] = control_rate(control_P, distractor_P)
    return rates


def control_counts(similarities: pa.Table) -> dict[tuple[str, str, str], TrialCounts]:
    """`control_rates` as counts by identity, to be resampled; `.pa()` is the rate."""
    counts = {}
    for key, (identity_P, control_P, distractor_P) in sorted(_pairs(similarities).items()):
        counts[key] = count_trials(control_P - distractor_P, identity_P)
    return counts


def _pairs(similarities: pa.Table) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(scorer, condition, engine) -> identities, similarities of controls and of their distractors."""
    columns = ["scorer", "condition", "engine", "identity_id", "other_view_index", "similarity"]
    table = similarities.filter(pc.equal(similarities["kind"], "distractor")).select(columns)
    controls = table.filter(pc.ends_with(table["engine"], CONTROL_SUFFIX))
    if not len(controls):
        return {}
    painters = pa.array(sorted({name.removesuffix(CONTROL_SUFFIX) for name in controls["engine"].to_pylist()}))
    table = pa.concat_tables([controls, table.filter(pc.is_in(table["engine"], painters))])
    found: dict[tuple[Any, ...], float] = {}
    for *place, similarity in zip(*(table[name].to_pylist() for name in columns), strict=True):
        found[tuple(place)] = np.nan if similarity is None else similarity
    pairs: dict[tuple[str, str, str], list[tuple[str, float, float]]] = {}
    for (scorer, condition, engine, *place), control in found.items():
        painter = engine.removesuffix(CONTROL_SUFFIX)
        if is_control(engine) and (scorer, condition, painter, *place) in found:
            distractor = found[scorer, condition, painter, *place]
            pairs.setdefault((scorer, condition, painter), []).append((place[0], control, distractor))
    parts = {key: tuple(zip(*values, strict=True)) for key, values in pairs.items()}
    return {key: (np.array(who), np.array(one), np.array(two)) for key, (who, one, two) in parts.items()}
