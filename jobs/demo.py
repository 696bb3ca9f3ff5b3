#!/usr/bin/env python3
r"""Everything end to end on toy data: render, synthesize, embed, train, evaluate, report.

python jobs/demo.py --output runs/demo
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.demo import Demo, run_demo


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Demo, argv, prog="jobs/demo.py", description=__doc__ or "")
    return job.exit_code(run_demo(settings))


if __name__ == "__main__":
    job.main(run)
