#!/usr/bin/env python3
r"""Choose identities and views of a tuples dataset, and draw disjoint splits.

python jobs/curate.py --tuples runs/toy/tuples --output runs/toy/curated --val 20 --test 50
python jobs/curate.py --tuples runs/syncd/tuples --output runs/syncd/curated --train 18786 --val 100 --test 500
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.curate import Curate, run_curate


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Curate, argv, prog="jobs/curate.py", description=__doc__ or "")
    return job.exit_code(run_curate(settings))


if __name__ == "__main__":
    job.main(run)
