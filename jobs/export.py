#!/usr/bin/env python3
r"""Write tuples and distractors in the layout in which NearID is published on the hub.

python jobs/export.py --tuples runs/toy/tuples --distractors runs/toy/distractors --output runs/toy/hub

`jobs/ingest.py nearid --source runs/toy/hub/positives` and `nearid-distractors` read it back, `datasets.load_dataset`
opens each folder, and each can be pushed to a hub as it is.
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.export import Export, run_export


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Export, argv, prog="jobs/export.py", description=__doc__ or "")
    return job.exit_code(run_export(settings))


if __name__ == "__main__":
    job.main(run)
