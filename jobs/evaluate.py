#!/usr/bin/env python3
r"""Measure how well embeddings see identity: success rates on near-identity distractors, by engine.

python jobs/evaluate.py --tokens runs/toy/tokens --output runs/toy/evaluation \
    --heads trained=runs/toy/train/heads/nearid-alpha-0.5/best
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.evaluate import Evaluate, run_evaluate


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Evaluate, argv, prog="jobs/evaluate.py", description=__doc__ or "")
    return job.exit_code(run_evaluate(settings))


if __name__ == "__main__":
    job.main(run)
