"""Distractors: one row a similar but different instance painted into the exact background of a view."""

import pyarrow as pa

from schemas.fields import SPLITS, Reference, Table, described, error_field, image

CONTROL_SUFFIX = "-control"
"""Ends the name of an engine's artefact control."""
VERDICTS = ("accepted", "flagged", "blank", "saturated", "unchanged", "too-far", "none")

DISTRACTORS = Table(
    name="distractors",
    purpose="One row a (view, engine): a different but similar instance in the exact background of the view.",
    fields=(
        described("distractor_id", pa.string(), "Hash of (identity_id, view_id, settings_hash, run_seed)."),
        described("identity_id", pa.string(), "The identity whose view gives the background."),
        described("view_index", pa.int32(), "Place of that view in the identity's views."),
        described("view_id", pa.string(), "Content hash of that view."),
        described("engine", pa.string(), "Engine configuration, e.g. sdxl-512, toybox-redraw, exemplar."),
        described("engine_family", pa.string(), "The code that runs it, e.g. toybox, exemplar."),
        described(
            "control",
            pa.bool_(),
            "True: no distractor but the same object, painted anew as an artefact control (its engine then ends in "
            "`-control`) or put elsewhere.",
        ),
        described("engine_revision", pa.string(), "Revision of its weights or code."),
        described("engine_settings", pa.string(), "JSON: every setting of the engine that changes pixels."),
        described("settings_hash", pa.string(), "Hash of engine_settings and revision."),
        described("run_seed", pa.int64(), "Seed of the whole synthesis run."),
        described("attempt", pa.int32(), "0 for the first try, one more for each retry with another seed."),
        described("seed", pa.int64(), "The generator's seed: hash of (distractor_id, attempt)."),
        described("prompt", pa.string(), "Text given to the engine, or empty."),
        described("negative_prompt", pa.string(), "Negative text given to the engine, or empty."),
        described("donor_identity_id", pa.string(), "Identity whose object was pasted in (exemplar), or empty."),
        described("donor_view_index", pa.int32(), "Its view, or -1."),
        described("donor_view_id", pa.string(), "Content hash of its view, or empty."),
        image("image", "The distractor at the canonical size, lossless."),
        image("mask", "The painted region, 255 inside: outside of it every pixel equals the view."),
        image("part_mask", "Pixels of the object that changed (part-level engines), or null."),
        described("size_px", pa.int32(), "Side in pixels; 0 where the row has an error."),
        described(
            "background_max_difference",
            pa.int32(),
            "Largest difference to the view outside the mask, 0 to 255; 0 for all that synthesize painted, as measured "
            "for imported ones; -1 where it could not be measured.",
        ),
        described(
            "object_mean_difference",
            pa.float32(),
            "Mean absolute difference to the view inside the mask, 0 to 255: how much the object changed.",
            nullable=True,
        ),
        described(
            "object_deviation",
            pa.float32(),
            "Standard deviation inside the mask of the channel that varies most, 0 to 255; null where it was not "
            "measured.",
            nullable=True,
        ),
        described(
            "saturated_share",
            pa.float32(),
            "Share of the channel values inside the mask that are 0 or 255; null where it was not measured.",
            nullable=True,
        ),
        described(
            "object_similarity",
            pa.float32(),
            "Cosine of the gate's embeddings of the masked object here and in the view, -1 to 1; null without a gate.",
            nullable=True,
        ),
        described(
            "flagged",
            pa.bool_(),
            "Whether the engine's own safety check objected; null where it has none.",
            nullable=True,
        ),
        described(
            "verdict",
            pa.string(),
            "accepted; or the first reason why it is no good: flagged | blank | saturated | unchanged | too-far; none "
            "where the row has an error.",
        ),
        described(
            "oracle",
            pa.float64(),
            "Share of the object that stayed the same (part-level engines), or null.",
            nullable=True,
        ),
        described("category", pa.string(), "The identity's category."),
        described("split", pa.string(), "The identity's split."),
        described("source", pa.string(), "The importer of the identity."),
        error_field(),
    ),
    key=("distractor_id",),
    allowed={"split": SPLITS, "verdict": VERDICTS},
    references=(
        Reference(columns=("identity_id",), target="tuples", target_columns=("identity_id",)),
        Reference(columns=("view_id",), target="tuples", target_columns=("views.view_id",)),
    ),
)
