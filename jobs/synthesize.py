#!/usr/bin/env python3
r"""Make near-identity distractors for every view of a tuples dataset.

python jobs/synthesize.py --tuples runs/toy/tuples --output runs/toy/distractors --engines toybox
python jobs/synthesize.py --tuples runs/photos/tuples --output runs/photos/distractors --engines exemplar
python jobs/synthesize.py --list-engines
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.synthesize import Synthesize, run_synthesize
from nearid_ray.synthesis.catalog import list_engines


def run(argv: Sequence[str]) -> int:
    """The job, or the list of engines."""
    if "--list-engines" in argv:
        print(list_engines())
        return job.OK
    settings = parse(Synthesize, argv, prog="jobs/synthesize.py", description=__doc__ or "")
    return job.exit_code(run_synthesize(settings))


if __name__ == "__main__":
    job.main(run)
