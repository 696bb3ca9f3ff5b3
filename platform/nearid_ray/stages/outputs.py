"""Outputs that are no datasets: kept apart from what other jobs wrote."""

from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError


def refuse_others(output: Location, name: str) -> None:
    """A folder that another job than `name` wrote into is left alone: files of the same names would mix.

    Raises:
        UsageError: the folder holds a dataset, or the summary of another job.
    """
    there = Dataset(output)
    stored, summary = there.read_json("settings.json"), there.read_json("summary.json")
    writer = "" if summary is None else str(summary.get("job", ""))
    if stored is not None:
        found = f"a dataset of {stored.get('table')!r}"
    elif writer not in ("", name):
        found = f"what the job {writer!r} wrote"
    else:
        return
    raise UsageError(f"{output.uri} holds {found}; give a folder that is new, or an earlier output of {name}")
