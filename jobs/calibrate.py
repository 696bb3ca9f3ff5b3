#!/usr/bin/env python3
r"""Turn a scorer's similarities into probabilities of the same identity, with thresholds for false accepts.

python jobs/evaluate.py --split val --tokens runs/toy/tokens --output runs/toy/evaluation-val \
    --heads trained=runs/toy/train/heads/nearid-alpha-0.5/best
python jobs/calibrate.py --scorer runs/toy/train/heads/nearid-alpha-0.5/best --records runs/toy/evaluation-val \
    --check runs/toy/evaluation --output runs/toy/calibration
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.calibrate import Calibrate, run_calibrate


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Calibrate, argv, prog="jobs/calibrate.py", description=__doc__ or "")
    return job.exit_code(run_calibrate(settings))


if __name__ == "__main__":
    job.main(run)
