"""What a run will take, from the rows that earlier runs of the output have measured."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

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
    counts: dict[tuple[str, str], Counter[str]] = {}
    kinds: pa.Table = plan.rows.group_by(["engine", "settings_hash", "shard"], use_threads=False).aggregate(
        [([], "count_all")]
    )
    made_now = set(todo)
    for row in kinds.to_pylist():
        count = counts.setdefault((row["engine"], row["settings_hash"]), Counter())
        count["planned"] += row["count_all"]
        count["now"] += row["count_all"] * (row["shard"] in made_now)
    said: dict[str, Any] = {}
    hours, unknown = 0.0, False
    for (engine, hash_), count in counts.items():
        if not count["now"]:
            continue
        text = f"{count['now']} of {count['planned']} rows now"
        if hash_ in known:
            own = known[hash_] * count["now"] / 3600
            hours += own
            text += f"; {known[hash_]:.2f} s a row, {own:.2f} worker-hours"
        else:
            unknown = True
            text += "; time unknown until the first shard"
        said[engine] = text
    said["rows"] = sum(count["now"] for count in counts.values())
    said["worker_hours"] = f"{hours:.2f}" + (" and what is unknown" if unknown else "")
    return said
