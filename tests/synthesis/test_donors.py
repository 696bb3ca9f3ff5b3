"""Who lends an object to whom."""

import itertools

import numpy as np

from nearid_ray.synthesis.donors import choose_donor

IDS = ["photos:a", "photos:b", "photos:c", "photos:d"]


def test_without_embeddings_every_identity_lends_exactly_once_and_never_to_itself():
    donors = {i: choose_donor(i, "mug", IDS) for i in IDS}
    assert sorted(donors.values()) == IDS
    assert all(donor != i for i, donor in donors.items())
    assert donors["photos:d"] == "photos:a"


def test_the_order_of_candidates_does_not_matter():
    random = np.random.default_rng(0)
    embeddings = {i: random.normal(size=5) for i in IDS}
    for order in itertools.permutations(IDS):
        assert choose_donor("photos:b", "mug", order) == "photos:c"
        assert choose_donor("photos:b", "mug", order, embeddings) == choose_donor("photos:b", "mug", IDS, embeddings)


def test_with_embeddings_the_nearest_by_cosine_lends():
    random = np.random.default_rng(1)
    for _ in range(20):
        embeddings = {i: random.normal(size=4) * random.uniform(0.1, 9) for i in IDS}
        own = embeddings["photos:a"]
        cosines = {i: sum(own * embeddings[i]) / (sum(own**2) ** 0.5 * sum(embeddings[i] ** 2) ** 0.5) for i in IDS[1:]}
        assert choose_donor("photos:a", "mug", IDS, embeddings) == max(cosines, key=cosines.get)


def test_equal_cosines_are_settled_by_the_smaller_id():
    embeddings = {i: np.array([1.0, 0.0]) for i in IDS}
    assert choose_donor("photos:b", "mug", IDS, embeddings) == "photos:a"


def test_missing_and_broken_embeddings_are_passed_over():
    embeddings = {"photos:a": np.array([1.0, 0.0]), "photos:c": np.array([-1.0, 0.1]), "photos:d": np.zeros(2)}
    assert choose_donor("photos:a", "mug", IDS, embeddings) == "photos:c"
    assert choose_donor("photos:b", "mug", IDS, embeddings) == "photos:c"  # has none itself: the next by id
    embeddings["photos:c"] = np.array([np.nan, 1.0])
    assert choose_donor("photos:a", "mug", IDS, embeddings) == "photos:b"  # nobody else has one: the next by id


def test_nobody_lends_where_there_is_no_category_or_nobody_else():
    assert choose_donor("photos:a", "", IDS) is None
    assert choose_donor("photos:a", "mug", ["photos:a"]) is None
    assert choose_donor("photos:a", "mug", []) is None
    assert choose_donor("photos:a", "mug", ["photos:b"]) == "photos:b"  # also where the list leaves it out
