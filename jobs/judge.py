#!/usr/bin/env python3
r"""Score pairs of pictures with something that looks at both: a vision-language judge, VSM, a function of your own.

python jobs/judge.py --tuples runs/toy/tuples --distractors runs/toy/distractors \
    --judge vlm:Qwen/Qwen3-VL-8B-Instruct --output runs/toy/judged

Without a GPU, a function of two lists of pictures (compare.py in the working directory):

python jobs/judge.py --tuples runs/toy/tuples --distractors runs/toy/distractors \
    --judge function:distance:compare:mean_difference --output runs/toy/judged
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.judge import Judge, plan_judge_job, run_judge


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Judge, argv, prog="jobs/judge.py", description=__doc__ or "")
    if settings.dry_run:
        job.print_table("plan (nothing is written)", plan_judge_job(settings))
        return job.OK
    return job.exit_code(run_judge(settings))


if __name__ == "__main__":
    job.main(run)
