#!/usr/bin/env python3
r"""Check datasets: files, contract, pictures, checksums, references between them, split leaks. Nothing is written.

python jobs/validate.py runs/toy/tuples runs/toy/distractors runs/toy/tokens
python jobs/validate.py runs/demo
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.validate import Validate, run_validate


def run(argv: Sequence[str]) -> int:
    """The job; 0 where no problem was found."""
    settings = parse(Validate, argv, prog="jobs/validate.py", description=__doc__ or "")
    return job.FAILED if run_validate(settings) else job.OK


if __name__ == "__main__":
    job.main(run)
