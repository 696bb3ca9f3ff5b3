#!/usr/bin/env python3
"""Bring a source of identities into a tuples dataset.

python jobs/ingest.py toybox --output runs/toy/tuples --train-identities 200 --test-identities 50
python jobs/ingest.py photos --root PHOTOS --categories PHOTOS/subjects.csv --output runs/photos/tuples
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.errors import UsageError
from nearid_ray.settings import parse
from nearid_ray.stages.ingest import SOURCES, run_ingest


def run(argv: Sequence[str]) -> int:
    """The job: `ingest.py SOURCE [OPTIONS]`."""
    names = ", ".join(SOURCES)
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nSources: {names}. `jobs/ingest.py SOURCE --help` shows a source's options.")
        return job.OK
    if not argv or argv[0] not in SOURCES:
        given = f"{argv[0]!r} is no source" if argv else "no source was given"
        raise UsageError(f"{given}; expected `jobs/ingest.py SOURCE [OPTIONS]` with SOURCE one of: {names}")
    settings_class = SOURCES[argv[0]]
    settings = parse(
        settings_class, argv[1:], prog=f"jobs/ingest.py {argv[0]}", description=settings_class.__doc__ or ""
    )
    return job.exit_code(run_ingest(settings))


if __name__ == "__main__":
    job.main(run)
