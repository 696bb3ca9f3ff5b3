"""Inside `ray job submit`: which job this is, and its metadata, through which others find what it made."""

import asyncio
import json
import os
from collections.abc import Mapping

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the entry point of a submitted job, and for nothing else."""
_SUBMISSION_ID = "job_submission_id"
_PATIENCE_S = 10


def in_submitted_job() -> bool:
    """Whether this process is the entry point of `ray job submit`."""
    return _JOB_VARIABLE in os.environ


def submission_id() -> str:
    """Ray's name of the submitted job; empty outside one."""
    try:
        config = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    except json.JSONDecodeError:
        return ""
    return str((config.get("metadata") or {}).get(_SUBMISSION_ID, ""))


def annotate(values: Mapping[str, str]) -> bool:
    """Add to the submitted job's metadata, which `ray job list` and the dashboard show.

    Returns:
        Whether that was possible; outside a submitted job, and where Ray does not let it, nothing happens.
    """
    job, address = submission_id(), os.environ.get("RAY_ADDRESS", "")
    if not job or not address:
        return False
    try:
        # Ray has no public way to add metadata to a job that runs.
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.dashboard.modules.job.common import JobInfoStorageClient

        asyncio.run(_add(JobInfoStorageClient(GcsClient(address=address)), job, values))
    except Exception:  # a link that is missing must not end a job
        return False
    return True


async def _add(client: "object", job: str, values: Mapping[str, str]) -> None:
    info = await client.get_info(job, timeout=_PATIENCE_S)  # type: ignore[attr-defined]
    if info is None:
        raise LookupError(job)
    info.metadata = {**(info.metadata or {}), **values}
    await client.put_info(job, info, overwrite=True, timeout=_PATIENCE_S)  # type: ignore[attr-defined]
