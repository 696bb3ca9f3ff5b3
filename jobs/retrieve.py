#!/usr/bin/env python3
r"""Find the pictures that are most like a query: nearest neighbours in a dataset of embeddings or of pictures.

python jobs/retrieve.py --queries my_mug.jpg --gallery runs/photos/tuples --scorers runs/train/heads/ours/best \
    --output runs/photos/search
python jobs/retrieve.py --queries runs/demo/evaluation/embeddings --gallery runs/demo/evaluation/embeddings \
    --pictures runs/demo/tuples runs/demo/distractors --output runs/demo/retrieval
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.retrieve import Retrieve, run_retrieve


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Retrieve, argv, prog="jobs/retrieve.py", description=__doc__ or "")
    return job.exit_code(run_retrieve(settings))


if __name__ == "__main__":
    job.main(run)
