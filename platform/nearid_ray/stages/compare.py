"""The compare job: runs side by side, from MLflow or from their output folders."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearid_ray.comparing.compare import Comparison, compare_runs
from nearid_ray.comparing.runs import find_runs
from nearid_ray.comparing.show import csv_rows, markdown, page, text
from nearid_ray.data.store import locate
from nearid_ray.errors import UsageError
from nearid_ray.tracking import open_client, without_password

_STORES = ("mlflow.db", "runs/mlflow.db", "runs/demo/mlflow.db")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Settings that differ, measures with intervals and significance, and curves of several runs."""

    runs: tuple[str, ...] = ()
    """MLflow run ids or names, or output folders of jobs."""
    search: str = ""
    """MLflow's search filter, e.g. "tags.job = 'evaluate'"; its runs are compared too."""
    tracking_uri: str = ""
    """MLflow's server or database; by default MLFLOW_TRACKING_URI, else runs/mlflow.db where there is one."""
    experiments: tuple[str, ...] = ()
    """Names of the experiments in which runs are looked up; all when empty."""
    baseline: str = ""
    """Column that the others are compared with; the first when empty."""
    engines: bool = False
    """Print single engines, methods and categories too, not their groups alone; the files always hold all."""
    output: str = ""
    """Folder or s3://bucket/prefix for compare.html, compare.md and compare.csv; only printed when empty."""
    resamples: int = 1000
    """Resamples of identities for the paired differences; 1 or more."""

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected 1 or more")


def run_compare(settings: Compare) -> Comparison:
    """Print the comparison, and write it where asked.

    Raises:
        UsageError: a run is not found or its name is not unique, or there is nothing to compare.
    """
    if not settings.runs and not settings.search:
        raise UsageError("there is nothing to compare: give two or more runs (ids, names or folders), or --search")
    client, experiments = _store(settings)
    runs = find_runs(client, experiments, settings.runs, settings.search)
    found = compare_runs(runs, baseline=settings.baseline, resamples=settings.resamples)
    print(text(found, engines=settings.engines))
    if settings.output:
        place = locate(settings.output)
        for name, content in (("html", page(found)), ("md", markdown(found)), ("csv", csv_rows(found))):
            place.child(f"compare.{name}").write_bytes(content.encode())
        print(f"\nwritten to {place.uri}: compare.html, compare.md, compare.csv")
    return found


def _store(settings: Compare) -> tuple[Any, list[str]]:
    """(client, ids of the experiments); (None, []) where no store is named and none lies in the usual places."""
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        usual = [Path(name) for name in _STORES if Path(name).is_file()]
        if not usual:
            if settings.search:
                raise UsageError(
                    "search needs an MLflow store; give --tracking-uri sqlite:////path/mlflow.db or http://..."
                )
            return None, []
        uri = f"sqlite:///{usual[0].absolute()}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UsageError(f"tracking_uri is {uri}; there is no such database")
    from mlflow.exceptions import MlflowException

    try:
        client = open_client(uri)
        known = {experiment.name: experiment.experiment_id for experiment in client.search_experiments()}
    except MlflowException as error:
        raise UsageError(f"the MLflow store {without_password(uri)} cannot be read: {error.message}") from error
    unknown = sorted(set(settings.experiments) - set(known))
    if unknown:
        raise UsageError(f"experiments has {', '.join(unknown)}; the store has {', '.join(known)}")
    return client, [known[name] for name in settings.experiments] or list(known.values())
