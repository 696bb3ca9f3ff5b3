"""What a scorer says of pairs of pictures that a person listed."""

import pyarrow as pa

from schemas.fields import Table, described, error_field

SCORED_IMAGES = Table(
    name="scored_images",
    purpose="One row a distinct picture: where its embedding lies.",
    fields=(
        described("image", pa.string(), "Path or s3:// place of the picture."),
        described("shard", pa.string(), "Of the file of vectors, `vectors/SHARD.npy`: float32, one row a picture."),
        described("row", pa.int64(), "Row in that file."),
        error_field("Such a picture's vector is nan."),
    ),
    key=("image",),
)

SCORES = Table(
    name="scores",
    purpose="One row a pair, in the order of the list of pairs; the list's other columns follow.",
    fields=(
        described("row", pa.int64(), "Number of the pair in the list, from 0."),
        described("a", pa.string(), "The first picture, as the list names it."),
        described("b", pa.string(), "The second picture."),
        described("similarity", pa.float64(), "Cosine, -1..1: higher = more alike; null with an error.", nullable=True),
        described(
            "probability",
            pa.float64(),
            "That both show the same identity; null with an error or without a calibration.",
            nullable=True,
        ),
        described(
            "same",
            pa.bool_(),
            "Whether the similarity reaches the threshold for the wished rate of false accepts; null as above.",
            nullable=True,
        ),
        error_field("Names the picture."),
    ),
    key=("row",),
    further_columns=True,
)
