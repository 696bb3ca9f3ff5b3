#!/usr/bin/env python3
r"""Say how alike the two pictures of every pair of a list are; each distinct picture is embedded once.

python jobs/score.py pairs.csv --scorer runs/toy/train/heads/nearid-alpha-0.5/best --output runs/scores --csv
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.score import Score, run_score


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Score, argv, prog="jobs/score.py", description=__doc__ or "")
    return job.exit_code(run_score(settings))


if __name__ == "__main__":
    job.main(run)
