"""All tables of the contract by name."""

from schemas.distractors import DISTRACTORS
from schemas.embeddings import EMBEDDINGS, TOKENS_INDEX
from schemas.evaluation import MARGINS, SIMILARITIES
from schemas.fields import Table
from schemas.generated import ALIGNMENT, GENERATED, GENERATED_SIMILARITIES, RATINGS
from schemas.judgements import JUDGED_GENERATED, JUDGEMENTS
from schemas.rejected import REJECTED
from schemas.retrieval import CLUSTERS, NEIGHBOURS
from schemas.scores import SCORED_IMAGES, SCORES
from schemas.tuples import TUPLES

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        TUPLES,
        DISTRACTORS,
        GENERATED,
        RATINGS,
        REJECTED,
        TOKENS_INDEX,
        EMBEDDINGS,
        SIMILARITIES,
        MARGINS,
        SCORED_IMAGES,
        SCORES,
        JUDGEMENTS,
        JUDGED_GENERATED,
        GENERATED_SIMILARITIES,
        ALIGNMENT,
        NEIGHBOURS,
        CLUSTERS,
    )
}
