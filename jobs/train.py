#!/usr/bin/env python3
r"""Train the attention-pooling head of a frozen backbone on its cached tokens.

python jobs/train.py --tokens runs/toy/tokens --output runs/toy/train --preset toybox
python jobs/train.py --tokens CACHE [CACHE ...] --output FOLDER --preset paper --dry-run
python jobs/train.py --tokens online --tuples DATA --distractor-data DATA --output FOLDER --preset paper
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job, presets
from nearid_ray.settings import parse
from nearid_ray.stages.train import Train, plan_train, run_train


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Train, argv, prog="jobs/train.py", description=__doc__ or "", presets=presets.TRAIN)
    if settings.dry_run:
        job.print_table("plan (nothing is written)", plan_train(settings))
        return job.OK
    return job.exit_code(run_train(settings))


if __name__ == "__main__":
    job.main(run)
