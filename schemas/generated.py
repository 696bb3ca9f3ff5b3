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
