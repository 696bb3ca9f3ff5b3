"""The data contract: one module a table, `validate` to check a dataset against it."""

from schemas.distractors import DISTRACTORS
from schemas.embeddings import EMBEDDINGS, TOKENS_INDEX
from schemas.evaluation import MARGINS, SIMILARITIES
from schemas.fields import IMAGE, SCHEMA_VERSION, SPLITS, Reference, Table
from schemas.generated import GENERATED, RATINGS
from schemas.judgements import JUDGED_GENERATED, JUDGEMENTS
from schemas.rejected import REJECTED
from schemas.tables import TABLES
from schemas.tuples import MASK_SOURCES, TUPLES, VIEW
from schemas.validation import Violation, validate

__all__ = [
    "DISTRACTORS",
    "EMBEDDINGS",
    "GENERATED",
    "IMAGE",
    "JUDGED_GENERATED",
    "JUDGEMENTS",
    "MARGINS",
    "MASK_SOURCES",
    "RATINGS",
    "REJECTED",
    "SCHEMA_VERSION",
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
