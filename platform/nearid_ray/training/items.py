"""What a token cache holds for training: which item is which picture, as arrays.

Axes: I identities, V views, E training engines, O pictures, A augmentation draws of a picture.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of

Rows = NDArray[np.int64]

_COLUMNS = ("role", "identity_id", "view_index", "engine", "split", "masked", "draw", "error")


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """The usable items of one split. A picture is a view or a distractor; -1 stands for one that is not there.

    An item is usable when it has no error. A picture needs at least one usable unmasked item; where the background was
    blacked out for some pictures only, the others stay unmasked.
    """

    identities: tuple[str, ...]
    """Names of axis I, sorted; identities with at least two usable views."""
    identity_hash_I: NDArray[np.uint64]
    """What an identity's draws are made from: depends on its name alone."""
    engines: tuple[str, ...]
    """Names of axis E."""
    view_IV: Rows
    """Picture of each view."""
    distractor_IVE: Rows
    """Picture of each distractor, by the view whose background it has."""
    plain_OA: Rows
    """Index rows of each picture's items with background, in the order of their draws; -1 after the last."""
    masked_OA: Rows
    """The same with the background blacked out; all -1 where the cache holds none."""
    left_out: dict[str, int]
    """How many things the index names that training does not use, by reason."""

    @property
    def has_masked(self) -> bool:
        """Whether any item has its background blacked out."""
        return bool((self.masked_OA >= 0).any())

    def sources(self) -> list[str]:
        """The source of each identity: what its name has before the first colon."""
        return [identity.partition(":")[0] for identity in self.identities]


def item_table(
    index: pa.Table,
    *,
    split: str,
    engines: Sequence[str] = (),
    sources: Sequence[str] = (),
    clean: bool = False,
    minimum_views: int = 2,
) -> ItemTable:
    """Arrange the items of a split.

    Args:
        index: the index of a token cache.
        split: the split to take.
        engines: engines whose distractors are used; all that the split has when empty.
        sources: sources whose identities are taken; all when empty.
        clean: take draw 0, the clean picture, alone; otherwise the augmented draws 1..V, and draw 0 where the cache
            has no augmented ones.
        minimum_views: identities with fewer usable views are left out.

    Raises:
        UsageError: the split is empty, has no identity of a wanted source, or no distractor of a wanted engine.
    """
    _check_columns(index)
    index = index.select(_COLUMNS).append_column("index_row", pa.array(np.arange(len(index), dtype=np.int64)))
    found = index.filter(pc.equal(index["split"], split))
    if not len(found):
        present = sorted(set(index["split"].unique().to_pylist()))
        raise UsageError(f"the token cache has no items of split {split!r}; it has {present}")
    if sources:
        found = of_sources(found, sources, split)
    found_engines = sorted(set(found["engine"].unique().to_pylist()) - {""})
    wanted = tuple(engines) or tuple(found_engines)
    unknown = sorted(set(wanted) - set(found_engines))
    if unknown or len(set(wanted)) != len(wanted):
        raise UsageError(
            f"engines {list(wanted)}: {'unknown ' + str(unknown) if unknown else 'one is named twice'}; "
            f"split {split!r} of the token cache has distractors of {found_engines}"
        )
    left_out: Counter[str] = Counter()
    usable = _usable(found, wanted, clean, left_out)
    return _arranged(usable, wanted, minimum_views, left_out)


def _check_columns(index: pa.Table) -> None:
    missing = [name for name in _COLUMNS if name not in index.column_names]
    if missing:
        raise UsageError(f"the token index lacks the columns {missing}; it has {index.column_names}")


def of_sources(found: pa.Table, sources: Sequence[str], split: str) -> pa.Table:
    """The rows of an index whose identities come from some sources; UsageError where one of them has none."""
    source_N = pc.list_element(pc.split_pattern(found["identity_id"], ":", max_splits=1), 0)
    present = set(source_N.unique().to_pylist())
    unknown = sorted(set(sources) - present)
    if unknown:
        raise UsageError(
            f"sources {list(sources)}: {unknown} not found; split {split!r} of the token cache has identities of "
            f"{sorted(present)}"
        )
    return found.filter(pc.is_in(source_N, pa.array(list(sources))))


def _usable(found: pa.Table, engines: Sequence[str], clean: bool, left_out: Counter[str]) -> pa.Table:
    """The items without error, of the wanted engines and draws."""
    chosen = found.filter(pc.is_in(found["engine"], pa.array(["", *engines])))
    augmented = not clean and len(chosen) and pc.max(chosen["draw"]).as_py() > 0
    chosen = chosen.filter(pc.greater(chosen["draw"], 0) if augmented else pc.equal(chosen["draw"], 0))
    usable = chosen.filter(pc.equal(chosen["error"], ""))
    left_out["item with an error"] += len(chosen) - len(usable)
    return usable


def _arranged(usable: pa.Table, engines: tuple[str, ...], minimum_views: int, left_out: Counter[str]) -> ItemTable:
    names, identity_N = _sorted_codes(usable["identity_id"])
    view_N = usable["view_index"].to_numpy().astype(np.int64)
    # Place 0 of an identity's view is the view itself, place 1 + e its distractor by engine e.
    place = {"": 0} | {engine: 1 + i for i, engine in enumerate(engines)}
    found_engines, code_N = _sorted_codes(usable["engine"])
    place_N = np.array([place[name] for name in found_engines], np.int64)[code_N]
    views, places = int(view_N.max(initial=-1)) + 1, 1 + len(engines)
    cell_N = (identity_N * views + view_N) * places + place_N

    masked_N = usable["masked"].to_numpy(zero_copy_only=False).astype(bool)
    row_N, draw_N = usable["index_row"].to_numpy(), usable["draw"].to_numpy()
    pictures, picture_of_plain = np.unique(cell_N[~masked_N], return_inverse=True)
    plain_OA = _ragged(picture_of_plain, draw_N[~masked_N], row_N[~masked_N], len(pictures))
    masked_OA = _masked_rows(pictures, cell_N[masked_N], draw_N[masked_N], row_N[masked_N])

    picture_of_cell = np.full(len(names) * views * places, -1, np.int64)
    picture_of_cell[pictures] = np.arange(len(pictures))
    picture_IVP = picture_of_cell.reshape(len(names), views, places)
    view_count_I = (picture_IVP[:, :, 0] >= 0).sum(axis=1)
    kept_I = view_count_I >= minimum_views
    left_out[f"identity with fewer than {minimum_views} usable views"] += int((~kept_I).sum())
    if not kept_I.any():
        raise UsageError(
            f"none of the {len(names)} identities has {minimum_views} usable views: {dict(left_out)}; "
            "embed the views without errors first"
        )
    identities = tuple(name for name, kept in zip(names, kept_I, strict=True) if kept)
    return ItemTable(
        identities=identities,
        identity_hash_I=np.array([seed_of(name) for name in identities], np.uint64),
        engines=engines,
        view_IV=picture_IVP[kept_I, :, 0],
        distractor_IVE=picture_IVP[kept_I, :, 1:],
        plain_OA=plain_OA,
        masked_OA=masked_OA,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _sorted_codes(column: pa.ChunkedArray) -> tuple[list[str], Rows]:
    """The different values of a column of text, sorted, and the place of each row's value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    values: list[str] = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    place_of_code = np.empty(len(values), np.int64)
    place_of_code[order] = np.arange(len(values))
    return [values[i] for i in order], place_of_code[encoded.indices.to_numpy(zero_copy_only=False)]


def _masked_rows(pictures: Rows, cell_N: Rows, draw_N: Rows, row_N: Rows) -> Rows:
    position_N = np.minimum(np.searchsorted(pictures, cell_N), max(len(pictures) - 1, 0))
    known_N = pictures[position_N] == cell_N if len(pictures) else np.zeros(len(cell_N), bool)
    return _ragged(position_N[known_N], draw_N[known_N], row_N[known_N], len(pictures))


def _ragged(group_N: Rows, order_N: Rows, value_N: Rows, groups: int) -> Rows:
    """Values of each group as one padded row (-1), sorted by `order_N`."""
    by_group = np.lexsort((order_N, group_N))
    group_N, value_N = group_N[by_group], value_N[by_group]
    count_G = np.bincount(group_N, minlength=groups)
    first_G = np.cumsum(count_G) - count_G
    padded_GA = np.full((groups, int(count_G.max(initial=0))), -1, np.int64)
    padded_GA[group_N, np.arange(len(group_N)) - first_G[group_N]] = value_N
    return padded_GA
