"""Tuples: one row an identity with all its views."""

import pyarrow as pa

from schemas.fields import SPLITS, Table, described, error_field, image, loose

MASK_SOURCES = ("exact", "column", "file", "rendered", "sam2", "birefnet", "grabcut", "none")

_VIEW_FIELDS = (
    described("view_id", pa.string(), "Content hash of the encoded image; empty where the view has an error."),
    image("image", "The view at the canonical square size, PNG."),
    image("mask", "The object's mask, same size, one channel, 255 = object, PNG."),
    image("part_mask", "A part of the object that differs from its counterpart (Mind-the-Glitch), or null."),
    described(
        "mask_source",
        pa.string(),
        "Where the mask comes from: exact (the renderer) | column | file | rendered (object on black, cleaned) | "
        "sam2 | birefnet | grabcut | none.",
    ),
    described("mask_area", pa.float32(), "Share of the image covered by the mask, 0 to 1.", nullable=True),
    described("mask_pieces", pa.int32(), "Number of connected pieces of the mask.", nullable=True),
    described("mask_touches_border", pa.bool_(), "Whether the mask reaches the image's border.", nullable=True),
    described(
        "perceptual_hash",
        pa.string(),
        "64 bits in hex that hardly change when the picture is scaled or saved again; empty where there is none.",
    ),
    described("size_px", pa.int32(), "Side of the canonical square in pixels; 0 where the view has an error."),
    described("source_width_px", pa.int32(), "Width of the picture as it came, after its EXIF orientation."),
    described("source_height_px", pa.int32(), "Height of the picture as it came, after its EXIF orientation."),
    described("prompt", pa.string(), "Text the view was generated from, or empty."),
    described("provenance", pa.string(), "JSON: what the source says of this view (file name, seeds, crop box)."),
    error_field("Counts for this view alone; the other views of the identity stay usable."),
)

VIEW = pa.struct([loose(field) for field in _VIEW_FIELDS])

TUPLES = Table(
    name="tuples",
    purpose="One row an identity (one physical object) with its views (real images of it).",
    fields=(
        described("identity_id", pa.string(), "`source:name`, unique."),
        loose(
            described(
                "views", pa.list_(VIEW), "The identity's views, in a fixed order; a view's place is its view_index."
            )
        ),
        described("category", pa.string(), "What kind of object it is (mug, dog, ...); empty when unknown."),
        described("description", pa.string(), "A short text on this very object; empty when unknown."),
        described("object_kind", pa.string(), "rigid | deformable | empty when unknown."),
        described("objaverse_id", pa.string(), "The 3D asset it was rendered from, or empty."),
        described("split", pa.string(), "train | val | test, by identity."),
        described("source", pa.string(), "The importer that made the row."),
        described("provenance", pa.string(), "JSON: what the source says of this identity."),
        error_field("Set when any view has one, or when the identity as a whole could not be read."),
    ),
    key=("identity_id",),
    allowed={
        "split": SPLITS,
        "object_kind": ("rigid", "deformable", ""),
        "views.mask_source": MASK_SOURCES,
    },
)
