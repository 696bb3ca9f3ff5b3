"""What a run will take, from the rows that earlier runs of the output have measured."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, read_parquet


def measured_seconds(output: Dataset) -> dict[str, float]:
    """Settings hash -> seconds of a worker a row, model loading left out, as the logs of earlier runs have it."""
    folder = output.location.child("log")
    logs = [read_parquet(folder.child(name)) for name in folder.names(".parquet")]
    rows: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for log in logs:
        if "paint_s" not in log.column_names:
            continue
        for entry in log.select(["settings_hash", "rows", "paint_s"]).to_pylist():
            rows[entry["settings_hash"]] += entry["rows"]
            seconds[entry["settings_hash"]] = seconds.get(entry["settings_hash"], 0.0) + entry["paint_s"]
    return {name: total / rows[name] for name, total in seconds.items() if rows[name]}


def estimate(output: Dataset, plan: Plan, todo: Sequence[str]) -> dict[str, Any]:
    """Rows planned, done and to be made now by engine, and the hours of one worker (one GPU where it has one whole)
    that these take; what was never measured is said to be unknown."""
    known = measured_seconds(output)
    made_now = set(todo)
    planned: Counter[tuple[str, str]] = Counter()
    now: Counter[tuple[str, str]] = Counter()
    for shard in plan.shard_names:
        members = plan.members(shard)
        kind = (members["engine"][0].as_py(), members["settings_hash"][0].as_py())
        planned[kind] += members.num_rows
        now[kind] += members.num_rows * (shard in made_now)
    said: dict[str, Any] = {}
    hours = {kind: known[kind[1]] * rows / 3600 for kind, rows in now.items() if kind[1] in known}
    for kind, rows in now.items():
        if rows:
            time = "time unknown until the first shards"
            if kind in hours:
                time = f"{known[kind[1]]:.2f} s a row, {hours[kind]:.2f} worker-hours"
            said[kind[0]] = f"{rows} of {planned[kind]} rows now; {time}"
    unknown = any(rows and kind not in hours for kind, rows in now.items())
    total = f"{sum(hours.values()):.2f}"
    return said | {
        "rows": sum(now.values()),
        "worker_hours": total if not unknown else f"{total} and an unknown part" if hours else "unknown",
    }
