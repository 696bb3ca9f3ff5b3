"""What scorers that look at pairs of pictures say of them: a judge, correspondences, a function of two pictures."""

import pyarrow as pa

from schemas.evaluation import SIMILARITIES
from schemas.fields import Reference, Table, described, error_field

_ANSWER = described(
    "answer", pa.string(), "What the scorer said word for word (a judge's text); empty where it gives numbers alone."
)

JUDGEMENTS = Table(
    name="judgements",
    purpose="One row a pair of images, scorer and condition: `similarities` with the scorer's own words.",
    fields=(*SIMILARITIES.fields, _ANSWER, error_field("Such a row's similarity is null.")),
    key=SIMILARITIES.key,
    allowed=SIMILARITIES.allowed,
)

JUDGED_GENERATED = Table(
    name="judged_generated",
    purpose="One row a generated picture and scorer: how alike it and its identity's reference are.",
    fields=(
        described("generated_id", pa.string(), "Of the generated picture."),
        described("identity_id", pa.string(), "The identity of the reference."),
        described("method", pa.string(), "The generator."),
        described("prompt_index", pa.int32(), "Number of the prompt."),
        described("image_index", pa.int32(), "Number of the picture among those of the same method and prompt."),
        described("category", pa.string(), "The reference's category."),
        described("view_index", pa.int32(), "The reference: this view of the identity."),
        described("scorer", pa.string(), "Who scored."),
        described("condition", pa.string(), "full: generated pictures have no masks."),
        described("similarity", pa.float64(), "Higher = more alike; null where the row has an error.", nullable=True),
        _ANSWER,
        error_field(),
    ),
    key=("generated_id", "scorer", "condition"),
    allowed={"condition": ("full", "foreground")},
    references=(Reference(columns=("generated_id",), target="generated", target_columns=("generated_id",)),),
)
