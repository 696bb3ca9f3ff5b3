"""What nearest-neighbour search and clustering say of embedded pictures."""

import pyarrow as pa

from schemas.embeddings import ROLES
from schemas.fields import Table, described

NEIGHBOURS = Table(
    name="neighbours",
    purpose="One row a query, scorer and rank: a picture of the gallery that is most like it.",
    fields=(
        described("query", pa.string(), "The query: a file's name, or the id of an embedded picture."),
        described("query_image_id", pa.string(), "Its image_id."),
        described("query_identity_id", pa.string(), "The identity it shows; empty when unknown."),
        described("scorer", pa.string(), "Who embedded both."),
        described("condition", pa.string(), "full | foreground (background blacked out)."),
        described("rank", pa.int32(), "1 = nearest; equal similarities stand in the gallery's order."),
        described("image_id", pa.string(), "The gallery's picture."),
        described("role", pa.string(), "view | distractor | generated | picture."),
        described("identity_id", pa.string(), "Its identity; of a distractor, that of its background."),
        described("view_index", pa.int32(), "Its view; -1 where it is none."),
        described("engine", pa.string(), "Its engine or method; empty where it has none."),
        described("category", pa.string(), "Its category."),
        described("similarity", pa.float64(), "Cosine, higher = more alike."),
        described(
            "same", pa.bool_(), "Whether both show the same identity (a distractor does not); null where unknown.",
            nullable=True,
        ),
    ),
    key=("query", "query_image_id", "scorer", "condition", "rank"),
    allowed={"role": ROLES, "condition": ("full", "foreground")},
)  # fmt: skip

CLUSTERS = Table(
    name="clusters",
    purpose="One row an embedded picture: the group of pictures that it was put into.",
    fields=(
        described("image_id", pa.string(), "The picture."),
        described("role", pa.string(), "view | distractor | generated | picture."),
        described("identity_id", pa.string(), "Its identity; of a distractor, that of its background."),
        described("view_index", pa.int32(), "Its view; -1 where it is none."),
        described("engine", pa.string(), "Its engine or method; empty where it has none."),
        described("category", pa.string(), "Its category."),
        described("cluster", pa.int32(), "Its cluster, from 0, the largest first."),
        described("cluster_size", pa.int32(), "Pictures in that cluster."),
        described("similarity", pa.float64(), "To the mean of its cluster, cosine."),
        described("noise", pa.bool_(), "Whether the method put it into no cluster, so that it stands alone."),
    ),
    key=("image_id", "role", "identity_id", "view_index", "engine"),
    allowed={"role": ROLES},
)
