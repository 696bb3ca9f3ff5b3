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
    columns = ["scorer", "condition", "engine", "identity_id", "other_view_index", "similarity"]
    table = similarities.filter(pc.equal(similarities["kind"], "distractor")).select(columns)
    found: dict[tuple[Any, ...], float] = {}
    for scorer, condition, engine, identity, view, similarity in zip(
        *(table[name].to_pylist() for name in columns), strict=True
    ):
        found[scorer, condition, engine, identity, view] = np.nan if similarity is None else similarity
    pairs: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for (scorer, condition, engine, *place), control in found.items():
        painter = engine.removesuffix(CONTROL_SUFFIX)
        if is_control(engine) and (scorer, condition, painter, *place) in found:
            distractor = found[scorer, condition, painter, *place]
            pairs.setdefault((scorer, condition, painter), []).append((control, distractor))
    return {key: control_rate(*np.array(values).T) for key, values in sorted(pairs.items())}
