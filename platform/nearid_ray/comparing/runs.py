"""Finding runs, in MLflow or as output folders, and what they left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.evaluation.measures import MEASURES_FILE, Measure, from_csv, read_measures

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MOST = 50
"""Runs that a search may bring together."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, from wherever it was found."""

    name: str
    run_id: str = ""
    """MLflow's id; empty for a folder."""
    job: str = ""
    status: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Last values."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Metric -> (step, value) of metrics with more than one step."""
    output: str = ""
    measures: list[Measure] = field(default_factory=list)
    """Of an evaluation; empty for other jobs."""


def folder_run(uri: str) -> Run:
    """The run that an output folder tells of.

    Raises:
        UsageError: the folder is no output of a job.
    """
    place = locate(uri)
    summary = Dataset(place).read_json("summary.json")
    if summary is None:
        raise UsageError(f"{uri} is neither a run's id or name nor an output folder of a job (no summary.json)")
    metrics = {name: float(value) for name, value in summary.items() if _is_number(value)}
    kept = Dataset(place).read_json("metrics.json") or Dataset(place).settings() or {}
    settings = dict(_flat(kept.get("settings") or kept.get("content") or {}))
    return Run(
        name="/".join(place.path.rstrip("/").split("/")[-2:]),
        run_id=str(summary.get("mlflow_run", "")),
        job=str(summary.get("job", "")),
        settings=settings,
        metrics=metrics,
        output=place.uri,
        measures=_measures_at(place),
    )


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings with the names of the sections that they stand in, as a head's `runs.NAME.alpha`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", str(value)


def find_runs(client: Any, experiments: Sequence[str], names: Sequence[str], search: str = "") -> list[Run]:
    """Runs by id, by name or by folder, in the order given, then those that a search finds, without doubles.

    Args:
        client: an `mlflow.MlflowClient`; None where there is no store, folders are found all the same.
        experiments: ids of the experiments in which names are looked up.
        names: run ids, run names (the latest of several with one name is refused, the ids are told), or folders.
        search: MLflow's filter, e.g. "tags.job = 'evaluate' and params.split = 'test'".

    Raises:
        UsageError: nothing or several runs answer to a name, or the search is none or finds none.
    """
    found = [_one(client, experiments, name) for name in names]
    if search:
        if client is None:
            raise UsageError("search needs an MLflow store; give --tracking-uri")
        from mlflow.exceptions import MlflowException

        try:
            runs = client.search_runs(list(experiments), filter_string=search, max_results=_MOST)
        except MlflowException as error:
            raise UsageError(f"search {search!r}: {error}; expected e.g. \"tags.job = 'evaluate'\"") from error
        if not runs:
            raise UsageError(f"search {search!r} finds no run")
        found += [_of_mlflow(client, run) for run in runs]
    by_key = {run.run_id or run.output: run for run in found}
    return list(by_key.values())


def _one(client: Any, experiments: Sequence[str], name: str) -> Run:
    place = locate(name) if "/" in name or "://" in name else None
    if place is not None and place.child("summary.json").exists():
        return folder_run(name)
    if client is not None:
        from mlflow.exceptions import MlflowException

        if _RUN_ID.fullmatch(name):
            try:
                return _of_mlflow(client, client.get_run(name))
            except MlflowException as error:
                raise UsageError(f"there is no run with the id {name} in this MLflow store") from error
        quoted = name.replace("'", "\\'")
        runs = client.search_runs(
            list(experiments), filter_string=f"attributes.run_name = '{quoted}'", max_results=_MOST
        )
        if len(runs) > 1:
            told = "; ".join(f"{run.info.run_id} ({run.info.status.lower()})" for run in runs[:5])
            raise UsageError(f"{len(runs)} runs have the name {name!r}; give the id of one: {told}")
        if runs:
            return _of_mlflow(client, runs[0])
        known = sorted({run.info.run_name for run in client.search_runs(list(experiments), max_results=_MOST)})
        raise UsageError(
            f"no run has the id or name {name!r}, and it is no output folder; the store has "
            + (", ".join(map(repr, known)) or "no runs")
        )
    return folder_run(name)


def _of_mlflow(client: Any, run: Any) -> Run:
    output = run.data.tags.get("output", "")
    curves = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        points = sorted({(point.step, point.value) for point in history})
        if len({step for step, _ in points}) > 1:
            curves[name] = points
    return Run(
        name=run.info.run_name or run.info.run_id,
        run_id=run.info.run_id,
        job=run.data.tags.get("job", ""),
        status=run.info.status,
        settings=dict(run.data.params),
        metrics=dict(run.data.metrics),
        curves=curves,
        output=output,
        measures=_measures_of(client, run, output),
    )


def _measures_of(client: Any, run: Any, output: str) -> list[Measure]:
    """From MLflow where the run has them, else from its output folder where that can be read."""
    if any(file.path == MEASURES_FILE for file in client.list_artifacts(run.info.run_id)):
        import mlflow.artifacts

        address = f"runs:/{run.info.run_id}/{MEASURES_FILE}"
        text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{MEASURES_FILE}")
        return from_csv(text, address)
    return _measures_at(locate(output)) if output else []


def _measures_at(place: Location) -> list[Measure]:
    try:
        return read_measures(place)  # of an earlier version's evaluation they are made anew from its records
    except (OSError, StoreError, UsageError):
        return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
