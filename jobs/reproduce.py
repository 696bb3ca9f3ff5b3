#!/usr/bin/env python3
r"""Make a table or figure of the paper (ours beside the published numbers), running whatever is missing.

python jobs/reproduce.py table8 --output runs/reproduce
python jobs/reproduce.py all --output runs/reproduce
python jobs/reproduce.py figure5 --output runs/reproduce
python jobs/reproduce.py table3 --data paper --output runs/paper --dry-run
python jobs/reproduce.py table1 --evaluation runs/demo/evaluation --output runs/tables
python jobs/reproduce.py leave-one-engine-out --output runs/reproduce
python jobs/reproduce.py control --output runs/reproduce
python jobs/reproduce.py photos --photos PHOTOS --categories PHOTOS/subjects.csv --output runs/reproduce
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.errors import UsageError
from nearid_ray.settings import parse
from nearid_ray.stages.reproduce import Reproduce, plan_reproduce, run_reproduce, wanted_names
from nearid_ray.stages.reproduce_heads import SUITES
from nearid_ray.stages.reproduce_more import MORE, plan_more, run_more


def run(argv: Sequence[str]) -> int:
    """The job: `reproduce.py WHAT [OPTIONS]`."""
    words = f"{', '.join(SUITES)}, all, {', '.join(MORE)}"
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nWHAT is one of: {words}. `jobs/reproduce.py WHAT --help` shows its options.")
        return job.OK
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"expected `jobs/reproduce.py WHAT [OPTIONS]` with WHAT one of: {words}")
    what, rest = argv[0], argv[1:]
    if what in MORE:
        more = parse(MORE[what], rest, prog=f"jobs/reproduce.py {what}", description=MORE[what].__doc__ or "")
        if more.dry_run:
            job.print_table("plan (nothing is written)", plan_more(more))
            return job.OK
        return job.exit_code(run_more(more))
    names = wanted_names(what)
    settings = parse(Reproduce, rest, prog=f"jobs/reproduce.py {what}", description=__doc__ or "")
    if settings.dry_run:
        job.print_table("plan (nothing is written)", plan_reproduce(settings, names))
        return job.OK
    return job.exit_code(run_reproduce(settings, names))


if __name__ == "__main__":
    job.main(run)
