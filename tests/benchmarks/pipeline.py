#!/usr/bin/env python3
"""Rows a second of synthesize and embed on Ray beside the same work in a bare loop, in one run.

python tests/benchmarks/pipeline.py --identities 400

The bare loop is one process that does shard after shard with the same plain functions and no Ray. `work` is the time
in which shards are made: from the first worker's first shard to the last shard's end; `total` includes Ray's start of
workers.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

from nearid_ray.cluster import ray_session, resources
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest, plan_ingest
from nearid_ray.data.pipeline import RunSettings, ShardTask, run_plan, run_shard
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors, synthesize

Make = Callable[[Dataset], tuple[ShardTask, Plan]]


def bare(make: Make, output: Dataset) -> float:
    """Rows a second of one process without Ray, the model's loading left out."""
    task, plan = make(output)
    task.setup()
    first, *rest = plan.pending
    run_shard(task, output, first, plan.members(first))  # warm: the engine or backbone is loaded now
    rows = sum(plan.members(shard).num_rows for shard in rest)
    began = time.perf_counter()
    for shard in rest:
        run_shard(task, output, shard, plan.members(shard))
    return rows / (time.perf_counter() - began)


def on_ray(make: Make, output: Dataset, workers: int) -> tuple[float, float]:
    """(rows a second while shards are made, rows a second start-up included) on Ray."""
    task, plan = make(output)
    summary = run_plan(task, output, plan, RunSettings(workers=workers), title=f"{workers} worker(s)")
    log = read_parquet(output.location.child("log", output.location.child("log").names()[-1]))
    began, ended = min(log["began"].to_pylist()), max(log["ended"].to_pylist())
    return plan.rows.num_rows / (ended - began), summary.rows_made / summary.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=400, help="toy identities to work on")
    identities = parser.parse_args().identities
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        tuples, distractors = Dataset(f"{scratch}/tuples"), Dataset(f"{scratch}/distractors")
        importer = ToyboxImporter(ToyboxSettings(train_identities=identities, val_identities=0, test_identities=0))
        ingest(importer, tuples, plan_ingest(importer, tuples), RunSettings())
        settings = SynthesisSettings(engines=("toybox:train",), rows_per_shard=128)
        synthesize(tuples, distractors, plan_distractors(tuples, distractors, settings), settings, RunSettings())

        def make_synthesis(output: Dataset) -> tuple[ShardTask, Plan]:
            plan = plan_distractors(tuples, output, settings)
            return make_task(tuples, plan, settings), plan

        def make_embedding(output: Dataset) -> tuple[ShardTask, Plan]:
            settings, run = EmbedSettings(masked=False), RunSettings()
            planned = plan_embedding("tokens", tuples.location.uri, distractors.location.uri, output, settings, run)
            return planned.task, planned.plan

        cpus, gpus = resources()
        lines = [f"toy rows; {cpus:g} CPU, {gpus:g} GPU; rows a second"]
        heads = ("bare loop", "Ray x1 work", "/ bare", "Ray x2 work", "/ bare", "x2 total")
        lines += [f"{'stage':<12}" + "".join(f"{head:>13}" for head in heads)]
        for name, make in (("synthesize", make_synthesis), ("embed", make_embedding)):
            alone = bare(make, Dataset(f"{scratch}/{name}-bare"))
            one, _ = on_ray(make, Dataset(f"{scratch}/{name}-ray1"), 1)
            two, total = on_ray(make, Dataset(f"{scratch}/{name}-ray2"), min(2, int(cpus)))
            values = (alone, one, one / alone, two, two / alone, total)
            lines.append(f"{name:<12}" + "".join(f"{v:>13.2f}" if v < 10 else f"{v:>13.0f}" for v in values))
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
