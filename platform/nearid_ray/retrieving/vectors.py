"""Embeddings of a dataset as a gallery: in memory where they fit, else read shard by shard at each pass.

Axes: G pictures, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.data.light import check_complete
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.control import is_control
from nearid_ray.evaluation.embed import embedding_matrix
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS
from nearid_ray.retrieving.memory import available_bytes
from nearid_ray.retrieving.neighbours import GALLERY_BLOCK, ArrayGallery, FloatArray, Gallery
from nearid_ray.retrieving.places import KEY
from schemas import ROLES, SPLITS

_SHARE = 0.5
"""Of the free memory, what a gallery may take."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows of an embeddings dataset count."""

    scorer: str
    condition: str = "full"
    roles: tuple[str, ...] = ()
    """Empty: all."""
    splits: tuple[str, ...] = ()
    """Empty: all."""

    def __post_init__(self) -> None:
        for name, known in (("roles", ROLES), ("splits", SPLITS)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise ValueError(f"{name} has {', '.join(unknown)}; expected some of {', '.join(known)}")

    def expression(self) -> pc.Expression:
        found = (pc.field("scorer") == self.scorer) & (pc.field("condition") == self.condition)
        for name, wanted in (("role", self.roles), ("split", self.splits)):
            if wanted:
                found = found & pc.field(name).isin(list(wanted))
        return found


@dataclass(frozen=True, eq=False)
class Embedded:
    """Pictures with their vectors."""

    images: pa.Table
    """`IMAGE_COLUMNS` and `error`, one row a picture; the row's number is the gallery's."""
    gallery: Gallery
    width: int

    def shown(self) -> list[str | None]:
        """The identity that each picture shows: see `shown_identity`."""
        columns = (self.images[name].to_pylist() for name in ("role", "identity_id", "engine", "image_id"))
        return [shown_identity(*row) for row in zip(*columns, strict=True)]


def shown_identity(role: str, identity_id: str, engine: str, image_id: str) -> str | None:
    """The identity that a picture shows. A distractor shows one of its own, an artefact control its view's.

    None where it is not known: of generated pictures, and of files without an identity.

    >>> shown_identity("distractor", "toybox:1", "flux-fill-512", "abc"), shown_identity("picture", "", "", "def")
    ('abc', None)
    """
    if role == "generated" or not identity_id:
        return None
    return image_id if role == "distractor" and not is_control(engine) else identity_id


def open_embeddings(uri: str) -> Dataset:
    """A finished dataset of embeddings."""
    dataset = Dataset.open(uri, "embeddings")
    check_complete(dataset)
    return dataset


def scorers_in(dataset: Dataset) -> list[str]:
    """The scorers of a dataset of embeddings, sorted."""
    return sorted(dataset.read(["scorer"])["scorer"].unique().to_pylist())


def choose_scorer(dataset: Dataset, scorer: str) -> str:
    """The scorer that was asked for, or the only one.

    Raises:
        UsageError: there is no such scorer, or several and none was chosen.
    """
    there = scorers_in(dataset)
    if scorer and scorer not in there:
        raise UsageError(f"{dataset.location.uri} has no scorer {scorer!r}; it has {', '.join(there)}")
    if not scorer and len(there) > 1:
        raise UsageError(
            f"{dataset.location.uri} holds the embeddings of {len(there)} scorers: {', '.join(there)}; choose one with "
            "--scorer"
        )
    return scorer or there[0]


def read_embedded(dataset: Dataset, chosen: Selection, *, memory_gib: float | None = None) -> Embedded:
    """The chosen rows. What does not fit into memory is read anew at each pass.

    Args:
        memory_gib: what the vectors may take; half of what is free when left out.

    Raises:
        UsageError: there are no such rows, or their vectors differ in length.
    """
    where = chosen.expression()
    images = dataset.read([*IMAGE_COLUMNS, "error"], where)
    if not images.num_rows:
        raise UsageError(f"{dataset.location.uri} has no embeddings of {_said(chosen)}; it has {_there(dataset)}")
    double = images.num_rows - len(images.group_by(list(KEY)).aggregate([]))
    if double:
        raise UsageError(f"{dataset.location.uri}: {double} pictures stand twice for {_said(chosen)}; expected once")
    width = _width(dataset, where)
    streamed = _StreamedGallery(dataset, chosen, images.num_rows)
    limit = memory_gib * 2**30 if memory_gib is not None else _SHARE * (available_bytes() or 2**62)
    if images.num_rows * width * 4 > limit:
        return Embedded(images, streamed, width)
    vectors_GD = np.full((images.num_rows, width), np.nan, np.float32)
    for first, block_GD in streamed.blocks():
        if block_GD.shape[1] not in (width, 0):
            raise UsageError(f"embeddings of {chosen.scorer} have lengths {width} and {block_GD.shape[1]}")
        if block_GD.shape[1]:
            vectors_GD[first : first + len(block_GD)] = block_GD
    return Embedded(images, ArrayGallery(vectors_GD), width)


def matrix_of(embedded: Embedded) -> FloatArray:
    """All vectors, (G, D); nan rows where there is none."""
    if isinstance(embedded.gallery, ArrayGallery):
        return embedded.gallery.vectors_GD
    return np.concatenate([block for _, block in embedded.gallery.blocks()])


@dataclass(frozen=True, eq=False)
class _StreamedGallery:
    dataset: Dataset
    chosen: Selection
    count: int

    def __len__(self) -> int:
        return self.count

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        first = 0
        scanner = self.dataset.arrow().scanner(
            columns=["embedding"], filter=self.chosen.expression(), batch_size=GALLERY_BLOCK
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield first, embedding_matrix(pa.chunked_array([batch["embedding"]]))
                first += batch.num_rows


def _width(dataset: Dataset, where: pc.Expression) -> int:
    """Length of the first vector that is there."""
    for batch in dataset.arrow().scanner(columns=["embedding"], filter=where, batch_size=1024).to_batches():
        lengths = pc.list_value_length(batch["embedding"].drop_null())
        if len(lengths):
            return int(lengths[0].as_py())
    raise UsageError(f"{dataset.location.uri}: every one of these pictures has an error and no embedding")


def _said(chosen: Selection) -> str:
    more: list[Sequence[str]] = [["scorer", chosen.scorer], ["condition", chosen.condition]]
    more += [
        [name, " or ".join(wanted)] for name, wanted in (("role", chosen.roles), ("split", chosen.splits)) if wanted
    ]
    return ", ".join(f"{name} {value}" for name, value in more)


def _there(dataset: Dataset) -> str:
    table = dataset.read(["scorer", "condition", "role", "split"])
    return "; ".join(f"{name}s {', '.join(sorted(table[name].unique().to_pylist()))}" for name in table.column_names)
