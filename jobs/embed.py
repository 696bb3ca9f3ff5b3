#!/usr/bin/env python3
r"""Compute a frozen backbone's tokens of every view and distractor once.

python jobs/embed.py --tuples runs/toy/tuples --distractors runs/toy/distractors --output runs/toy/tokens
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job, presets
from nearid_ray.settings import parse
from nearid_ray.stages.embed import Embed, plan_embed_job, run_embed


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Embed, argv, prog="jobs/embed.py", description=__doc__ or "", presets=presets.EMBED)
    if settings.dry_run:
        job.print_table("plan (nothing is written)", plan_embed_job(settings))
        return job.OK
    return job.exit_code(run_embed(settings))


if __name__ == "__main__":
    job.main(run)
