#!/usr/bin/env python3
"""What synthesis on Ray costs beside its engine, with an engine that sleeps as long as a model would take.

python tests/benchmarks/synthesis.py rates
python tests/benchmarks/synthesis.py memory --rows 20000

rates: rows a second of a bare loop (one process, no Ray) and of 1, 2, 4 and 8 actors, each batch taking `--batch-s`.
The sleep stands for a model's time on a GPU of its own: so eight actors can be tried on two cores. `/ bare` is the rate
a worker in relation to the bare loop's; start of the workers left out.

memory: memory of driver and workers (resident, without what is shared), and what Ray's object store holds and has
spilled, while so many rows of 512 x 512 pixels are made; with `--simulated-gpus` by the steps apart.
"""

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary

from nearid_ray.cluster import ray_session
from nearid_ray.data.images import encode_png
from nearid_ray.data.pipeline import RunSettings, run_plan, run_shard
from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, parquet_bytes, read_parquet
from nearid_ray.identifiers import content_hash
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors
from schemas import TUPLES, VIEW

VIEWS = 5


def write_tuples(folder: Path, identities: int, size_px: int = 512) -> Dataset:
    """Identities of five views each: gradients of another shade a view, so that pictures are small files."""
    output = Dataset(folder)
    names = [f"bench:{number:06d}" for number in range(identities)]
    plan = make_plan(
        output, pa.table({"row_id": names}), table="tuples", content={"bench": size_px}, rows_per_shard=100
    )
    y, x = np.mgrid[:size_px, :size_px]
    ground_HW3 = (np.stack([x, y, x + y], 2) * 100 // size_px).astype(np.uint8)
    mask = np.zeros((size_px, size_px), np.uint8)
    mask[size_px // 3 : 2 * size_px // 3, size_px // 3 : 2 * size_px // 3] = 255
    mask_png = encode_png(mask)
    empty = {pa.string(): "", pa.int32(): 0, pa.float32(): 0.0, pa.bool_(): False}
    for shard in plan.pending:
        rows = []
        for name in plan.members(shard)["row_id"].to_pylist():
            views = []
            for index in range(VIEWS):
                number = int(name[-6:]) * VIEWS + index
                shade = np.array([number % 251, number // 251 % 251, number // 251 // 251], np.uint8)
                png = encode_png(ground_HW3 + shade)
                filled = {f.name: None if f.nullable else empty.get(f.type, "") for f in VIEW}
                views.append(filled | {
                    "view_id": content_hash(png), "image": {"bytes": png, "path": "v.png"}, "size_px": size_px,
                    "mask": {"bytes": mask_png, "path": "m.png"}, "mask_area": 1 / 9, "mask_touches_border": False,
                    "provenance": "{}", "error": "", "mask_source": "exact",
                })  # fmt: skip
            filled = {f.name: None if f.nullable else empty.get(f.type, "") for f in TUPLES.fields}
            own = {"identity_id": name, "views": views, "split": "test", "source": "bench", "provenance": "{}"}
            rows.append(filled | own)
        output.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=TUPLES.schema)))
    return output


def settings_of(batch_s: float) -> SynthesisSettings:
    """Both simulated engines: two rows a view."""
    names = ("sleeping-1", "sleeping-2")
    return SynthesisSettings(
        engines=names,
        engine_options=tuple(f"{name}.batch_s={batch_s}" for name in names),
        engine_batch=8,
        rows_per_shard=16,
    )


def bare_rate(tuples: Dataset, folder: Path, settings: SynthesisSettings, shards: int) -> float:
    """Rows a second of one process without Ray, over some of the shards."""
    output = Dataset(folder)
    plan = plan_distractors(tuples, output, settings)
    task = make_task(tuples, plan, settings)
    task.setup()
    began, rows = time.perf_counter(), 0
    for shard in plan.pending[:shards]:
        rows += run_shard(task, output, shard, plan.members(shard)).num_rows
    return rows / (time.perf_counter() - began)


def ray_rate(tuples: Dataset, folder: Path, settings: SynthesisSettings, workers: int) -> tuple[float, float]:
    """(rows a second from the first shard's beginning to the last one's end, share of that in the engine)."""
    output = Dataset(folder)
    plan = plan_distractors(tuples, output, settings)
    run = RunSettings(workers=workers, cpus_per_worker=1.0)
    run_plan(make_task(tuples, plan, settings), output, plan, run, title=f"{workers} actor(s)")
    folder_ = output.location.child("log")
    log = read_parquet(folder_.child(folder_.names()[-1]))
    seconds = max(log["ended"].to_pylist()) - min(log["began"].to_pylist())
    return plan.rows.num_rows / seconds, sum(log["paint_s"].to_pylist()) / seconds / workers


def rates(arguments: argparse.Namespace, scratch: Path) -> list[str]:
    settings = settings_of(arguments.batch_s)
    tuples = write_tuples(scratch / "tuples", arguments.rows // VIEWS // 2, arguments.size_px)
    alone = bare_rate(tuples, scratch / "bare", settings, shards=arguments.rows // 16 // 4)
    lines = [f"{arguments.rows} rows of {arguments.size_px} px, a batch of 8 takes {arguments.batch_s} s (a sleep)"]
    lines += [f"{'':<12}{'rows a second':>15}{'/ bare':>10}{'/ one actor':>13}", f"{'bare loop':<12}{alone:>15.2f}"]
    with ray_session(num_cpus=max(arguments.actors)):
        one = 0.0
        for workers in arguments.actors:
            rate, _ = ray_rate(tuples, scratch / f"ray{workers}", settings, workers)
            one = one or rate
            lines.append(f"{f'{workers} actor(s)':<12}{rate:>15.2f}{rate / alone / workers:>10.3f}{rate / one:>13.2f}")
    return lines


def private(process: psutil.Process) -> int:
    """Bytes that are the process's own: without the object store, which all processes map."""
    memory = process.memory_info()
    return memory.rss - memory.shared


@contextmanager
def watched(output: Path, every_s: float) -> Iterator[list[tuple[float, int, float, float, float, float]]]:
    """While the block runs: (seconds, shards done, MiB of the driver, of the largest worker, in the store, spilled)."""
    seen: list[tuple[float, int, float, float, float, float]] = []
    stop, began = threading.Event(), time.monotonic()

    def look() -> None:
        while not stop.wait(every_s):
            me = psutil.Process()
            workers = [0]
            for process in me.children(recursive=True):
                try:
                    if "MapWorker" in " ".join(process.cmdline()):
                        workers.append(private(process))
                except psutil.Error:
                    continue
            text = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
            used, spilled = (re.search(rf"{word} (?:memory usage )?(\d+) MiB", text) for word in ("Plasma", "Spilled"))
            done = len(list((output / "data").glob("*.parquet")))
            mib = 1 << 20
            seen.append((
                time.monotonic() - began, done, private(me) / mib, max(workers) / mib,
                float(used[1]) if used else 0.0, float(spilled[1]) if spilled else 0.0,
            ))  # fmt: skip
            print("  {:7.0f} s {:6d} shards  driver {:6.0f}  worker {:6.0f}  store {:6.0f}  spilled {:6.0f} MiB".format(
                *seen[-1]), flush=True)  # fmt: skip

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def memory(arguments: argparse.Namespace, scratch: Path) -> list[str]:
    settings = settings_of(arguments.batch_s)
    tuples = write_tuples(scratch / "tuples", arguments.rows // VIEWS // 2, arguments.size_px)
    output = Dataset(scratch / "out")
    plan = plan_distractors(tuples, output, settings)
    gpus = arguments.simulated_gpus
    if gpus:  # decoding, painting and encoding are then apart, and pictures go through Ray's object store
        ray.init("local", num_cpus=4, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    with ray_session(num_cpus=arguments.workers), watched(scratch / "out", arguments.every_s) as seen:
        run = RunSettings(workers=gpus or arguments.workers, gpus_per_worker=1.0 if gpus else 0.0)
        summary = run_plan(make_task(tuples, plan, settings), output, plan, run, title="memory")
    warm = [entry for entry in seen if entry[1] >= len(plan.pending) // 10]
    lines = [f"{summary.rows} rows of {arguments.size_px} px, {summary.errors} errors, {summary.seconds:.0f} s"]
    for place, name in ((2, "driver"), (3, "largest worker"), (4, "object store")):
        values = [entry[place] for entry in warm]
        lines.append(
            f"{name:<16}after a tenth {values[0]:8.0f} MiB, at the end {values[-1]:8.0f}, most {max(values):8.0f}"
        )
    return [*lines, f"spilled         {seen[-1][5]:8.0f} MiB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "memory"))
    parser.add_argument("--rows", type=int, default=640, help="rows to make")
    parser.add_argument("--size-px", type=int, default=512, help="side of the pictures")
    parser.add_argument("--batch-s", type=float, default=None, help="seconds that a batch of 8 sleeps")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8], help="sizes of the pool to try")
    parser.add_argument("--workers", type=int, default=2, help="actors of the memory run")
    parser.add_argument("--simulated-gpus", type=int, default=0, help="GPUs that Ray is told to have, for memory")
    parser.add_argument("--every-s", type=float, default=20.0, help="seconds between two looks at the memory")
    parser.add_argument("--scratch", default=None, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    if arguments.batch_s is None:
        arguments.batch_s = 0.2 if arguments.what == "rates" else 0.01
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        made = (rates if arguments.what == "rates" else memory)(arguments, Path(scratch))
    print("\n" + "\n".join(made))


if __name__ == "__main__":
    main()
