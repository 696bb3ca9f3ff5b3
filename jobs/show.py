#!/usr/bin/env python3
r"""Say what is in a dataset: table, counts, errors, sizes, settings. Nothing is written to it.

python jobs/show.py runs/toy/tuples --sheet tuples.png
python jobs/show.py runs/toy/distractors --against runs/other/distractors
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.show import Show, run_show


def run(argv: Sequence[str]) -> int:
    """The job; 0 where nothing differs from --against."""
    settings = parse(Show, argv, prog="jobs/show.py", description=__doc__ or "")
    return job.OK if run_show(settings) else job.FAILED


if __name__ == "__main__":
    job.main(run)
