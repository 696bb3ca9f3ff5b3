"""The artefact control's rate against explicit loops, and that controls stay out of groups of distractors."""

import math

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.evaluation.control import ControlRate, control_counts, control_rate, control_rates
from nearid_ray.evaluation.summary import engine_groups


def test_the_rate_counts_pairs_in_which_the_control_is_more_alike():
    random = np.random.default_rng(0)
    control, distractor = random.normal(0.5, 1, 200).round(1), random.normal(0, 1, 200).round(1)
    control[::17], distractor[::13] = np.nan, np.nan
    won = pairs = 0
    for mine, other in zip(control, distractor, strict=True):
        if not (math.isnan(mine) or math.isnan(other)):
            pairs += 1
            won += mine > other
    found = control_rate(control, distractor)
    assert (found.pairs, found.rate) == (pairs, pytest.approx(won / pairs))
    assert any(a == b for a, b in zip(control, distractor, strict=True)), "no tie was tried"


def test_rates_pair_each_control_with_its_engines_distractor_of_the_same_view():
    rows = [
        # identity, view, engine, similarity
        ("i", 0, "sdxl", 0.5), ("i", 0, "sdxl-control", 0.9), ("i", 0, "flux", 0.95),
        ("i", 1, "sdxl", 0.5), ("i", 1, "sdxl-control", 0.4),
        ("j", 0, "sdxl-control", 0.9),  # its distractor is missing
        ("j", 1, "sdxl", 0.1), ("j", 1, "sdxl-control", None),
    ]  # fmt: skip
    table = pa.table(
        {
            "kind": ["distractor"] * len(rows) + ["positive"],
            "scorer": ["frozen"] * (len(rows) + 1),
            "condition": ["full"] * (len(rows) + 1),
            "identity_id": [row[0] for row in rows] + ["i"],
            "other_view_index": [row[1] for row in rows] + [1],
            "engine": [row[2] for row in rows] + [""],
            "similarity": [row[3] for row in rows] + [1.0],
        }
    )
    assert control_rates(table) == {("frozen", "full", "sdxl"): ControlRate(rate=0.5, pairs=2)}
    counts = control_counts(table)["frozen", "full", "sdxl"]
    assert (counts.pa(), counts.trial_count(), counts.identity_count()) == (0.5, 2, 1)


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        control_rate([0.1, 0.2], [0.3])


def test_no_group_of_distractors_holds_controls():
    pairs = pa.table({
        "kind": ["distractor"] * 3,
        "engine": ["sdxl-512", "sdxl-512-control", "flux-fill-512"],
        "oracle": pa.array([None] * 3, pa.float64()),
    })  # fmt: skip
    groups = engine_groups(pairs, ["flux-fill-512"])
    assert groups["headline"] == ["flux-fill-512", "sdxl-512"]
    assert not any("sdxl-512-control" in members for members in groups.values())
