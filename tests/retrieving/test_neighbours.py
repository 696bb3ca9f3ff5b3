"""Nearest neighbours against a sort of all similarities and against faiss; ties, gaps, and what must not be found."""

import builtins

import numpy as np
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.retrieving import neighbours
from nearid_ray.retrieving.index import nearest_by_index
from nearid_ray.retrieving.neighbours import NOBODY, ArrayGallery, nearest


def unit(seed: int, rows: int, width: int = 24) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def sorted_out(queries, gallery, top, left_out=None):
    """Every query against every item, one at a time, in float64."""
    items, similarities = [], []
    for q, query in enumerate(queries):
        every = [
            (-sum(float(a) * float(b) for a, b in zip(query, item, strict=True)), number)
            for number, item in enumerate(gallery)
            if np.isfinite(item).all() and number not in (left_out[q] if left_out else ())
        ]
        best = sorted(every)[:top]
        items.append([number for _, number in best])
        similarities.append([-similarity for similarity, _ in best])
    return items, similarities


@pytest.mark.parametrize("block", [7, 64, 10_000])
def test_what_is_found_is_what_a_sort_of_all_similarities_finds(block):
    queries, gallery = unit(0, 20), unit(1, 400)
    items, similarities = sorted_out(queries, gallery, 12)
    found = nearest(queries, ArrayGallery(gallery, block), 12)
    assert found.item_QK.tolist() == items
    assert found.similarity_QK == pytest.approx(np.array(similarities), abs=1e-12)


def test_blocks_of_any_size_give_the_same_digits(monkeypatch):
    queries, gallery = unit(2, 30), unit(3, 300)
    found = [nearest(queries, ArrayGallery(gallery, block), 5) for block in (1, 13, 300)]
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 4)
    found.append(nearest(queries, ArrayGallery(gallery, 50), 5))
    for other in found[1:]:
        assert np.array_equal(found[0].item_QK, other.item_QK)
        assert np.array_equal(found[0].similarity_QK, other.similarity_QK)


def test_equal_pictures_stand_in_the_gallerys_order_wherever_they_lie():
    gallery = unit(4, 500)
    copies = [3, 77, 140, 141, 299, 498]
    gallery[copies] = gallery[3]
    found = nearest(gallery[3:4], ArrayGallery(gallery, 70), 6)
    assert found.item_QK.tolist() == [copies]
    assert len(set(found.similarity_QK[0].tolist())) == 1
    everything = np.repeat(unit(5, 1), 200, axis=0)
    assert nearest(everything[:1], ArrayGallery(everything, 9), 4).item_QK.tolist() == [[0, 1, 2, 3]]


def test_differences_that_float32_products_hide_are_told_apart():
    """Similarities 1e-8 apart, the best last."""
    query = np.zeros((1, 512), np.float32)
    query[0, :] = np.float32(1 / np.sqrt(512))
    gallery = np.repeat(query, 50, axis=0)
    for number in range(50):
        gallery[number, number] = np.nextafter(gallery[number, number], np.float32(1), dtype=np.float32)
    gallery[41, :20] = np.nextafter(gallery[41, :20], np.float32(1), dtype=np.float32)
    items, similarities = sorted_out(query, gallery, 3)
    assert items[0][0] == 41 and similarities[0][0] - similarities[0][1] < 1e-7
    assert nearest(query, ArrayGallery(gallery, 10), 3).item_QK.tolist() == items


def test_gaps_and_own_pictures_are_not_found_and_a_short_gallery_leaves_empty_places():
    queries, gallery = unit(6, 3), unit(7, 5)
    gallery[2] = np.nan
    queries[2] = np.nan
    left_out = [[0], [], []]
    found = nearest(queries, ArrayGallery(gallery, 2), 5, left_out=left_out)
    items, _ = sorted_out(queries[:2], gallery, 5, left_out)
    assert found.item_QK[0].tolist() == [*items[0], NOBODY, NOBODY]
    assert found.item_QK[1].tolist() == [*items[1], NOBODY]
    assert found.item_QK[2].tolist() == [NOBODY] * 5
    assert np.isnan(found.similarity_QK[found.item_QK == NOBODY]).all()
    assert nearest(queries, ArrayGallery(gallery[:0]), 2).item_QK.tolist() == [[NOBODY] * 2] * 3
    assert nearest(queries[:0], ArrayGallery(gallery), 2).item_QK.shape == (0, 2)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="24 dimensions, the gallery 8"):
        nearest(unit(0, 1), ArrayGallery(unit(0, 3, 8)), 1)
    with pytest.raises(ValueError, match="top is 0"):
        nearest(unit(0, 1), ArrayGallery(unit(0, 3)), 0)
    with pytest.raises(ValueError, match="1 lists of items"):
        nearest(unit(0, 2), ArrayGallery(unit(0, 3)), 1, left_out=[[1]])


def test_the_exact_search_of_faiss_finds_the_same():
    pytest.importorskip("faiss")
    queries, gallery = unit(8, 40), unit(9, 2000)
    gallery[[5, 1200]] = gallery[5]
    gallery[7] = np.nan
    left_out = [[int(number)] for number in np.argmax(queries @ np.nan_to_num(gallery).T, axis=1)]
    exact = nearest(queries, ArrayGallery(gallery, 300), 10, left_out=left_out)
    found = nearest_by_index(queries, ArrayGallery(gallery, 300), 10, kind="faiss", left_out=left_out)
    assert np.array_equal(exact.item_QK, found.item_QK)
    assert np.array_equal(exact.similarity_QK, found.similarity_QK)


@pytest.mark.parametrize("kind", ["faiss-ivf", "faiss-hnsw"])
def test_approximate_searches_find_most_and_give_true_similarities(kind):
    pytest.importorskip("faiss")
    queries, gallery = unit(10, 30), unit(11, 3000)
    exact = nearest(queries, ArrayGallery(gallery), 10)
    found = nearest_by_index(queries, ArrayGallery(gallery, 1000), 10, kind=kind)
    shared = [len(set(a) & set(b)) for a, b in zip(exact.item_QK.tolist(), found.item_QK.tolist(), strict=True)]
    assert np.mean(shared) > 6
    for query, items, similarities in zip(queries, found.item_QK, found.similarity_QK, strict=True):
        there = items >= 0
        expected = gallery[items[there]].astype(np.float64) @ query.astype(np.float64)
        assert similarities[there] == pytest.approx(expected, abs=1e-12)


def test_without_faiss_the_way_to_get_it_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'nearid-ray\[faiss\]'"):
        nearest_by_index(unit(0, 1), ArrayGallery(unit(0, 3)), 1, kind="faiss")
