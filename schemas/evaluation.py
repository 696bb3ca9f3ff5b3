"""Eval records: every similarity once, and the margins derived from them."""

import pyarrow as pa

from schemas.fields import SPLITS, Table, described

_TRIAL_FIELDS = (
    described("identity_id", pa.string(), "The identity of the first image."),
    described("category", pa.string(), "Its category."),
    described("split", pa.string(), "Its split."),
)
_SCORER_FIELDS = (
    described("scorer", pa.string(), "Who scored, e.g. frozen, nearid-alpha-0.5."),
    described("condition", pa.string(), "full | foreground (background blacked out)."),
)

SIMILARITIES = Table(
    name="similarities",
    purpose="One row a pair of images, scorer and condition.",
    fields=(
        described("pair_id", pa.string(), "Hash of the pair; the same for every scorer and condition."),
        described(
            "kind",
            pa.string(),
            "positive (two views of one identity) | distractor (view, distractor in its background) | random (views "
            "of two identities) | crossed (view, distractor in another view's background; engines with an oracle).",
        ),
        *_TRIAL_FIELDS,
        described("view_index", pa.int32(), "The first image: this view of the identity."),
        described("other_identity_id", pa.string(), "Identity of the second image (differs only for random pairs)."),
        described("other_view_index", pa.int32(), "The second image: this view, or the distractor of this view."),
        described("engine", pa.string(), "The distractor's engine; empty for pairs of views."),
        described("oracle", pa.float64(), "The distractor's oracle, or null.", nullable=True),
        *_SCORER_FIELDS,
        described("similarity", pa.float64(), "Higher = more alike; null or NaN where there is none.", nullable=True),
    ),
    key=("pair_id", "scorer", "condition"),
    allowed={
        "kind": ("positive", "distractor", "random", "crossed"),
        "split": SPLITS,
        "condition": ("full", "foreground"),
    },
)

MARGINS = Table(
    name="margins",
    purpose="One row a directed trial: s(p_i, p_j) - s(p_i, n_i), derived from similarities alone.",
    fields=(
        *_TRIAL_FIELDS,
        described("anchor_view_index", pa.int32(), "i: the view that also gives the distractor's background."),
        described("positive_view_index", pa.int32(), "j: the other view."),
        described("engine", pa.string(), "Engine of the distractor n_i."),
        *_SCORER_FIELDS,
        described("positive_similarity", pa.float64(), "s(p_i, p_j).", nullable=True),
        described("distractor_similarity", pa.float64(), "s(p_i, n_i).", nullable=True),
        described("margin", pa.float64(), "Their difference; null or NaN where a part is missing.", nullable=True),
        described("valid", pa.bool_(), "Whether both parts are finite; other rows count nowhere."),
        described("success", pa.bool_(), "valid and margin > 0: a tie fails."),
    ),
    key=("identity_id", "anchor_view_index", "positive_view_index", "engine", "scorer", "condition"),
    allowed={"split": SPLITS, "condition": ("full", "foreground")},
)
