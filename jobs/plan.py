#!/usr/bin/env python3
r"""What a run will take: GPU-hours, storage, network and cost by stage, before anything is started.

python jobs/plan.py --preset paper --gpu a100-80 --gpus 8
python jobs/plan.py --preset paper --gpu l40s --gpus 16 --measured synthesize=s3://BUCKET/trial embed=s3://BUCKET/tokens
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job, presets
from nearid_ray.settings import parse
from nearid_ray.stages.plan import PlanCost, run_plan_cost


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(PlanCost, argv, prog="jobs/plan.py", description=__doc__ or "", presets=presets.PLAN)
    run_plan_cost(settings)
    return job.OK


if __name__ == "__main__":
    job.main(run)
