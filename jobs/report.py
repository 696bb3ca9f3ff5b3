#!/usr/bin/env python3
r"""Write one self-contained HTML page from what the other jobs wrote.

python jobs/report.py --evaluation runs/toy/evaluation --tuples runs/toy/tuples \
    --distractors runs/toy/distractors --tokens runs/toy/tokens --output runs/toy/report
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.report import Report, run_report


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Report, argv, prog="jobs/report.py", description=__doc__ or "")
    return job.exit_code(run_report(settings))


if __name__ == "__main__":
    job.main(run)
