#!/usr/bin/env python3
r"""Bring a source of identities into a tuples dataset.

python jobs/ingest.py toybox --output runs/toy/tuples --train-identities 200 --test-identities 50
python jobs/ingest.py photos --root PHOTOS --categories PHOTOS/subjects.csv --output runs/photos/tuples
python jobs/ingest.py nearid --train-index train.json --test-index test.json --output runs/nearid/tuples
python jobs/ingest.py nearid-distractors --tuples runs/nearid/tuples --sources Aleksandar/NearID-Flux \
    Aleksandar/NearID-Qwen --output runs/nearid/distractors
python jobs/ingest.py table --source TABLE.csv --identity object --image file --output runs/table/tuples
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
