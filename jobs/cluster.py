#!/usr/bin/env python3
r"""Group embedded pictures by the identity that they show.

python jobs/cluster.py --embeddings runs/demo/evaluation/embeddings --scorer nearid-alpha-0.5 --roles view \
    --threshold 0.4 --pictures runs/demo/tuples --output runs/demo/clusters
python jobs/cluster.py --embeddings runs/photos/embeddings --calibration runs/train/heads/ours/best \
    --false-accept-rate 0.01 --output runs/photos/clusters
"""

from collections.abc import Sequence

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.settings import parse
from nearid_ray.stages.cluster import Cluster, run_cluster


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Cluster, argv, prog="jobs/cluster.py", description=__doc__ or "")
    return job.exit_code(run_cluster(settings))


if __name__ == "__main__":
    job.main(run)
