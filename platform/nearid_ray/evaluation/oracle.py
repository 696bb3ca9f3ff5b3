"""Mind-the-Glitch: success rates and agreement with the oracle of samples of two views and a distractor each.

A sample is two pictures of an object, 1 and 2, and an inpainted one of each, 1' and 2', in which part of the object
changed; the oracle of 1' is the share of the object that stayed. Five similarities are looked at: (1,2), (1,1'),
(2,2'), (1,2'), (2,1') (Section "Metrics" of the NearID paper).

Axes: N samples, I identities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import CONFIDENCE, Statistic, intervals, rate_statistics, share
from nearid_ray.evaluation.correlations import oracle_statistics
from nearid_ray.evaluation.counts import count_trials
from nearid_ray.evaluation.frames import columns_of, floats, names, refuse_doubles
from nearid_ray.evaluation.margins import MEASURED_APART, margins

SIMILARITIES = ("s_12", "s_11p", "s_12p", "s_22p", "s_21p")
ORACLES = ("oracle_1", "oracle_2")
SAMPLE = ("identity_id", "engine", "view_index", "other_view_index")
"""Columns that name a sample, where they are there."""


def statistics(scores: Any) -> dict[str, Statistic]:
    """m_o, m_o_pair, ssr and pa of one scorer's scores, ready to be resampled or compared with another scorer's.

    ssr, pa: of the margins s(1,2) - s(1,1') and s(1,2) - s(2,2'); ties fail, a margin with a gap is no trial.
    m_o: Fisher mean of the correlations of (1,1'), (2,2'), (1,2'), (2,1') with the oracle of the distractor in them;
    m_o_pair: of the first two. A constant column is correlation 0; pairs with a gap are left out and lower `coverage`.

    Args:
        scores: as `summarize` takes it.
    """
    columns = columns_of(scores, (*SIMILARITIES, *ORACLES), "scores")
    number = {name: floats(columns[name]) for name in (*SIMILARITIES, *ORACLES)}
    for name in MEASURED_APART:
        values = np.unique(names(columns[name])).tolist() if name in columns else []
        if len(values) > 1:
            raise UsageError(f"scores hold {len(values)} values of {name} ({', '.join(values[:5])}); filter one")
    if "identity_id" in columns:
        refuse_doubles({name: columns[name] for name in SAMPLE if name in columns}, "scores")
        identity = names(columns["identity_id"])
    else:
        identity = np.array([f"{n:09d}" for n in range(len(number["s_12"]))], dtype=str)
    engine = names(columns["engine"]) if "engine" in columns else np.zeros(len(identity), "U1")
    margin_N2 = margins(number["s_12"][:, None], np.stack([number["s_11p"], number["s_22p"]], axis=1))
    counts = count_trials(margin_N2.reshape(-1), np.repeat(identity, 2), np.repeat(engine, 2))
    m_o, m_o_pair = oracle_statistics(
        np.stack([number["s_11p"], number["s_22p"]], axis=1),
        np.stack([number["s_12p"], number["s_21p"]], axis=1),
        np.stack([number["oracle_1"], number["oracle_2"]], axis=1),
        identity,
    )
    return {"m_o": m_o, "m_o_pair": m_o_pair, **rate_statistics(counts, share(np.isfinite(margin_N2)))}


def summarize(scores: Any, *, resamples: int = 0, seed: int = 0, confidence: float = CONFIDENCE) -> dict[str, float]:
    """MTG's measures of one scorer: m_o, m_o_pair, ssr, pa (rates as fractions) and what they rest on.

    An identity with three views gives a sample for each two of them. With columns that say so (identity_id, engine,
    view_index, other_view_index) its samples are drawn together, and its unit in SSR is the identity and engine: all
    its margins must succeed.

    Args:
        scores: a DataFrame or an Arrow table, one row a sample, with columns s_12, s_11p, s_12p, s_22p, s_21p
            (s_12p: similarity of view 1 and distractor 2'), oracle_1, oracle_2. Where columns name the sample
            (identity_id, also engine, view_index, other_view_index), none may stand twice.
        resamples: of identities (or samples, where they have no identity_id), for intervals under <name>_low and
            <name>_high; 0 = none, 1000 is usual.
        seed, confidence: of these intervals.

    Returns:
        m_o, m_o_pair, ssr, pa; num_samples; coverage: share of the margins (two a sample) that are finite;
        oracle_coverage: share of the four (similarity, oracle) pairs a sample that are finite. nan for no samples.

    Raises:
        UsageError: a column is missing, a sample stands twice, or several scorers, conditions or splits are mixed.

    >>> import pyarrow as pa
    >>> scores = pa.table({
    ...     "s_12": [0.9, 0.8, 0.7], "s_11p": [0.2, 0.5, 0.9], "s_22p": [0.1, 0.4, 0.6],
    ...     "s_12p": [0.3, 0.4, 0.5], "s_21p": [0.5, 0.5, 0.5],
    ...     "oracle_1": [0.2, 0.5, 0.9], "oracle_2": [0.1, 0.4, None],
    ... })
    >>> {name: round(value, 3) for name, value in summarize(scores).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'m_o': 0.993, 'm_o_pair': 0.999, 'ssr': 0.667, 'pa': 0.833, 'num_samples': 3, 'coverage': 1.0,
     'oracle_coverage': 0.833}
    """
    found = statistics(scores)
    made: dict[str, float] = {name: one.value() for name, one in found.items()}
    made["num_samples"] = len(scores) if not isinstance(scores, dict) else len(scores["s_12"])
    made["coverage"], made["oracle_coverage"] = found["ssr"].coverage, found["m_o"].coverage
    if resamples:
        drawn = intervals(found, resamples=resamples, seed=seed, confidence=confidence)
        for name, measured in drawn.items():
            made |= {f"{name}_low": measured.low, f"{name}_high": measured.high}
    return made
