"""The data contract: one module a table, `validate` to check a dataset against it."""

from schemas.distractors import DISTRACTORS
from schemas.embeddings import EMBEDDINGS, TOKENS_INDEX
from schemas.evaluation import MARGINS, SIMILARITIES
from schemas.fields import IMAGE, SCHEMA_VERSION, SPLITS, Reference, Table
from schemas.rejected import REJECTED
from schemas.tables import TABLES
from schemas.tuples import TUPLES, VIEW
from schemas.validation import Violation, validate

__all__ = [
    "DISTRACTORS",
    "EMBEDDINGS",
    "IMAGE",
    "MARGINS",
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
