"""Pictures that personalised generators made of an identity, and what people or metrics said of them."""

import pyarrow as pa

from schemas.fields import Reference, Table, described, error_field, image

GENERATED = Table(
    name="generated",
    purpose="One row a generated picture: a method was shown an identity's reference and given a prompt.",
    fields=(
        described("generated_id", pa.string(), "Hash of (identity_id, method, prompt_index, image_index)."),
        described("identity_id", pa.string(), "The identity of the reference, in a dataset of tuples."),
        described("method", pa.string(), "The generator, e.g. dreambooth_sd."),
        described("prompt_index", pa.int32(), "Number of the prompt among the identity's prompts."),
        described("prompt", pa.string(), "The text given to the generator."),
        described("image_index", pa.int32(), "Number of the picture among those of the same method and prompt."),
        described("category", pa.string(), "The reference's category, e.g. animal, human, object, style."),
        image("image", "The generated picture, encoded as it came."),
        described("width_px", pa.int32(), "Its width; 0 where the row has an error."),
        described("height_px", pa.int32(), "Its height; 0 where the row has an error."),
        described("source", pa.string(), "The importer that made the row."),
        error_field(),
    ),
    key=("generated_id",),
    references=(Reference(columns=("identity_id",), target="tuples", target_columns=("identity_id",)),),
)

RATINGS = Table(
    name="ratings",
    purpose="One row a rating of a generated picture, or of all pictures of one prompt, by one group or metric.",
    fields=(
        described("rating_id", pa.string(), "Hash of (identity_id, method, prompt_index, image_index, rater, aspect)."),
        described("identity_id", pa.string(), "The identity of the reference."),
        described("method", pa.string(), "The generator."),
        described("prompt_index", pa.int32(), "Number of the prompt."),
        described("image_index", pa.int32(), "Number of the picture; -1 where the rating is of the prompt as a whole."),
        described("rater", pa.string(), "Who rated: group1, group2, or the name of a metric."),
        described("rater_kind", pa.string(), "human | metric."),
        described("aspect", pa.string(), "concept (does it keep the identity) | prompt (does it follow the text)."),
        described("category", pa.string(), "The reference's category."),
        described("score", pa.float64(), "As given, e.g. 0 to 4 by people; null where there is none.", nullable=True),
        described("source", pa.string(), "The importer that made the row."),
        error_field(),
    ),
    key=("rating_id",),
    allowed={"rater_kind": ("human", "metric"), "aspect": ("concept", "prompt")},
    references=(Reference(columns=("identity_id",), target="tuples", target_columns=("identity_id",)),),
)

_GENERATED_FIELDS = (
    described("identity_id", pa.string(), "The identity of the reference."),
    described("method", pa.string(), "The generator."),
    described("prompt_index", pa.int32(), "Number of the prompt."),
)

GENERATED_SIMILARITIES = Table(
    name="generated_similarities",
    purpose="One row a pair of reference view and generated picture, scorer and condition: eval records of alignment.",
    fields=(
        described("generated_id", pa.string(), "Of the generated picture."),
        *_GENERATED_FIELDS,
        described("image_index", pa.int32(), "Number of the picture among those of the same method and prompt."),
        described("category", pa.string(), "The reference's category."),
        described("view_index", pa.int32(), "The reference: this view of the identity; -1 where there is none."),
        described("scorer", pa.string(), "Who scored."),
        described("condition", pa.string(), "full | foreground (background blacked out)."),
        described("similarity", pa.float64(), "Higher = more alike; null where the row has an error.", nullable=True),
        error_field(),
    ),
    key=("generated_id", "view_index", "scorer", "condition"),
    allowed={"condition": ("full", "foreground")},
    references=(Reference(columns=("generated_id",), target="generated", target_columns=("generated_id",)),),
)

ALIGNMENT = Table(
    name="alignment",
    purpose="One row a rated prompt of a method and scorer: its score beside what people said.",
    fields=(
        *_GENERATED_FIELDS,
        described("category", pa.string(), "The reference's category."),
        described("scorer", pa.string(), "Who scored: an embedding, a judge, or a metric of the ratings dataset."),
        described("condition", pa.string(), "full | foreground (background blacked out)."),
        described(
            "score",
            pa.float64(),
            "Mean over the prompt's pictures, each the mean over the reference's views; null where none has a score.",
            nullable=True,
        ),
        described("num_pictures", pa.int32(), "Pictures behind the score."),
        described("rating_1", pa.float64(), "What the first group of people said, or null.", nullable=True),
        described("rating_2", pa.float64(), "What the second group of people said, or null.", nullable=True),
    ),
    key=("identity_id", "method", "prompt_index", "scorer", "condition"),
    allowed={"condition": ("full", "foreground")},
)
