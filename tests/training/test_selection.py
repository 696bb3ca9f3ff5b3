"""What a step reads follows from names alone, fills every slot that can be filled, and mixes nothing up."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.training.items import item_table
from nearid_ray.training.pool import Workers
from nearid_ray.training.selection import Samples, Selection, SelectionSettings

MakeIndex = Callable[..., pa.Table]


def everyone(selection: Selection) -> Samples:
    count = len(selection.items.identities)
    return Samples(identity_B=np.arange(count), repeat_B=np.zeros(count, np.int64))


def many(count: int, views: int = 3) -> dict[str, int]:
    return {f"s:{i:03}": views for i in range(count)}


def make_selection(index: pa.Table, **settings: object) -> Selection:
    return Selection(item_table(index, split="train"), SelectionSettings(**settings))


def test_every_slot_holds_a_picture_of_its_role_and_identity(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 3, "s:b": 2, "s:c": 5})
    selection = make_selection(index)
    rows = index.to_pylist()
    for epoch in range(30):
        chosen = selection.choose(everyone(selection), epoch)
        for i, identity in enumerate(selection.items.identities):
            anchor = rows[chosen.anchor_B[i]]
            positives = [rows[row] for row in chosen.positive_BP[i] if row >= 0]
            distractors = [rows[row] for row in chosen.distractor_BK[i] if row >= 0]
            assert {row["identity_id"] for row in [anchor, *positives, *distractors]} == {identity}
            assert anchor["role"] == "view" and all(row["role"] == "view" for row in positives)
            assert all(row["role"] == "distractor" for row in distractors)
            seen = [row["view_index"] for row in [anchor, *positives]]
            assert len(set(seen)) == len(seen) == min(3, {"s:a": 3, "s:b": 2, "s:c": 5}[identity])
            assert [row["view_index"] for row in distractors] == seen, "own background first, then the others"
            assert all(row["draw"] > 0 for row in [anchor, *positives, *distractors])


def test_anchor_scope_draws_different_engines_in_the_anchors_own_background(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 3, "s:b": 2}, engines=["w", "x", "y", "z"], broken=[("s:a", v, "w") for v in range(3)])
    selection = make_selection(index, distractors="anchor", distractor_slots=4)
    rows = index.to_pylist()
    for epoch in range(30):
        chosen = selection.choose(everyone(selection), epoch)
        for i, engines in enumerate([{"x", "y", "z"}, {"w", "x", "y", "z"}]):
            anchor = rows[chosen.anchor_B[i]]
            distractors = [rows[row] for row in chosen.distractor_BK[i] if row >= 0]
            assert {row["view_index"] for row in distractors} == {anchor["view_index"]}
            assert sorted(row["engine"] for row in distractors) == sorted(engines)


def test_choice_depends_on_neither_batch_nor_order_nor_other_identities(make_index: MakeIndex) -> None:
    index = make_index(many(12))
    selection = make_selection(index, seed=4)
    whole = selection.choose(everyone(selection), 5).rows_BS()
    order = np.random.default_rng(0).permutation(12)
    shuffled = selection.choose(Samples(identity_B=order, repeat_B=np.zeros(12, np.int64)), 5).rows_BS()
    assert np.array_equal(shuffled, whole[order])
    fewer = index.take(np.flatnonzero(np.asarray(index["identity_id"]) != "s:000"))
    smaller = make_selection(fewer, seed=4)
    names = index["item_id"].to_numpy(zero_copy_only=False)
    left = fewer["item_id"].to_numpy(zero_copy_only=False)
    assert np.array_equal(left[smaller.choose(everyone(smaller), 5).rows_BS()], names[whole[1:]])


def test_choice_changes_with_seed_epoch_and_repeat(make_index: MakeIndex) -> None:
    index = make_index(many(12))
    selection = make_selection(index)
    first = selection.choose(everyone(selection), 0).rows_BS()
    again = Samples(identity_B=np.arange(12), repeat_B=np.ones(12, np.int64))
    others = [
        selection.choose(everyone(selection), 1).rows_BS(),
        selection.choose(again, 0).rows_BS(),
        make_selection(index, seed=1).choose(everyone(selection), 0).rows_BS(),
    ]
    assert np.array_equal(first, selection.choose(everyone(selection), 0).rows_BS())
    assert all((first != other).mean() > 0.5 for other in others)


def test_every_view_is_the_anchor_about_equally_often(make_index: MakeIndex) -> None:
    index = make_index(many(20))
    selection = make_selection(index)
    views = index["view_index"].to_numpy()
    count = np.zeros((20, 3))
    for epoch in range(150):
        count[np.arange(20), views[selection.choose(everyone(selection), epoch).anchor_B]] += 1
    assert count.min() >= 25 and count.max() <= 80
    assert ((count.sum(axis=0) - 1000) ** 2 / 1000).sum() < 14


def test_engines_draws_and_masks_have_their_frequencies_in_every_slot(make_index: MakeIndex) -> None:
    index = make_index(many(40), engines=["x", "y", "z"], draws=[0, 1, 2, 3, 4])
    selection = make_selection(index)
    engines, draws = np.asarray(index["engine"].to_pylist()), index["draw"].to_numpy()
    masked = index["masked"].to_numpy(zero_copy_only=False)
    chosen = np.stack([selection.choose(everyone(selection), epoch).rows_BS() for epoch in range(60)])
    total = chosen.shape[0] * chosen.shape[1]
    for slot in range(chosen.shape[2]):
        rows = chosen[:, :, slot].ravel()
        drawn = np.array(list(Counter(draws[rows].tolist()).values()))
        assert len(drawn) == 4 and ((drawn - total / 4) ** 2 / (total / 4)).sum() < 20
        rate = [0.5, 0.2, 0.2, 0.6, 0.6, 0.6][slot]
        assert abs(masked[rows].mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / total)
        if slot >= 3:
            used = np.array(list(Counter(engines[rows].tolist()).values()))
            assert len(used) == 3 and ((used - total / 3) ** 2 / (total / 3)).sum() < 16


def test_a_missing_engine_is_redrawn_uniformly_among_the_others(make_index: MakeIndex) -> None:
    broken = [(f"s:{i:03}", v, "x") for i in range(30) for v in range(3)]
    index = make_index(many(30), engines=["x", "y", "z"], broken=broken)
    selection = make_selection(index)
    engines = np.asarray(index["engine"].to_pylist())
    chosen = np.concatenate([selection.choose(everyone(selection), e).distractor_BK.ravel() for e in range(40)])
    assert (chosen >= 0).all()
    count = Counter(engines[chosen].tolist())
    assert set(count) == {"y", "z"} and abs(count["y"] - count["z"]) < 4 * np.sqrt(len(chosen))


def test_slots_that_cannot_be_filled_are_marked(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 2}, broken=[("s:a", 0, "fill"), ("s:a", 0, "paint")])
    selection = make_selection(index)
    for epoch in range(10):
        chosen = selection.choose(everyone(selection), epoch)
        assert chosen.positive_valid_BP.tolist() == [[True, False]]
        own = index["view_index"][chosen.anchor_B[0]].as_py()
        assert chosen.distractor_valid_BK.tolist() == [[own == 1, own == 0, False]]


def test_without_masked_items_nothing_is_masked_and_without_engines_nothing_is_a_distractor(
    make_index: MakeIndex,
) -> None:
    index = make_index(many(4), engines=[], masked=[False])
    selection = make_selection(index)
    chosen = selection.choose(everyone(selection), 0)
    assert (chosen.rows_BS()[:, :3] >= 0).all() and (chosen.distractor_BK == -1).all()
    assert make_selection(index, distractors="anchor").choose(everyone(selection), 0).distractor_BK.shape == (4, 3)


def test_an_epoch_holds_every_sample_once_and_its_last_batch_may_be_short(make_index: MakeIndex) -> None:
    selection = make_selection(make_index(many(22), draws=[0], masked=[False]))
    batches = selection.epoch(3, 8)
    assert [len(batch) for batch in batches] == [8, 8, 6] and selection.batches_per_epoch(8) == 3
    assert sorted(np.concatenate([batch.identity_B for batch in batches])) == list(range(22))
    orders = [np.concatenate([b.identity_B for b in selection.epoch(e, 8)]).tolist() for e in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("views", "repeats", "global_batch"), [(20, 4, 7), (6, 3, 8), (5, 5, 5), (3, 2, 60)])
def test_copies_of_an_identity_never_share_a_batch(
    make_index: MakeIndex, views: int, repeats: int, global_batch: int
) -> None:
    names = {f"glitch:{i}": 2 for i in range(views)} | {f"plain:{i}": 2 for i in range(60)}
    selection = make_selection(make_index(names, draws=[0], masked=[False]), repeats={"glitch": repeats})
    for epoch in range(5):
        batches = selection.epoch(epoch, global_batch)
        total = 60 + views * repeats
        full, left = divmod(total, global_batch)
        assert [len(batch) for batch in batches] == [global_batch] * full + [left] * (left > 0)
        assert all(len(set(batch.identity_B.tolist())) == len(batch) for batch in batches)
        pairs = [np.stack([batch.identity_B, batch.repeat_B], axis=1) for batch in batches]
        copies = Counter(map(tuple, np.concatenate(pairs).tolist()))
        assert len(copies) == total and set(copies.values()) == {1}


def test_copies_alone_fill_all_batches_when_there_is_just_room(make_index: MakeIndex) -> None:
    selection = make_selection(make_index(many(6, 2), draws=[0], masked=[False]), repeats={"s": 4})
    batches = selection.epoch(0, 6)
    assert [sorted(batch.identity_B.tolist()) for batch in batches] == [list(range(6))] * 4


def test_repeats_that_cannot_be_kept_apart_are_refused(make_index: MakeIndex) -> None:
    index = make_index(many(6, 2), draws=[0], masked=[False])
    with pytest.raises(UsageError, match="cannot be kept apart in 2 batches of 16; lower global_batch"):
        make_selection(index, repeats={"s": 4}).epoch(0, 16)
    with pytest.raises(UsageError, match=r"repeats names the sources \['mtg'\]"):
        make_selection(index, repeats={"mtg": 4})


@pytest.mark.parametrize("count", [1, 2, 4])
def test_workers_parts_of_a_batch_are_the_batch(make_index: MakeIndex, count: int) -> None:
    selection = make_selection(make_index(many(22)))
    for batch in selection.epoch(0, 8):
        whole = selection.choose(batch, 0).rows_BS()
        parts = [batch[Workers(count=count, rank=rank).part(len(batch))] for rank in range(count)]
        chosen = [selection.choose(part, 0).rows_BS() for part in parts]
        assert np.array_equal(np.concatenate(chosen), whole)
