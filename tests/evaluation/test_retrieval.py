"""Ranking measures with ties and gaps against scikit-learn, and their resamples against copied rows."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from nearid_ray.evaluation import retrieval
from nearid_ray.evaluation.bootstrap import difference, resample_weights, resampled
from nearid_ray.evaluation.retrieval import (
    average_precision,
    query_scores,
    retrieval_statistics,
    roc_auc,
    verification_statistics,
)


def pairs(seed: int, number: int = 60):
    random = np.random.default_rng(seed)
    same = random.random(number) < 0.3
    return np.round(same * 0.4 + random.normal(size=number), 1), same, random.integers(0, 9, number)


def gallery(seed: int, queries: int = 12, items: int = 25):
    random = np.random.default_rng(seed)
    identity_Q, identity_G = random.integers(0, 6, queries), random.integers(0, 6, items)
    same = identity_Q[:, None] == identity_G[None, :]
    similarity = np.round(same * 0.5 + random.normal(size=same.shape), 1)
    similarity[random.random(same.shape) < 0.05] = np.nan
    return similarity, same, identity_Q, random.random(same.shape) < 0.9


THEIRS = {"average_precision": average_precision_score, "roc_auc": roc_auc_score}


@pytest.mark.parametrize("name", THEIRS)
def test_verification_with_ties_equals_scikit_learn(name):
    similarity, same, identity = pairs(0)
    expected = THEIRS[name](same, similarity)
    assert {"average_precision": average_precision, "roc_auc": roc_auc}[name](similarity, same) == expected
    assert verification_statistics(similarity, same, identity)[name].value() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", THEIRS)
def test_resampled_verification_equals_scikit_learn_on_copied_pairs(name, monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK_NUMBERS", 30)
    similarity, same, identity = pairs(1)
    similarity[4] = np.nan
    found = verification_statistics(similarity, same, identity)[name]
    assert found.coverage == pytest.approx(59 / 60)
    slow = []
    for weights in np.concatenate(list(resample_weights(9, 25, seed=2))):
        rows = np.concatenate([np.flatnonzero(identity == i).repeat(int(w)) for i, w in enumerate(weights)])
        rows = rows[np.isfinite(similarity[rows])]
        slow.append(THEIRS[name](same[rows], similarity[rows]))
    np.testing.assert_allclose(resampled(found, resamples=25, seed=2), slow, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_query_equals_scikit_learn(seed):
    similarity, same, _, allowed = gallery(seed)
    found = query_scores(similarity, same, allowed)
    kept = allowed & np.isfinite(similarity)
    assert found.coverage == pytest.approx(kept.sum() / allowed.sum())
    for query in range(len(similarity)):
        labels, values = same[query, kept[query]], similarity[query, kept[query]]
        if not labels.any():
            assert math.isnan(found.average_precision_Q[query])
            continue
        assert found.average_precision_Q[query] == pytest.approx(average_precision_score(labels, values), abs=1e-12)
        assert found.roc_auc_Q[query] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
        assert found.ndcg_Q[query] == pytest.approx(ndcg_score([labels], [values]), abs=1e-12)


def test_means_over_queries_and_pooled_ranking():
    similarity, same, identity, allowed = gallery(2)
    found = {name: one.value() for name, one in retrieval_statistics(similarity, same, identity, allowed).items()}
    scores, kept = query_scores(similarity, same, allowed), allowed & np.isfinite(similarity)
    assert found["map"] == pytest.approx(np.nanmean(scores.average_precision_Q))
    assert found["ndcg"] == pytest.approx(np.nanmean(scores.ndcg_Q))
    assert found["pooled_ap"] == pytest.approx(average_precision_score(same[kept], similarity[kept]))
    assert found["pooled_roc_auc"] == pytest.approx(roc_auc_score(same[kept], similarity[kept]))


def test_a_query_with_nothing_to_find_and_scores_that_are_constant():
    found = query_scores([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3], [np.nan] * 3], [[1, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert np.isnan(found.average_precision_Q).tolist() == [False, True, True]
    assert found.average_precision_Q[0] == pytest.approx(1 / 3) and found.roc_auc_Q[0] == 0.5
    assert found.ndcg_Q[0] == pytest.approx(ndcg_score([[1, 0, 0]], [[0.5] * 3])) and found.coverage == 2 / 3
    alone = query_scores([[0.5]], [[1]])
    assert alone.average_precision_Q[0] == alone.ndcg_Q[0] == 1.0 and math.isnan(alone.roc_auc_Q[0])


def test_empty_input_gives_nan_and_shapes_that_differ_are_refused():
    for statistics in (verification_statistics([], []), retrieval_statistics(np.empty((0, 3)), np.empty((0, 3)))):
        assert all(math.isnan(one.value()) and math.isnan(one.coverage) for one in statistics.values())
    only = verification_statistics([0.1, 0.2], [False, False])
    assert all(math.isnan(one.value()) for one in only.values())
    with pytest.raises(ValueError, match=r"\(1, 2\), \(2, 1\)"):
        query_scores([[1, 2]], [[1], [0]])
    with pytest.raises(ValueError, match="2 similarities of 1 labels"):
        roc_auc([1, 2], [True])


def test_a_perfect_scorer_is_above_another_in_every_resample():
    similarity, same, identity = pairs(3)
    worse, better = (verification_statistics(s, same, identity) for s in (similarity, same.astype(float)))
    for name in worse:
        assert difference(worse[name], better[name], resamples=50).share_above_zero == 1.0
