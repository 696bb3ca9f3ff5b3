"""Margins and success rates against explicit loops over identities, pairs and engines."""

import math

import numpy as np
import pytest

from nearid_ray.evaluation.margins import (
    count_matrix,
    count_trials,
    directed_pairs,
    margins,
    ordering_rate,
    pairwise_accuracy,
    sample_success_rate,
    tuple_margins,
)


def random_similarities(seed: int, identities: int = 40, engines: int = 3, views: int = 3):
    """Similarities on a coarse grid (so that ties happen) with gaps: missing views, missing distractors, infinities."""
    random = np.random.default_rng(seed)
    view_IVV = random.integers(0, 8, (identities, views, views)) / 8.0
    distractor_IEV = random.integers(0, 8, (identities, engines, views)) / 8.0
    two_views = random.random(identities) < 0.4
    view_IVV[two_views, :, 2] = np.nan
    view_IVV[two_views, 2, :] = np.nan
    distractor_IEV[two_views, :, 2] = np.nan
    distractor_IEV[random.random(distractor_IEV.shape) < 0.2] = np.nan
    distractor_IEV[0, 0, 0] = np.inf
    distractor_IEV[1] = np.nan
    return view_IVV, distractor_IEV


def looped_trials(view_IVV, distractor_IEV):
    """(identity, engine, margin) of every valid trial, by the definition, one at a time."""
    trials = []
    for identity in range(view_IVV.shape[0]):
        for engine in range(distractor_IEV.shape[1]):
            for i in range(view_IVV.shape[1]):
                for j in range(i + 1, view_IVV.shape[1]):
                    for anchor in (i, j):
                        pair, distractor = view_IVV[identity, i, j], distractor_IEV[identity, engine, anchor]
                        if math.isfinite(pair) and math.isfinite(distractor):
                            trials.append((identity, engine, pair - distractor))
    return trials


def looped_ssr_and_pa(trials):
    """Per-engine rates by loops, then their mean weighted by the number of identities each engine could measure."""
    ssr, pa, support = [], [], []
    for engine in sorted({engine for _, engine, _ in trials}):
        mine = [(identity, margin) for identity, trial_engine, margin in trials if trial_engine == engine]
        identities = {identity for identity, _ in mine}
        solved = [identity for identity in identities if all(m > 0 for other, m in mine if other == identity)]
        ssr.append(len(solved) / len(identities))
        pa.append(sum(m > 0 for _, m in mine) / len(mine))
        support.append(len(identities))
    total = sum(support)
    return (
        sum(rate * weight for rate, weight in zip(ssr, support, strict=True)) / total,
        sum(rate * weight for rate, weight in zip(pa, support, strict=True)) / total,
    )


@pytest.mark.parametrize("seed", range(5))
def test_rates_equal_explicit_loops_with_ties_and_gaps(seed):
    view_IVV, distractor_IEV = random_similarities(seed)
    margin_IEM = tuple_margins(view_IVV, distractor_IEV)
    trials = looped_trials(view_IVV, distractor_IEV)
    assert np.isfinite(margin_IEM).sum() == len(trials)
    for m, (anchor, other) in enumerate(directed_pairs(3)):
        pair_I1 = view_IVV[:, min(anchor, other), max(anchor, other)][:, None]
        np.testing.assert_array_equal(margin_IEM[:, :, m], margins(pair_I1, distractor_IEV[:, :, anchor]))

    counts = count_matrix(margin_IEM, [str(i) for i in range(40)], ["a", "b", "c"])
    ssr, pa = looped_ssr_and_pa(trials)
    assert counts.ssr() == pytest.approx(ssr, abs=1e-12)
    assert counts.pa() == pytest.approx(pa, abs=1e-12)

    flat = count_trials([m for *_, m in trials], [str(i) for i, *_ in trials], ["abc"[e] for _, e, _ in trials])
    assert (flat.ssr(), flat.pa()) == (counts.ssr(), counts.pa())
    one = count_matrix(margin_IEM[:, :1], [str(i) for i in range(40)], ["a"])
    assert one.ssr() == pytest.approx(looped_ssr_and_pa([t for t in trials if t[1] == 0])[0], abs=1e-12)
    assert counts.of_engines(["a"]).ssr() == one.ssr()


def test_two_views_give_two_trials_and_three_views_six():
    assert len(directed_pairs(2)) == 2
    assert len(directed_pairs(3)) == 6
    assert tuple_margins(np.zeros((4, 3, 3)), np.zeros((4, 2, 3))).shape == (4, 2, 6)
    assert tuple_margins(np.zeros((4, 1, 1)), np.zeros((4, 2, 1))).shape == (4, 2, 0)


def test_a_tie_fails_and_an_infinite_part_is_not_a_trial():
    assert pairwise_accuracy(margins([0.5, 0.5, np.inf, 0.5], [0.5, 0.25, 0.0, -np.inf])) == 0.5


def test_an_identity_without_a_valid_trial_changes_nothing():
    margin, identity = [0.1, -0.2, 0.3], ["a", "a", "b"]
    assert sample_success_rate([*margin, np.nan], [*identity, "c"]) == sample_success_rate(margin, identity) == 0.5


def test_empty_input_gives_nan_everywhere():
    empty = count_trials([], [])
    assert math.isnan(empty.ssr()) and math.isnan(empty.pa())
    assert math.isnan(pairwise_accuracy([np.nan]))
    assert math.isnan(ordering_rate([], []))
    assert empty.support() == empty.trial_count() == 0


def test_pooled_rates_weigh_engines_by_the_identities_they_measured():
    counts = count_trials([1.0, 1.0, 1.0, -1.0], ["a", "b", "c", "a"], ["x", "x", "x", "y"])
    assert counts.ssr() == counts.pa() == 0.75
    assert counts.support() == 4 and counts.identity_count() == 3


def test_ordering_compares_within_one_anchor():
    assert ordering_rate([[0.5], [0.1]], [[0.4, 0.6], [0.0, 0.05]]) == 0.75


def test_shapes_that_do_not_belong_together_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(4, 2, 2\).*4 identities and 3 views"):
        tuple_margins(np.zeros((4, 3, 3)), np.zeros((4, 2, 2)))
    with pytest.raises(ValueError, match="1 margins, 2 identities"):
        count_trials([1.0], ["a", "b"])
    with pytest.raises(ValueError, match="unknown engines"):
        count_trials([1.0], ["a"], ["x"]).of_engines(["z"])
