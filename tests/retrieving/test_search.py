"""Rankings against explicit loops and scikit-learn; what counts as the same identity; galleries in parts."""

import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.retrieving.neighbours import ArrayGallery, nearest
from nearid_ray.retrieving.search import (
    found_at,
    neighbour_records,
    own_pictures,
    retrieval_measures,
    retrieval_scores,
)
from nearid_ray.retrieving.vectors import Selection, choose_scorer, matrix_of, read_embedded, shown_identity
from schemas import EMBEDDINGS, validate


def unit(seed: int, rows: int, width: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embeddings(folder, vectors: np.ndarray, rows: list[dict], shards: int = 3) -> Dataset:
    """A dataset of embeddings in several shards."""
    dataset = Dataset(folder)
    common = {"view_index": 0, "engine": "", "category": "", "split": "test", "oracle": None, "scorer": "s",
              "condition": "full", "error": "", "role": "view"}  # fmt: skip
    filled = [common | {"image_id": f"p{n}", "identity_id": f"i{n}", "embedding": v} | row
              for n, (v, row) in enumerate(zip(vectors, rows, strict=True))]  # fmt: skip
    for number in range(shards):
        part = filled[number * len(rows) // shards : (number + 1) * len(rows) // shards]
        table = pa.Table.from_pylist(part, schema=EMBEDDINGS.schema)
        dataset.shard(f"000-{number:06d}").write_bytes(parquet_bytes(table))
    store_settings(dataset, EMBEDDINGS.name, {})
    return dataset


def test_scores_of_rankings_are_scikit_learns():
    queries, gallery = unit(0, 12), unit(1, 60)
    query_shown = [f"i{n % 5}" for n in range(11)] + [None]
    gallery_shown = [None if n % 11 == 0 else f"i{n % 7}" for n in range(60)]
    left_out = [[n] for n in range(12)]
    found = retrieval_scores(queries, ArrayGallery(gallery, 25), query_shown, gallery_shown, left_out)
    for q in range(11):
        items = [n for n in range(60) if gallery_shown[n] is not None and n != q]
        same = [gallery_shown[n] == query_shown[q] for n in items]
        scores = (queries[q] @ gallery[items].T).tolist()
        assert found["map"][q] == pytest.approx(average_precision_score(same, scores))
        assert found["roc_auc"][q] == pytest.approx(roc_auc_score(same, scores))
        ranked = [s for _, s in sorted(zip(scores, same, strict=True), reverse=True)]
        gain = sum(s / math.log2(rank + 2) for rank, s in enumerate(ranked))
        assert found["ndcg"][q] == pytest.approx(gain / sum(1 / math.log2(r + 2) for r in range(sum(same))))
    assert math.isnan(found["map"][11])


def test_recall_and_hits_count_what_there_is_to_find():
    queries, gallery = unit(2, 6), unit(3, 40)
    query_shown = ["i0", "i1", "i2", "i3", "nobody", None]
    gallery_shown = [f"i{n % 4}" for n in range(40)]
    left_out = [[0, 4], [], [], [3], [], []]
    found = nearest(queries, ArrayGallery(gallery), 10, left_out=left_out)
    scores = found_at(found, query_shown, gallery_shown, left_out)
    assert set(scores) == {f"{kind}@{k}" for kind in ("recall", "hit") for k in (1, 5, 10)}
    for q in range(4):
        wanted = {n for n in range(40) if gallery_shown[n] == query_shown[q] and n not in left_out[q]}
        for k in (1, 5, 10):
            hits = len(wanted & set(found.item_QK[q, :k].tolist()))
            assert scores[f"recall@{k}"][q] == hits / len(wanted)
            assert scores[f"hit@{k}"][q] == float(hits > 0)
    assert np.isnan(scores["recall@1"][4:]).all()


def test_measures_are_means_with_intervals_over_identities_and_by_category():
    scores = {"map": np.array([0.0, 1.0, 1.0, 0.5, np.nan])}
    shown, categories = ["a", "a", "b", "c", None], ["mug", "mug", "hat", "hat", ""]
    draws = {"resamples": 200, "seed": 0}
    found = retrieval_measures(scores, shown, categories, scorer="s", condition="full", draws=draws)
    by_name = {m.name: m for m in found}
    assert set(by_name) == {"all", "category:mug", "category:hat"}
    assert by_name["all"].value == 0.625 and by_name["all"].support == 4
    assert by_name["category:hat"].value == 0.75
    assert by_name["all"].low < 0.625 < by_name["all"].high


def test_records_say_rank_and_whether_the_identity_is_the_same(tmp_path):
    rows = [{"identity_id": "i0"}, {"identity_id": "i0", "role": "distractor", "engine": "sdxl"},
            {"identity_id": "i1"}, {"identity_id": "i0", "role": "generated", "engine": "emu"}]  # fmt: skip
    dataset = embeddings(tmp_path / "e", unit(4, 4), rows, shards=1)
    gallery = read_embedded(dataset, Selection(scorer="s"))
    queries = [{"name": "q", "image_id": "x", "shown": "i0"}, {"name": "r", "image_id": "y", "shown": None}]
    found = nearest(unit(5, 2), gallery.gallery, 5)
    records = neighbour_records(found, queries, gallery.images, gallery.shown(), scorer="s", condition="full")
    assert validate(records) == []
    known = {"p0": True, "p1": False, "p2": False, "p3": None}
    for query, expected in (("q", known), ("r", dict.fromkeys(known))):
        mine = [row for row in records.to_pylist() if row["query"] == query]
        assert [row["rank"] for row in mine] == [1, 2, 3, 4]
        assert {row["image_id"]: row["same"] for row in mine} == expected
        assert [row["similarity"] for row in mine] == sorted((row["similarity"] for row in mine), reverse=True)


def test_a_distractor_shows_another_object_and_a_control_the_same():
    assert shown_identity("view", "i", "", "p") == "i"
    assert shown_identity("distractor", "i", "sdxl-512", "p") == "p"
    assert shown_identity("distractor", "i", "sdxl-512-control", "p") == "i"
    assert shown_identity("generated", "i", "emu2", "p") is None
    assert own_pictures(["p1", "p9"], ["p0", "p1"]) == [[1], []]


def test_a_gallery_read_in_parts_gives_the_same_neighbours(tmp_path):
    vectors = unit(6, 90)
    rows = [{"error": "broken", "embedding": None} if n in (0, 50) else {} for n in range(90)]
    dataset = embeddings(tmp_path / "e", vectors, rows)
    whole = read_embedded(dataset, Selection(scorer="s"))
    parts = read_embedded(dataset, Selection(scorer="s"), memory_gib=1e-9)
    assert isinstance(whole.gallery, ArrayGallery) and not isinstance(parts.gallery, ArrayGallery)
    assert np.array_equal(matrix_of(whole), matrix_of(parts), equal_nan=True)
    first, second = (nearest(unit(7, 5), one.gallery, 8) for one in (whole, parts))
    assert np.array_equal(first.item_QK, second.item_QK)
    assert np.array_equal(first.similarity_QK, second.similarity_QK)
    assert not {0, 50} & set(first.item_QK.reshape(-1).tolist())


def test_what_is_not_there_is_named(tmp_path):
    dataset = embeddings(tmp_path / "e", unit(8, 4), [{"scorer": "a"}, {"scorer": "b"}, {"scorer": "b"}, {}])
    with pytest.raises(UsageError, match="3 scorers: a, b, s; choose one with --scorer"):
        choose_scorer(dataset, "")
    with pytest.raises(UsageError, match="no scorer 'c'; it has a, b, s"):
        choose_scorer(dataset, "c")
    assert choose_scorer(dataset, "b") == "b"
    with pytest.raises(UsageError, match="no embeddings of scorer a, condition full, split val; it has scorers"):
        read_embedded(dataset, Selection(scorer="a", splits=("val",)))
    with pytest.raises(ValueError, match="roles has glitch; expected some of view"):
        Selection(scorer="a", roles=("glitch",))
    broken = embeddings(tmp_path / "b", unit(9, 1), [{"error": "broken", "embedding": None}], shards=1)
    with pytest.raises(UsageError, match="every one of these pictures has an error"):
        read_embedded(broken, Selection(scorer="s"))
    double = embeddings(tmp_path / "d", unit(9, 2), [{"image_id": "x", "identity_id": "i"}] * 2, shards=1)
    with pytest.raises(UsageError, match="1 pictures stand twice"):
        read_embedded(double, Selection(scorer="s"))
