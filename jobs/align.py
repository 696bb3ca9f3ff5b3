#!/usr/bin/env python3
r"""Compare scorers with people on generated pictures (DreamBench++): M-H by method and by category.

python jobs/align.py --tuples runs/dbpp/references --generated runs/dbpp/generated --ratings runs/dbpp/ratings \
    --scorers siglip2=google/siglip2-so400m-patch14-384 ours=runs/train/heads/nearid-alpha-0.5/best \
    --output runs/dbpp/alignment
python jobs/align.py --ratings runs/dbpp/ratings --output runs/dbpp/published  # metrics of the ratings alone
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.align import Align, run_align


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Align, argv, prog="jobs/align.py", description=__doc__ or "")
    return job.exit_code(run_align(settings))


if __name__ == "__main__":
    job.main(run)
