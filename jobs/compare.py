#!/usr/bin/env python3
r"""Compare runs: settings that differ, measures with intervals and significance, curves.

python jobs/compare.py RUN RUN ... [--tracking-uri sqlite:////path/mlflow.db] [--output runs/compared]
python jobs/compare.py runs/demo/evaluation runs/other/evaluation
python jobs/compare.py --search "tags.job = 'evaluate' and metrics.seconds < 100" --tracking-uri http://SERVER:5000
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.compare import Compare, run_compare


def run(argv: Sequence[str]) -> int:
    """The job; leading words without a flag are runs."""
    names = []
    for word in argv:
        if word.startswith("-"):
            break
        names.append(word)
    rest = list(argv[len(names) :])
    given = [*(["--runs", *names] if names else []), *rest]
    run_compare(parse(Compare, given, prog="jobs/compare.py", description=__doc__ or ""))
    return job.OK


if __name__ == "__main__":
    job.main(run)
