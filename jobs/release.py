#!/usr/bin/env python3
r"""Write a trained head with its backbone as one checkpoint that transformers' AutoModel loads, model card included.

python jobs/release.py --head runs/toy/train/heads/nearid-alpha-0.5/best --metrics runs/toy/evaluation \
    --output runs/toy/release
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.release import Release, run_release


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Release, argv, prog="jobs/release.py", description=__doc__ or "")
    return job.exit_code(run_release(settings))


if __name__ == "__main__":
    job.main(run)
