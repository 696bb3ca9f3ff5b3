"""The artefact control's rate against explicit loops, and that controls stay out of groups of distractors."""

import math

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.evaluation.control import control_rate
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
    assert groups["object-level"] == ["flux-fill-512", "sdxl-512"]
    assert not any("sdxl-512-control" in members for members in groups.values())
