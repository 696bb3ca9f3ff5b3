"""The Ray side of "plan, then run": pending shards go through Ray Data, each file appears when its rows are done.

One mechanism for ingest, synthesize and embed. What a stage does with one shard is a plain object (`ShardTask`) that
also runs without Ray (`run_shard`). On GPUs the three steps run apart, so that decoding and encoding never hold a GPU;
without GPUs one worker does all three, which saves moving the pictures between processes.
"""

import pickle
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from nearid_ray import cluster
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, Location, parquet_bytes, read_parquet
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.watching import ModelShare, Watchdog, count_rows, device_name, progress, traced
from schemas import TABLES

_DEATHS = 6
"""So often processes may die at a piece of work, or their nodes, before the job ends; Ray Data would try for ever. Its
own limits on retries do not serve: each try to reach a process on a dead node counts there."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a plan is run; nothing here changes what is written."""

    workers: int | None = None
    """Size of the actor pool; by default one a GPU, or one a CPU where there is no GPU."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: float | None = None
    """GPUs that Ray reserves for a worker, fractions allowed; by default 1 where the cluster has GPUs and the stage a
    model, else 0."""
    retry_errors: bool = False
    """Make the shards again that hold rows with an error."""
    max_error_share: float = 0.01
    """The job ends with exit code 1 when a larger share of all rows has an error; 0 to 1."""
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    profile: int = 0
    """Shards of each worker whose model part is traced, into OUTPUT/profile (for chrome://tracing); 0 traces none."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected at least 1")
        if self.cpus_per_worker < 0:
            raise ValueError(f"cpus_per_worker is {self.cpus_per_worker}; expected 0 or more")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}; expected 0 or more")
        if self.profile < 0:
            raise ValueError(f"profile is {self.profile}; expected 0 or more")
        if not 0 <= self.max_error_share <= 1:
            raise ValueError(f"max_error_share is {self.max_error_share}; expected a share from 0 to 1")


@dataclass(frozen=True)
class ShardResult:
    """What a shard becomes: its rows in the contract's schema, and further files by their path in the dataset."""

    table: pa.Table
    files: dict[str, bytes | pa.Buffer] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    """What the run's log says of it besides (times); every shard of a task gives the same names."""


class ShardTask(Protocol):
    """What a stage does with one shard. Objects are pickled to the workers before `setup`.

    One work row gives one output row, in order; a row that fails becomes a row with `error`, it does not raise. Where
    the work list has a column `rows`, a work row stands for so many output rows.
    """

    @property
    def uses_model(self) -> bool:
        """Whether `compute` wants a GPU where the cluster has any."""

    def setup(self) -> None:
        """Once a worker, before the first `compute`: load the model."""

    def prepare(self, work: pa.Table) -> Any:
        """Read and decode what the rows need (CPU)."""

    def compute(self, prepared: Any) -> Any:
        """Run the model (GPU where there is one)."""

    def finish(self, work: pa.Table, computed: Any) -> ShardResult:
        """Check and encode (CPU)."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did and how the dataset stands now."""

    rows: int
    """Rows in the dataset."""
    rows_made: int
    """Rows made by this run."""
    rows_before: int
    """Rows that were done before."""
    errors: int
    """Rows with an error, in the whole dataset."""
    shards_made: int
    seconds: float
    """Time spent making shards, start of the workers included."""
    max_error_share: float
    error_examples: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether too many rows have an error."""
        return self.rows > 0 and self.errors / self.rows > self.max_error_share


def output_rows(work: pa.Table) -> int:
    """How many rows the work rows become: one each, or as many as their column `rows` says."""
    return (pc.sum(work["rows"]).as_py() or 0) if "rows" in work.column_names else work.num_rows


def run_shard(task: ShardTask, output: Dataset, shard: str, work: pa.Table) -> pa.Table:
    """Make one shard without Ray: side files first, the Parquet file, which marks the shard as done, last."""
    return _write(output, shard, work, task.finish(work, task.compute(task.prepare(work))))


def run_plan(task: ShardTask, output: Dataset, plan: Plan, settings: RunSettings, *, title: str) -> RunSummary:
    """Make the plan's pending shards on Ray Data and count what is there now. Needs a Ray session."""
    pending = shards_to_make(output, plan, settings)
    shards = [plan.members(shard) for shard in pending]
    planned = sum(map(output_rows, shards))
    began = time.monotonic()
    if shards:
        cluster.check_shared(output.location)
        workers, gpus = _placement(task, settings, len(shards))
        records = _run_on_ray(task, output, shards, workers, gpus, settings, title)
        _write_log(output.location, records)
    seconds = time.monotonic() - began
    rows, errors = output.count_errors()
    return RunSummary(
        rows=rows,
        rows_made=planned,
        rows_before=rows - planned,
        errors=errors,
        shards_made=len(shards),
        seconds=seconds,
        max_error_share=settings.max_error_share,
        error_examples=_error_examples(output) if errors else (),
    )


def shards_to_make(output: Dataset, plan: Plan, settings: RunSettings) -> list[str]:
    """Names of the shards that a run with these settings makes; with none, it needs no Ray session."""
    if not settings.retry_errors:
        return list(plan.pending)
    return sorted({*plan.pending, *(name for name in _shards_with_errors(output) if plan.is_chosen(name))})


def _run_on_ray(
    task: ShardTask,
    output: Dataset,
    shards: Sequence[pa.Table],
    workers: int,
    gpus: float,
    settings: RunSettings,
    title: str,
) -> list[dict[str, Any]]:
    cluster.quiet_ray_data()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a block is a shard; it must not be split between the steps
    context.execution_options.preserve_order = bool(gpus)  # shards of one model stand together: it is loaded once
    pool = ray.data.ActorPoolStrategy(size=workers)
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    dataset: Any = ray.data.from_arrow(list(shards))
    cpus, uri = settings.cpus_per_worker, output.location.uri
    begun = Begun(uuid.uuid4().hex, uri)
    arguments: dict[str, Any] = {"fn_constructor_args": (task, uri, title, settings.profile, begun)}
    if gpus:
        packed = whole | {"batch_size": 1}  # a packed shard is one row
        dataset = dataset.map_batches(_prepare, fn_args=(task, begun), num_cpus=1, **whole)
        dataset = dataset.map_batches(_Compute, compute=pool, num_cpus=cpus, num_gpus=gpus, **arguments, **packed)
        dataset = dataset.map_batches(_finish, fn_args=(task, uri, title, begun), num_cpus=1, **packed)
    else:
        dataset = dataset.map_batches(_WholeShard, compute=pool, num_cpus=cpus, **arguments, **whole)
    records = []
    errors = 0
    total = sum(map(output_rows, shards))
    wanted = f"{workers} worker(s) of {cpus:g} CPU and {gpus:g} GPU"
    with (
        begun,
        Watchdog(title, wanted=wanted) as watchdog,
        progress(total, title) as bar,
    ):
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for record in batch.to_pylist():
                records.append(record)
                watchdog.alive()
                errors += record["errors"]
                bar.update(record["rows"])
                bar.set_postfix(errors=errors, refresh=False)
    return records


class Begun:
    """Counts how often each piece of work is begun, so that one which kills its process does not do so for ever.

    The counts lie in the cluster's key-value store for the time of the block.
    """

    def __init__(self, run: str, uri: str, most: int = _DEATHS) -> None:
        self._prefix, self._uri, self._most = f"nearid-begun/{run}/", uri, most

    def __enter__(self) -> "Begun":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # a cluster that is gone has no counts to remove
            _internal_kv_del(self._prefix, del_by_prefix=True)

    def count(self, step: str, shard: str) -> None:
        """A process begins a shard; StoreError where too many have died at it."""
        key = f"{self._prefix}{step}/{shard}"
        before = int(_internal_kv_get(key) or 0)
        if before >= self._most:
            raise StoreError(
                f"{self._uri}: processes died {before} times at the {step} of shard {shard}. The same command goes on. "
                "If it ends so again, too little memory is likely (lower workers or the rows of a shard), or a picture "
                "that crashes its reader (plan/*.parquet in the output names each shard's rows)"
            )
        _internal_kv_put(key, str(before + 1))


class _Model:
    """The model's part of a shard, seen: its share of the worker's time, and traces where they are asked for."""

    def __init__(self, task: ShardTask, uri: str, title: str, profile: int, begun: Begun) -> None:
        self.task, self.output, self.title, self._begun = task, Dataset(uri), title, begun
        self._share, self._to_trace = ModelShare(title), profile
        task.setup()

    def begin(self, work: pa.Table) -> None:
        self._begun.count("model", _shard_of(work))

    def compute(self, shard: str, prepared: Any) -> Any:
        place = self.output.location.child("profile", f"{shard}.json.gz") if self._to_trace > 0 else None
        self._to_trace -= 1
        with self._share.working(), traced(place):
            return self.task.compute(prepared)


class _WholeShard(_Model):
    _cpu_s = 0.0

    def __call__(self, work: pa.Table) -> pa.Table:
        self.begin(work)
        began, self._cpu_s = time.time(), self._cpu_s or time.process_time()
        computed = self.compute(_shard_of(work), self.task.prepare(work))
        record = _written(self.output, work, self.task.finish(work, computed), began, self.title, device_name())
        before, self._cpu_s = self._cpu_s, time.process_time()  # with what Ray does between two shards
        return record.append_column("cpu_s", pa.array([self._cpu_s - before]))


def _prepare(work: pa.Table, task: ShardTask, begun: Begun) -> pa.Table:
    begun.count("reading", _shard_of(work))
    began = time.time()
    return _packed(work, task.prepare(work), began)


class _Compute(_Model):
    def __call__(self, packed: pa.Table) -> pa.Table:
        work, prepared, began, _ = _unpacked(packed)
        self.begin(work)
        return _packed(work, self.compute(_shard_of(work), prepared), began, device_name())


def _finish(packed: pa.Table, task: ShardTask, uri: str, title: str, begun: Begun) -> pa.Table:
    work, computed, began, device = _unpacked(packed)
    begun.count("writing", _shard_of(work))
    return _written(Dataset(uri), work, task.finish(work, computed), began, title, device)


def _packed(work: pa.Table, value: Any, began: float, device: str = "") -> pa.Table:
    """A shard on its way between steps: one row that holds the work rows and the step's value."""
    data = pickle.dumps((work, value), protocol=5)
    return pa.table({"payload": pa.array([data], pa.large_binary()), "began": [began], "device": [device]})


def _unpacked(packed: pa.Table) -> tuple[pa.Table, Any, float, str]:
    work, value = pickle.loads(packed["payload"][0].as_buffer())
    return work, value, packed["began"][0].as_py(), packed["device"][0].as_py()


def _shard_of(work: pa.Table) -> str:
    names = work["shard"].unique().to_pylist()
    if len(names) != 1:
        raise RuntimeError(f"a block holds the shards {names}; expected exactly one whole shard")
    return names[0]


def _write(output: Dataset, shard: str, work: pa.Table, result: ShardResult) -> pa.Table:
    if result.table.num_rows != output_rows(work):
        raise RuntimeError(f"shard {shard}: {output_rows(work)} rows planned, {result.table.num_rows} rows out")
    for path, data in result.files.items():
        output.location.child(path).write_bytes(data)
    output.shard(shard).write_bytes(parquet_bytes(result.table))
    return result.table


def _written(output: Dataset, work: pa.Table, result: ShardResult, began: float, title: str, device: str) -> pa.Table:
    """Write a shard; what the log says of it, times in seconds since 1970."""
    shard = _shard_of(work)
    table = _write(output, shard, work, result)
    errors = pc.sum(pc.not_equal(table["error"], "")).as_py() or 0
    count_rows(title, table.num_rows, errors)
    record = {"shard": shard, "rows": table.num_rows, "errors": errors, "began": began, "ended": time.time()}
    where = {"node": ray.get_runtime_context().get_node_id(), "device": device}
    return pa.Table.from_pylist([record | where | result.log])


def _placement(task: ShardTask, settings: RunSettings, shards: int) -> tuple[int, float]:
    """(workers, GPUs a worker), refused with the arithmetic where the cluster cannot hold them."""
    cpus, cluster_gpus = cluster.resources()
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if task.uses_model and cluster_gpus >= 1 else 0.0
    spare = 1.0 if gpus else 0.0  # decoding and encoding need a CPU beside the pool
    by_cpu = (cpus - spare) / settings.cpus_per_worker if settings.cpus_per_worker else float("inf")
    room = int(min(by_cpu, cluster_gpus / gpus if gpus else float("inf"), 1e6))
    workers = settings.workers or max(1, min(room, shards))
    if workers > room and settings.workers and cluster.grows():
        print(
            f"the cluster has {cpus:g} CPU and {cluster_gpus:g} GPU now; its autoscaler is asked for {workers} "
            f"worker(s) of {settings.cpus_per_worker:g} CPU and {gpus:g} GPU",
            flush=True,
        )
    elif workers > room:
        grows = " Its autoscaler does not tell how far it grows: say how many with workers." if cluster.grows() else ""
        needed = f"{workers * settings.cpus_per_worker + spare:g} CPU and {workers * gpus:g} GPU"
        raise UsageError(
            f"{workers} worker(s) of {settings.cpus_per_worker:g} CPU and {gpus:g} GPU need {needed}; the cluster has "
            f"{cpus:g} CPU and {cluster_gpus:g} GPU. Lower workers, cpus_per_worker or gpus_per_worker.{grows}"
        )
    return min(workers, shards), gpus


def _shards_with_errors(output: Dataset) -> Iterator[str]:
    for shard in output.shards():
        errors = read_parquet(output.shard(shard), columns=["error"])["error"]
        if pc.any(pc.not_equal(errors, "")).as_py():
            yield shard


def _error_examples(output: Dataset, most: int = 3) -> tuple[str, ...]:
    table = TABLES.get((output.settings() or {}).get("table", ""))
    key = list(table.key[:1]) if table else []
    rows = output.read(columns=[*key, "error"], where=pc.field("error") != "").slice(0, 100 * most).to_pylist()
    return tuple(dict.fromkeys(": ".join(map(str, row.values())) for row in rows))[:most]


def _write_log(place: Location, records: list[dict[str, Any]]) -> None:
    """Times belong here, never into the data: the data's bytes follow from the plan alone."""
    if records:
        name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        place.child("log", f"{name}.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(records)))
