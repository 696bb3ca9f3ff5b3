"""What an evaluation is made of: embeddings and judgements that other jobs wrote, and that they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.data.light import check_complete
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.frames import listed
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS
from schemas import EMBEDDINGS, JUDGEMENTS, SIMILARITIES

PLACE = ("role", "identity_id", "view_index", "engine")
"""Columns that say which picture of a benchmark an image is."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A dataset with scorers to measure."""

    dataset: Dataset
    table: str = EMBEDDINGS.name
    """embeddings | judgements."""
    name: str = ""
    """What its one scorer shall be called; empty keeps the names it has."""
    scorers: tuple[str, ...] | None = None
    """These scorers of it alone; None: all."""

    @property
    def origin(self) -> str:
        """What messages call it."""
        return self.dataset.location.uri

    def scorer_names(self) -> list[str]:
        """The scorers to measure, in the order of the dataset.

        Raises:
            UsageError: `name` is given and it holds several.
        """
        found = list(dict.fromkeys(self.dataset.read(["scorer"])["scorer"].to_pylist()))
        if self.scorers is not None:
            found = [name for name in found if name in self.scorers]
        if self.name and len(found) > 1:
            raise UsageError(
                f"{self.name}={self.origin} names one scorer, and the folder holds {', '.join(found)}; give the "
                "folder alone"
            )
        return [self.name] if self.name and found else found


def named_folders(entries: Sequence[str], option: str) -> list[tuple[str, str]]:
    """(name, folder) of entries FOLDER or NAME=FOLDER; the name is empty where none is given.

    Raises:
        UsageError: an entry has no folder, or a folder or name stands twice.

    >>> named_folders(["runs/pooled", "clip=runs/clip", "s3://bucket/a=b"], "embeddings")
    [('', 'runs/pooled'), ('clip', 'runs/clip'), ('', 's3://bucket/a=b')]
    """
    found: list[tuple[str, str]] = []
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if not equals or "/" in name:
            name, folder = "", entry
        elif not name:
            folder = ""
        if not folder:
            raise UsageError(f"{option} has the entry {entry!r}; expected FOLDER or NAME=FOLDER")
        if folder in [other for _, other in found] or (name and name in [other for other, _ in found]):
            raise UsageError(f"{option}: {entry!r} stands twice")
        found.append((name, folder))
    return found


def open_given(embeddings: Sequence[str] = (), judged: Sequence[str] = ()) -> list[Given]:
    """The datasets of FOLDER or NAME=FOLDER entries, embeddings first.

    Raises:
        UsageError: a folder holds no finished dataset of its kind.
    """
    wanted = (("embeddings", embeddings, EMBEDDINGS.name), ("judged", judged, JUDGEMENTS.name))
    found = []
    for option, entries, table in wanted:
        for name, folder in named_folders(entries, option):
            dataset = Dataset.open(folder, table)
            check_complete(dataset)
            found.append(Given(dataset=dataset, table=table, name=name))
    return found


def of_scorers(given: Sequence[Given], scorers: Sequence[str] | None) -> list[Given]:
    """The datasets with the wanted scorers alone, those with none of them left out; all of it for None.

    Raises:
        UsageError: a wanted scorer is in none of them.
    """
    if scorers is None:
        return list(given)
    held = [set(one.dataset.read(["scorer"])["scorer"].unique().to_pylist()) for one in given]
    if lost := sorted(set(scorers).difference(*held)):
        raise UsageError(f"there are no embeddings of {', '.join(lost)}; run the job that makes them first")
    chosen = [tuple(name for name in scorers if name in names) for names in held]
    return [replace(one, scorers=names) for one, names in zip(given, chosen, strict=True) if names]


def refuse_same_names(named: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Refuse scorers of one name in two places, given as (origin, names)."""
    owner: dict[str, str] = {}
    for origin, names in named:
        for name in names:
            if name in owner:
                raise UsageError(
                    f"{origin} and {owner[name]} both have a scorer {name!r}; give one of them another name, as in "
                    f"--embeddings NAME={origin}"
                )
            owner[name] = origin


def read_given(given: Given, split: str, conditions: Sequence[str]) -> pa.Table:
    """Rows of the split and conditions by the wanted scorers: embeddings with `IMAGE_COLUMNS`, or similarities.

    The similarity of a judgement with an error is null, whatever it says, and so is one that is not a number.

    Raises:
        UsageError: there are none.
    """
    names = given.scorer_names()
    judged = given.table == JUDGEMENTS.name
    columns = SIMILARITIES.schema.names if judged else [*IMAGE_COLUMNS, "scorer", "condition", "embedding"]
    where = (pc.field("split") == split) & pc.field("condition").isin(list(conditions))
    if given.scorers is not None:
        where &= pc.field("scorer").isin(list(given.scorers))
    if not judged:
        where &= pc.field("role").isin(["view", "distractor"])
    table = given.dataset.read([*columns, "error"] if judged else columns, where=where)
    if not len(table):
        there = given.dataset.read(["split", "condition"])
        splits, found = (sorted(set(there[name].unique().to_pylist())) for name in ("split", "condition"))
        raise UsageError(
            f"{given.origin} has no {given.table} of split {split!r}, condition {' or '.join(conditions)}; found "
            f"splits {splits}, conditions {found}"
        )
    if judged:
        fine = pc.and_(pc.equal(table["error"], ""), pc.is_finite(table["similarity"]))
        value = pc.if_else(fine, table["similarity"], pa.scalar(None, pa.float64()))
        table = table.set_column(table.schema.get_field_index("similarity"), "similarity", value)
        table = pa.table([table[name] for name in columns], schema=SIMILARITIES.schema)
    if given.name:
        place = table.schema.get_field_index("scorer")
        renamed = pa.repeat(pa.scalar(names[0]), len(table))
        table = table.set_column(place, table.schema.field(place), renamed)
    return table


def refuse_mixture(parts: Sequence[tuple[str, pa.Table]]) -> None:
    """Refuse scores of two benchmarks in one evaluation: whatever was scored must be among the pictures of the first.

    A scorer may have seen less: that is told as coverage. One that has seen other identities, engines or pictures
    would be compared on other ground.

    Args:
        parts: (origin, table of images or of pairs) of the split.

    Raises:
        UsageError: naming what differs.
    """
    origin, first = parts[0]
    known = _pictures(first)
    for other_origin, table in parts[1:]:
        if table.schema.equals(first.schema) and table.equals(first):
            continue
        found = _pictures(table)
        for what, mine, theirs in (
            ("identities", {place[1] for place in known}, {place[1] for place in found}),
            ("engines", {place[3] for place in known}, {place[3] for place in found}),
        ):
            if strange := sorted(theirs - mine):
                raise UsageError(
                    f"{other_origin} has {len(strange)} {what} that {origin} has not: {listed(strange)}. These are "
                    "records of two benchmarks; measure them apart, or make both from the same tuples and distractors"
                )
        if beyond := sorted(set(found) - set(known)):
            raise UsageError(
                f"{other_origin} has {len(beyond)} picture(s) that {origin} has not, e.g. {_said(beyond[0])}; "
                "make both from the same tuples and distractors"
            )
        differ = sorted(place for place, image in found.items() if image and known[place] and image != known[place])
        if differ:
            raise UsageError(
                f"{other_origin} and {origin} show other pictures in {len(differ)} place(s), e.g. {_said(differ[0])} "
                f"({found[differ[0]]} and {known[differ[0]]}); make both from the same tuples and distractors"
            )


def _pictures(table: pa.Table) -> dict[tuple[str, str, int, str], str]:
    """(role, identity, view, engine) -> id of the image, empty where the table has none."""
    if "image_id" in table.column_names:
        return dict(_zipped(table, (*PLACE, "image_id")))
    found: dict[tuple[str, str, int, str], str] = {}
    for (identity, view), _ in _zipped(table, ("identity_id", "view_index", "kind")):
        found["view", identity, view, ""] = ""
    paired = table.filter(pc.is_in(table["kind"], pa.array(["positive", "random"])))
    for (identity, view), _ in _zipped(paired, ("other_identity_id", "other_view_index", "kind")):
        found["view", identity, view, ""] = ""
    painted = table.filter(pc.is_in(table["kind"], pa.array(["distractor", "crossed"])))
    for (identity, view), engine in _zipped(painted, ("identity_id", "other_view_index", "engine")):
        found["distractor", identity, view, engine] = ""
    return found


def _zipped(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[tuple, str]]:
    """(values of all columns but the last, value of the last) of the distinct rows."""
    distinct = table.group_by(list(columns), use_threads=False).aggregate([])
    for *values, last in zip(*(distinct[name].to_pylist() for name in columns), strict=True):
        yield tuple(values), last


def _said(place: tuple[str, str, int, str]) -> str:
    role, identity, view, engine = place
    return f"{role} {view} of {identity}" + (f" by {engine}" if engine else "")
