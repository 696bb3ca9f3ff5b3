"""The item table names every usable picture and nothing else."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.training.items import item_table

MakeIndex = Callable[..., pa.Table]


def test_rows_of_every_picture_are_its_own_usable_items_in_order(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 3, "s:b": 2}, broken=[("s:a", 1, "fill")])
    rows = index.to_pylist()
    items = item_table(index, split="train")
    assert items.identities == ("s:a", "s:b") and items.engines == ("fill", "paint") and items.has_masked
    for i, identity in enumerate(items.identities):
        for view in range(3):
            for place, engine in enumerate(["", *items.engines]):
                picture = items.view_IV[i, view] if not engine else items.distractor_IVE[i, view, place - 1]
                for masked, table in ((False, items.plain_OA), (True, items.masked_OA)):
                    expected = {
                        row["draw"]: n
                        for n, row in enumerate(rows)
                        if (row["identity_id"], row["view_index"], row["engine"]) == (identity, view, engine)
                        and row["masked"] == masked
                        and row["draw"] > 0
                        and not row["error"]
                    }
                    found = [] if picture < 0 else [n for n in table[picture].tolist() if n >= 0]
                    assert found == [expected[draw] for draw in sorted(expected)]


def test_identities_with_fewer_than_two_usable_views_are_left_out_and_counted(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 2, "s:b": 1, "s:c": 2}, broken=[("s:c", 0, "")])
    items = item_table(index, split="train")
    assert items.identities == ("s:a",)
    assert items.left_out == {"identity with fewer than 2 usable views": 2, "item with an error": 4}


def test_clean_takes_draw_zero_and_a_cache_without_augmentation_falls_back_to_it(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 2})
    draws = {index["draw"][row].as_py() for row in item_table(index, split="train", clean=True).plain_OA.ravel()}
    assert draws == {0}
    augmented = {index["draw"][row].as_py() for row in item_table(index, split="train").plain_OA.ravel()}
    assert augmented == {1, 2}
    plain = make_index({"s:a": 2}, draws=[0], masked=[False])
    items = item_table(plain, split="train")
    assert items.plain_OA.shape[1] == 1 and not items.has_masked


def test_only_the_wanted_engines_and_split_are_taken(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 2, "s:b": 2}, split=lambda name: "val" if name == "s:b" else "train")
    items = item_table(index, split="val", engines=["paint"])
    assert items.identities == ("s:b",) and items.distractor_IVE.shape == (1, 2, 1)
    chosen = index.take(items.plain_OA.ravel())
    assert set(chosen["engine"].to_pylist()) == {"", "paint"} and set(chosen["split"].to_pylist()) == {"val"}


def test_refusals_name_what_was_asked_and_what_there_is(make_index: MakeIndex) -> None:
    index = make_index({"s:a": 2})
    with pytest.raises(UsageError, match=r"no items of split 'val'; it has \['train'\]"):
        item_table(index, split="val")
    with pytest.raises(UsageError, match=r"unknown \['flux'\].*distractors of \['fill', 'paint'\]"):
        item_table(index, split="train", engines=["flux"])
    with pytest.raises(UsageError, match="named twice"):
        item_table(index, split="train", engines=["fill", "fill"])
    with pytest.raises(UsageError, match="none of the 1 identities has 2 usable views"):
        item_table(make_index({"s:a": 1}), split="train")
    with pytest.raises(UsageError, match="none of the 0 identities"):
        item_table(make_index({"s:a": 1}, engines=[], broken=[("s:a", 0, "")]), split="train")
    with pytest.raises(UsageError, match=r"lacks the columns \['masked'\]"):
        item_table(index.drop_columns(["masked"]), split="train")
