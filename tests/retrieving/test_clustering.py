"""Clusters against scikit-learn's own cuts, and their scores against loops over all pairs."""

import math

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from nearid_ray.errors import UsageError
from nearid_ray.retrieving import clustering
from nearid_ray.retrieving.clustering import (
    alone_each,
    best_distance,
    check_memory,
    cluster_scores,
    distance_bytes,
    hdbscan,
    linkage,
    ordered_labels,
)


def pictures(seed: int = 0, identities: int = 12, views: int = 3, noise: float = 0.35) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(identities, 16))
    vectors = np.repeat(centres, views, axis=0) + noise * random.normal(size=(identities * views, 16))
    names = [f"i{n // views}" for n in range(identities * views)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), names


def same_groups(one, two) -> bool:
    return np.array_equal(ordered_labels(np.asarray(one)), ordered_labels(np.asarray(two)))


@pytest.mark.parametrize("distance", [0.05, 0.2, 0.6, 1.5])
def test_a_cut_at_a_distance_is_scikit_learns(distance):
    vectors, _ = pictures(noise=0.8)
    made = AgglomerativeClustering(n_clusters=None, distance_threshold=distance, metric="cosine", linkage="average")
    assert same_groups(linkage(vectors).cut(distance=distance), made.fit_predict(vectors))


@pytest.mark.parametrize("count", [1, 5, 12, 36])
def test_a_cut_into_so_many_clusters_is_scikit_learns(count):
    vectors, _ = pictures(noise=0.8)
    made = AgglomerativeClustering(n_clusters=count, metric="cosine", linkage="average")
    labels = linkage(vectors).cut(clusters=count)
    assert same_groups(labels, made.fit_predict(vectors)) and labels.max() + 1 == count


def test_scores_count_all_pairs():
    random = np.random.default_rng(3)
    labels = random.integers(0, 6, 40)
    names = [None if n % 7 == 0 else f"i{random.integers(5)}" for n in range(40)]
    together = same = both = 0
    for i in range(40):
        for j in range(i):
            if names[i] is None or names[j] is None:
                continue
            together += labels[i] == labels[j]
            same += names[i] == names[j]
            both += labels[i] == labels[j] and names[i] == names[j]
    found = cluster_scores(labels, names)
    assert (found.pair_precision, found.pair_recall) == pytest.approx((both / together, both / same))
    assert found.pictures == sum(name is not None for name in names)
    perfect = cluster_scores([0, 0, 1], ["a", "a", "b"])
    assert (perfect.adjusted_rand, perfect.v_measure, perfect.pair_precision, perfect.pair_recall) == (1, 1, 1, 1)


def test_what_cannot_be_scored_is_nan():
    nobody = cluster_scores([0, 1], [None, None])
    assert nobody.pictures == 0 and math.isnan(nobody.adjusted_rand) and math.isnan(nobody.v_measure)
    assert math.isnan(cluster_scores([0, 1], ["a", "a"]).pair_precision)
    assert math.isnan(cluster_scores([0, 0], ["a", "b"]).pair_recall)


def test_the_threshold_chosen_on_known_identities_finds_them_again():
    vectors, names = pictures(1)
    tree = linkage(vectors)
    distance, rand = best_distance(tree, names)
    assert rand == cluster_scores(tree.cut(distance=distance), names).adjusted_rand > 0.95
    other, other_names = pictures(2)
    assert cluster_scores(linkage(other).cut(distance=distance), other_names).adjusted_rand > 0.9
    with pytest.raises(UsageError, match="a threshold cannot be chosen"):
        best_distance(tree, [f"i{n}" for n in range(len(vectors))])


def test_dense_places_are_clusters_and_the_rest_stands_alone():
    vectors, names = pictures(4, identities=5, views=6, noise=0.1)
    lonely = -vectors[:1]
    labels, noise = alone_each(hdbscan(np.concatenate([vectors, lonely]), smallest=3))
    assert same_groups(labels[:30], np.repeat(np.arange(5), 6)) and noise.tolist() == [False] * 30 + [True]
    assert labels[30] == 5 and len(names) == 30


def test_equal_pictures_are_grouped_and_numbers_follow_size():
    vectors, _ = pictures(5, identities=3, views=2, noise=0)
    labels = linkage(np.concatenate([vectors, vectors[4:]])).cut(distance=1e-6)
    assert labels.tolist() == [1, 1, 2, 2, 0, 0, 0, 0]


def test_what_does_not_fit_memory_is_refused_with_the_arithmetic(monkeypatch):
    assert distance_bytes(1000) == 2 * 8 * 1000 * 999 // 2
    check_memory(1000, memory_gib=0.01)
    with pytest.raises(UsageError, match=r"100,000 pictures have 4,999,950,000 distances.* 74\.5 GiB.*11,585 pictures"):
        check_memory(100_000, memory_gib=1.0)
    monkeypatch.setattr(clustering, "available_bytes", lambda: 10**6)
    with pytest.raises(UsageError, match="enough for 316 pictures"):
        check_memory(400)
    check_memory(316)
    with pytest.raises(ValueError, match="1 vectors"):
        linkage(np.ones((1, 3)))
