#!/usr/bin/env python3
r"""Train many heads with different settings as one Ray Tune search; trials that read the same share one pass.

python jobs/tune.py --preset toybox/table8+table9 --tokens runs/toy/tokens --output runs/toy/sweep
python jobs/tune.py --preset toybox --tokens CACHE --output OUT --space alpha=0,0.5,1 objective=nearid,circle-rank
python jobs/tune.py --preset paper --tokens CACHE --output OUT --search random --trials 30 --asha \
    --space alpha=uniform:0..2 learning_rate=log:1e-5..1e-3
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.tune import Tune, plan_tune, run_tune
from nearid_ray.tuning.presets import TUNE


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Tune, argv, prog="jobs/tune.py", description=__doc__ or "", presets=TUNE)
    if settings.dry_run:
        job.print_table("plan (nothing is written)", plan_tune(settings))
        return job.OK
    return job.exit_code(run_tune(settings))


if __name__ == "__main__":
    job.main(run)
