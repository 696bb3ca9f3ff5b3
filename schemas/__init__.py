"""The data contract: one module a table, `validate` to check a dataset against it."""

from schemas.distractors import DISTRACTORS
from schemas.embeddings import EMBEDDINGS, ROLES, TOKENS_INDEX
from schemas.evaluation import MARGINS, SIMILARITIES
from schemas.fields import IMAGE, SCHEMA_VERSION, SPLITS, Reference, Table
from schemas.generated import ALIGNMENT, GENERATED, GENERATED_SIMILARITIES, RATINGS
from schemas.judgements import JUDGED_GENERATED, JUDGEMENTS
from schemas.rejected import REJECTED
from schemas.retrieval import CLUSTERS, NEIGHBOURS
from schemas.scores import SCORED_IMAGES, SCORES
from schemas.tables import TABLES
from schemas.tuples import MASK_SOURCES, TUPLES, VIEW
from schemas.validation import Violation, validate

__all__ = [
    "ALIGNMENT",
    "CLUSTERS",
    "DISTRACTORS",
    "EMBEDDINGS",
    "GENERATED",
    "GENERATED_SIMILARITIES",
    "IMAGE",
    "JUDGED_GENERATED",
    "JUDGEMENTS",
    "MARGINS",
    "MASK_SOURCES",
    "NEIGHBOURS",
    "RATINGS",
    "REJECTED",
    "ROLES",
    "SCHEMA_VERSION",
    "SCORED_IMAGES",
    "SCORES",
    "SIMILARITIES",
    "SPLITS",
    "TABLES",
    "TOKENS_INDEX",
    "TUPLES",
    "VIEW",
    "Reference",
    "Table",
    "Violation",
    "validate",
]
