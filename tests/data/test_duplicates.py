"""Near-duplicates: the same pairs as a slow loop finds, and none left after dropping."""

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.data import duplicates
from nearid_ray.data.duplicates import PAIRS, HashedViews, find_duplicates, near_pairs, to_drop


def slow_pairs(hashes: list[int], groups: list[int], radius: int) -> set[tuple[int, int, int]]:
    """(first, second, differing bits), counted digit by digit."""
    found = set()
    for i in range(len(hashes)):
        for j in range(i + 1, len(hashes)):
            bits = bin(hashes[i] ^ hashes[j]).count("1")
            if bits <= radius and groups[i] != groups[j]:
                found.add((i, j, bits))
    return found


def planted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes, a third of them copies of others with a few bits turned; groups of two or three."""
    rng = np.random.default_rng(seed)
    hash_N = rng.integers(0, 2**64, count, dtype=np.uint64)
    for place in rng.choice(count, count // 3, replace=False):
        bits = rng.choice(64, rng.integers(0, 12), replace=False)
        turned = int(hash_N[rng.integers(count)])
        for bit in bits:
            turned ^= 1 << int(bit)
        hash_N[place] = turned
    return hash_N, rng.integers(0, count // 2, count)


@pytest.mark.parametrize("radius", [0, 1, 6, 20, 63])
@pytest.mark.parametrize("cells", [1, 100, 1 << 22])
def test_pairs_are_those_of_brute_force_however_they_are_cut(monkeypatch, radius, cells):
    monkeypatch.setattr(duplicates, "_CELLS", cells)
    hash_N, group_N = planted(150, radius)
    pairs = near_pairs(hash_N, group_N, radius)
    found = list(zip(pairs.first_M.tolist(), pairs.second_M.tolist(), pairs.distance_M.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == slow_pairs(hash_N.tolist(), group_N.tolist(), radius)
    assert pairs.complete


def test_equal_hashes_without_end_stop_the_search():
    pairs = near_pairs(np.zeros(3000, np.uint64), np.arange(3000), 0, most=1000)
    assert (len(pairs.first_M), pairs.complete) == (1000, False)


def test_no_views_give_no_pairs_and_a_wrong_radius_is_refused():
    none, complete = find_duplicates(HashedViews.of([("", "a", 0, "train")]), 6)
    assert (none.num_rows, complete, none.schema) == (0, True, PAIRS)
    with pytest.raises(ValueError, match="radius is 64"):
        near_pairs(np.zeros(1, np.uint64), np.zeros(1, np.int64), 64)


def test_the_report_names_views_and_splits_closest_first_in_any_order_of_input():
    views = [
        ("00000000000000ff", "s:b", 1, "test"),
        ("00000000000000fe", "s:a", 0, "train"),
        ("00000000000000ff", "s:a", 1, "train"),
        ("ffffffffffffffff", "s:c", 0, "train"),
        ("", "s:c", 1, "train"),
    ]
    table, complete = find_duplicates(HashedViews.of(views), 6)
    assert complete
    assert table.equals(find_duplicates(HashedViews.of(views[::-1]), 6)[0])
    assert [
        (r["first_identity_id"], r["first_view_index"], r["second_identity_id"], r["distance"], r["across_splits"])
        for r in table.to_pylist()
    ] == [("s:a", 1, "s:b", 0, True), ("s:a", 0, "s:b", 1, True)]


def pairs_of(*names: str) -> pa.Table:
    row = {"first_view_index": 0, "second_view_index": 0, "first_split": "", "second_split": "", "distance": 1}
    rows = [row | {"first_identity_id": n[0], "second_identity_id": n[1], "across_splits": False} for n in names]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def test_of_a_chain_the_first_and_last_stay_and_the_order_decides():
    chain = pairs_of("ab", "bc")
    assert to_drop(chain, "abc") == {"b": "a"}
    assert to_drop(chain, "bac") == {"a": "b", "c": "b"}
    assert to_drop(chain, "cba") == {"b": "c"}


def test_after_dropping_no_pair_is_left():
    hash_N, group_N = planted(200, 7)
    views = HashedViews.of(
        [(f"{h:016x}", f"{g:03}", i, "x") for i, (h, g) in enumerate(zip(hash_N, group_N, strict=True))]
    )
    table, _ = find_duplicates(views, 12)
    order = sorted(set(views.identity_ids))
    dropped = to_drop(table, order)
    assert dropped
    for row in table.to_pylist():
        assert {row["first_identity_id"], row["second_identity_id"]} & dropped.keys()
    for name, kept in dropped.items():
        assert kept not in dropped
        assert order.index(kept) < order.index(name)
