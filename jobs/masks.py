#!/usr/bin/env python3
r"""Find masks for the views of a tuples dataset, and draw a sheet of them to look at.

python jobs/masks.py --tuples runs/photos/tuples --output runs/photos/masked --mask-method grabcut
python jobs/masks.py --tuples runs/photos/tuples --output runs/photos/masked --which all --mask-method sam2 \
    --mask-model facebook/sam2.1-hiera-large
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.masks import Masks, run_masks


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Masks, argv, prog="jobs/masks.py", description=__doc__ or "")
    return job.exit_code(run_masks(settings))


if __name__ == "__main__":
    job.main(run)
