"""Which pairs a scorer looks at: the work list of a judgement, one row a pair and condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.data.light import iterate
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.pictures import PLACES
from nearid_ray.embedding.plan import EmbedSettings, plan_embed
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS, plan_pairs
from nearid_ray.evaluation.similarities import CONDITIONS, check_pairing
from nearid_ray.identifiers import stable_hash

SIDES = ("first", "second")
SIDE_COLUMNS = ("row_id", *PLACES)
"""What of a picture stands in a work row, with the side's name before it: its name, and where it lies."""

_GENERATED = ("generated_id", "identity_id", "method", "prompt_index", "image_index", "category", "error")


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Which pairs are looked at, and how."""

    split: str = "test"
    """Split whose pairs are looked at: train, val or test."""
    conditions: tuple[str, ...] = CONDITIONS
    """full: whole pictures; foreground: backgrounds blacked out (where there are masks)."""
    engines: tuple[str, ...] = ()
    """Engines whose distractors are looked at; all when empty. Pairs of views are the same for all of them."""
    random_views: int = 0
    """Views of other identities each view is compared with, for the ordering rate; 0 leaves them out."""
    pair_seed: int = 0
    """Seed of the random pairs and of the order in which identities are taken."""
    max_identities: int | None = None
    """For trials: pairs of so many identities alone."""
    max_pairs: int | None = None
    """For trials: so many rows alone, identity after identity."""
    distractor_mask: Literal["view", "painted"] = "view"
    """What is kept of a distractor in the condition foreground: the mask of its view, or the whole painted region."""
    controls: bool = False
    """Look at artefact controls too (engines that end in -control)."""

    def __post_init__(self) -> None:
        check_pairing(self.split, self.conditions, self.random_views)
        for name in ("max_identities", "max_pairs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


def plan_judgements(
    tuples: Dataset, distractors: Dataset | None, settings: PairSettings, *, uses_masks: bool = False
) -> tuple[pa.Table, list[dict[str, str]]]:
    """(work list, rejected records) of the pairs of two datasets; every pair stands in it once for each condition.

    Pairs of views, distractors with their views, crossed pairs where there is an oracle, and random pairs if asked
    for: those that `plan_pairs` gives. An identity's rows stand together; identities come in an order that the seed
    alone decides, so that a larger trial holds a smaller one.

    Args:
        uses_masks: pictures without a mask are left out in every condition.

    Raises:
        UsageError: an engine is unknown, the datasets do not belong together, or there is no pair.
    """
    pictures, rejected = plan_embed(tuples, distractors, _as_embedded(settings, uses_masks))
    parts = []
    for condition in dict.fromkeys(settings.conditions):
        images = pictures.filter(pc.field("masked") == (uses_masks or condition == "foreground"))
        plan = plan_pairs(images.select(IMAGE_COLUMNS), random_views=settings.random_views, seed=settings.pair_seed)
        columns = {name: plan.described[name] for name in plan.described.column_names}
        columns["condition"] = pa.repeat(pa.scalar(condition), len(plan))
        for side, rows in zip(SIDES, (plan.first_P, plan.second_P), strict=True):
            taken = images.take(pa.array(rows))
            columns |= {f"{side}_{name}": taken[name] for name in SIDE_COLUMNS}
        parts.append(pa.table(columns))
    work = pa.concat_tables(parts)
    if not work.num_rows:
        masks = (
            " No picture has a mask, which is needed here." if not _any_masked(pictures, settings, uses_masks) else ""
        )
        raise UsageError(
            f"{tuples.location.uri}: there is no pair of split {settings.split!r} to look at, condition "
            f"{' or '.join(settings.conditions)}.{masks}"
        )
    return _limited(_named(work, "pair_id"), settings), rejected


def plan_generated(
    tuples: Dataset, generated: Dataset, settings: PairSettings, methods: Sequence[str] = ()
) -> tuple[pa.Table, list[dict[str, str]]]:
    """(work list, rejected records) of generated pictures beside their identity's reference, its first good view.

    The condition is full alone: generated pictures have no masks. Of the settings only the limits and the seed count.

    Raises:
        UsageError: a method is unknown, or no generated picture has its reference among the tuples.
    """
    references = _references(tuples)
    found, rejected, rows = set(), [], []
    for shard, table in iterate(generated, _GENERATED):
        for place, row in enumerate(table.to_pylist()):
            found.add(row["method"])
            if methods and row["method"] not in methods:
                continue
            reference = references.get(row["identity_id"])
            if row["error"] or reference is None:
                reason = ("picture-error", row["error"]) if row["error"] else ("no-reference", "not among the tuples")
                record = {"record_id": row["generated_id"], "identity_id": row["identity_id"]}
                rejected.append(record | {"reason": reason[0], "detail": reason[1]})
                continue
            second = {"row_id": row["generated_id"], "input_kind": "generated", "input_shard": shard}
            second |= {"input_row": place, "view_index": 0, "mask_kind": "", "mask_shard": "", "mask_row": 0}
            sides = {f"{side}_{n}": v for side, of in (("first", reference), ("second", second)) for n, v in of.items()}
            kept = {name: row[name] for name in _GENERATED if name != "error"}
            rows.append(kept | {"view_index": reference["view_index"], "condition": "full"} | sides)
    unknown = sorted(set(methods) - found)
    if unknown:
        raise UsageError(f"methods names {', '.join(unknown)}; {generated.location.uri} has {', '.join(sorted(found))}")
    if not rows:
        raise UsageError(
            f"none of the generated pictures in {generated.location.uri} has its reference in {tuples.location.uri}; "
            "give the tuples of their references"
        )
    work = pa.Table.from_pylist(rows)
    for name in ("prompt_index", "image_index", "view_index"):
        place = work.schema.get_field_index(name)
        work = work.set_column(place, name, pc.cast(work[name], pa.int32()))
    return _limited(_named(work, "generated_id"), settings), rejected


def _as_embedded(settings: PairSettings, uses_masks: bool) -> EmbedSettings:
    return EmbedSettings(
        draws=0,
        augmented_splits=(),
        clean_splits=(settings.split,),
        masked=uses_masks or "foreground" in settings.conditions,
        distractor_mask=settings.distractor_mask,
        engines=settings.engines,
        controls=settings.controls,
    )


def _any_masked(pictures: pa.Table, settings: PairSettings, uses_masks: bool) -> bool:
    wanted = uses_masks or tuple(settings.conditions) == ("foreground",)
    return not wanted or bool(pc.any(pictures["masked"]).as_py())


def _named(work: pa.Table, pair: str) -> pa.Table:
    names = zip(work[pair].to_pylist(), work["condition"].to_pylist(), strict=True)
    return work.add_column(0, "row_id", pa.array([stable_hash(*name) for name in names], pa.string()))


def _limited(work: pa.Table, settings: PairSettings) -> pa.Table:
    identities = work["identity_id"].to_numpy(zero_copy_only=False).astype(str)
    names, number_N = np.unique(identities, return_inverse=True)
    ranks = np.argsort(np.argsort([stable_hash("identity", settings.pair_seed, name) for name in names]))
    # Stable: an identity's rows keep the plan's order, its views first.
    order = np.argsort(ranks[number_N], kind="stable")
    if settings.max_identities is not None:
        order = order[ranks[number_N[order]] < settings.max_identities]
    return work.take(pa.array(order[: settings.max_pairs]))


def _references(tuples: Dataset) -> dict[str, dict[str, Any]]:
    return dict(_each_reference(tuples))


def _each_reference(tuples: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    for shard, table in iterate(tuples, ("identity_id", "views.error")):
        for place, row in enumerate(table.to_pylist()):
            index = next((i for i, view in enumerate(row["views"]) if not view["error"]), None)
            if index is not None:
                where = {"input_kind": "tuples", "input_shard": shard, "input_row": place, "view_index": index}
                where |= {"mask_kind": "tuples", "mask_shard": shard, "mask_row": place}
                yield row["identity_id"], {"row_id": f"{row['identity_id']}/{index}", **where}
