"""What a backbone says of an image: the index of cached tokens, and pooled embeddings."""

import pyarrow as pa

from schemas.fields import SPLITS, Table, described, error_field

_IMAGE_FIELDS = (
    described("image_id", pa.string(), "view_id, distractor_id, generated_id, or the content hash of a file."),
    described(
        "role",
        pa.string(),
        "view | distractor | generated (what a method made of an identity) | picture (a file that was given).",
    ),
    described(
        "identity_id",
        pa.string(),
        "The identity of the view, of the distractor's background, or of the generated picture's reference; what is "
        "known of a file, or empty.",
    ),
    described("view_index", pa.int32(), "Place of the view in the identity's views; -1 for other pictures."),
    described("engine", pa.string(), "The distractor's engine, or the generated picture's method; empty for others."),
    described("category", pa.string(), "The identity's category."),
    described("split", pa.string(), "The identity's split."),
)

TOKENS_INDEX = Table(
    name="tokens_index",
    purpose="One row a cached item (image, masked or not, augmentation draw): where its tokens lie.",
    fields=(
        described("item_id", pa.string(), "Hash of (image_id, role, engine, identity_id, view_index, masked, draw)."),
        *_IMAGE_FIELDS,
        described("oracle", pa.float64(), "The distractor's oracle, or null.", nullable=True),
        described("masked", pa.bool_(), "Whether the background was blacked out."),
        described("draw", pa.int32(), "0 = the clean image; 1..V = augmented."),
        described("shard", pa.string(), "Name of the token file, without ending."),
        described("row", pa.int64(), "Row in that file."),
        error_field("Such a row's tokens are zeros."),
    ),
    key=("item_id",),
    allowed={"role": ("view", "distractor"), "split": SPLITS},
)

ROLES = ("view", "distractor", "generated", "picture")
"""What an embedded picture is."""

EMBEDDINGS = Table(
    name="embeddings",
    purpose="One row an image, scorer and condition: its L2-normalised embedding.",
    fields=(
        *_IMAGE_FIELDS,
        described("oracle", pa.float64(), "The distractor's oracle, or null.", nullable=True),
        described("scorer", pa.string(), "Who embedded it, e.g. frozen."),
        described("condition", pa.string(), "full | foreground (background blacked out)."),
        described("embedding", pa.list_(pa.float32()), "Unit vector; null where the row has an error.", nullable=True),
        error_field(),
    ),
    key=("image_id", "role", "identity_id", "view_index", "engine", "scorer", "condition"),
    allowed={"role": ROLES, "split": SPLITS, "condition": ("full", "foreground")},
)
