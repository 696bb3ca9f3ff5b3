"""The Ray Train side of training: one group of workers that trains one head after the other.

The loop itself is `HeadTraining` and knows nothing of Ray. Here its workers are started, its states become Ray Train
checkpoints, lost workers are replaced and go on from the last of them, and results come back to the driver.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from pyarrow.fs import FileSystem
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from nearid_ray.data.store import Location, locate
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.models.checkpoint import load_head
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining, HistoryRow, check_resumable
from nearid_ray.training.outputs import TrainedHead
from nearid_ray.training.pool import Workers
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.state import load_state, save_state
from nearid_ray.training.tokens import Cache

OpenCache = Callable[[str], Cache]
OnRow = Callable[[str, HistoryRow, int], None]

_CURRENT = "current.pt"

# Ray Train's controller looks for news from the workers this often; the default of 2 s is what a report costs at worst.
_POLL_S = "0.2"


def open_token_cache(uri: str) -> Cache:
    """The token cache that `embed` wrote; one on S3 is copied to this machine's disk first."""
    return TokenCache.open(uri)


def initial_head(cache: Cache, head_uri: str | None = None) -> AttentionPoolingHead:
    """The head training starts from: the backbone's own, or one that `save_head` wrote for the same backbone."""
    if head_uri is None:
        return AttentionPoolingHead.from_state_dict(
            cache.head_state(), cache.backbone["heads"], cache.backbone["layer_norm_eps"]
        )
    return load_head(head_uri, cache.backbone["fingerprint"])[0]


def print_progress(name: str, row: HistoryRow, steps: int) -> None:
    """One line for each validation."""
    if row.val_ssr is None or row.val_pa is None:
        return
    loss = "" if row.loss is None else f"  loss {row.loss:.4f}"
    print(f"{name}: step {row.step}/{steps}{loss}  val SSR {row.val_ssr:.1%}  PA {row.val_pa:.1%}", flush=True)


def train_many(
    runs: Mapping[str, TrainSettings],
    *,
    cache_uri: str,
    storage: str | Location,
    name: str,
    head_uri: str | None = None,
    where: WorkerSettings | None = None,
    open_cache: OpenCache = open_token_cache,
    on_row: OnRow | None = print_progress,
) -> dict[str, TrainedHead]:
    """Train a head for each settings, one after the other, in one group of Ray Train workers.

    Called again with the same storage and name it goes on where it stopped, and does nothing for what is finished.

    Args:
        runs: settings by a name of the run.
        cache_uri: token cache, at a place every worker sees.
        storage: absolute path or URI under which checkpoints are kept, likewise.
        name: name of the whole; checkpoints of another list of runs under this name are refused.
        head_uri: folder of the head to start from (`save_head`), likewise; the backbone's own when left out.
        where: number and kind of workers.
        open_cache: opens `cache_uri` on driver and workers.
        on_row: called on the first worker with (run's name, row, number of steps) after every step.

    Raises:
        UsageError: settings, cache and head do not fit each other, or not the checkpoints under `name`.
        FloatingPointError: a loss or gradient was not finite.
        ray.train.TrainingFailedError: workers failed more often than allowed.
    """
    where = where or WorkerSettings()
    place = storage if isinstance(storage, Location) else locate(storage)
    if not runs:
        raise UsageError("there is nothing to train: no settings were given")
    path = place.path if not place.is_local else str(Path(place.path).absolute())
    filesystem = None if place.is_local else place.filesystem
    origins = check_runs(runs, open_cache(cache_uri), head_uri)
    done = _held(_last_checkpoint(f"{path}/{name}", filesystem), runs, origins)[0]
    if len(done) == len(runs):
        return {run: TrainedHead.of(run, settings, done[run]) for run, settings in runs.items()}
    _check_cpus(where)
    gpu = where.gpu if where.gpu is not None else ray.cluster_resources().get("GPU", 0) >= where.workers
    config = {
        "runs": dict(runs),
        "origins": origins,
        "cache_uri": cache_uri,
        "head_uri": head_uri,
        "threads": where.threads,
        "open_cache": open_cache,
        "on_row": on_row,
    }
    trainer = _Trainer(
        _train_worker,  # type: ignore[arg-type]
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=where.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": where.threads, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=where.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    with _ray_train_environment():
        result = trainer.fit()
    problem = result.return_value  # type: ignore[attr-defined]
    if problem:
        kind, message = problem
        raise (UsageError if kind == "usage" else FloatingPointError)(message)
    states = _held(result.checkpoint, runs, origins)[0]
    return {run: TrainedHead.of(run, settings, states[run]) for run, settings in runs.items()}


def check_runs(runs: Mapping[str, TrainSettings], cache: Cache, head_uri: str | None = None) -> dict[str, str]:
    """The origin of each run (data, settings and start as one name), found on the driver alone.

    Raises:
        UsageError: what would fail on all workers: settings, cache and head do not fit each other.
    """
    origins = {}
    for name, settings in runs.items():
        if not name or "/" in name:
            raise UsageError(f"{name!r} cannot name a run; give a name without slashes")
        origins[name] = HeadTraining(initial_head(cache, head_uri), cache, settings).origin
    return origins


def _check_cpus(where: WorkerSettings) -> None:
    """Refuse what a machine that nothing joins can never start; Ray would wait for ever."""
    if not ray.is_initialized() or not _session_is_private():
        return
    available = ray.cluster_resources().get("CPU", 0)
    if where.workers * where.threads > available:
        raise UsageError(
            f"{where.workers} workers x {where.threads} CPUs are more than the {available:g} of this Ray session; "
            "lower workers or threads"
        )


def _train_worker(config: dict[str, Any]) -> tuple[str, str] | None:
    """One worker's part. Mistakes that a new try would repeat are returned, for Ray retries what is raised."""
    try:
        _train_all(config)
    except UsageError as error:
        return "usage", str(error)
    except FloatingPointError as error:
        return "number", str(error)
    return None


def _train_all(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    # Ray Train announces every report by a logger outside its own hierarchy, which its log level does not reach.
    logging.getLogger().setLevel(logging.WARNING)
    cache, on_row = config["open_cache"](config["cache_uri"]), config["on_row"]
    workers, device = Workers.current(), get_device()
    finished, current = _held(ray.train.get_checkpoint(), config["runs"], config["origins"])
    for name, settings in config["runs"].items():
        if name in finished:
            continue
        head = initial_head(cache, config["head_uri"])
        training = HeadTraining(head, cache, settings, workers=workers, device=device)
        if current and current["name"] == name:
            training.restore(current["state"])
        for row in training.run():
            if on_row is not None and workers.rank == 0:
                on_row(name, row, training.steps)
            if not training.checkpoint_due:
                continue
            state, current = training.state(), None
            if training.step == training.steps:
                finished[name] = {key: value for key, value in state.items() if key != "optimizer"}
            else:
                current = {"name": name, "state": state}
            _report(finished, current, row, workers)


def _report(
    finished: dict[str, dict[str, Any]], current: dict[str, Any] | None, row: HistoryRow, workers: Workers
) -> None:
    """Register a checkpoint. Every worker must call it; the first one writes."""
    metrics = {"step": row.step, "loss": row.loss, "val_ssr": row.val_ssr, "val_pa": row.val_pa}
    if workers.rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, state) in enumerate(finished.items()):
            save_state(Path(folder, f"finished-{place:03}.pt"), {"name": name, "state": state})
        if current is not None:
            save_state(Path(folder, _CURRENT), current)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _held(
    checkpoint: Checkpoint | None, runs: Mapping[str, TrainSettings], origins: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """(states of finished runs by name, the interrupted run or None) that a checkpoint holds.

    Raises:
        UsageError: it holds a run that is not among `runs`, or one with other settings or of another origin.
    """
    if checkpoint is None:
        return {}, None
    with checkpoint.as_directory() as folder:
        held = [load_state(path) for path in sorted(Path(folder).glob("finished-*.pt"))]
        path = Path(folder, _CURRENT)
        current = load_state(path) if path.exists() else None
    for entry in [*held, *([current] if current else [])]:
        if entry["name"] not in runs:
            raise UsageError(
                f"the checkpoints are of other runs: they hold {entry['name']!r}, wanted are {sorted(runs)}; use a new "
                "output folder"
            )
        check_resumable(entry["state"], runs[entry["name"]], origins[entry["name"]])
    return {entry["name"]: entry["state"] for entry in held}, current


def _last_checkpoint(path: str, filesystem: FileSystem | None) -> Checkpoint | None:
    """The last checkpoint that an earlier call left, if any."""
    try:
        return ray.train.Result.from_path(path, storage_filesystem=filesystem).checkpoint
    except RuntimeError:  # no such folder, or nothing registered in it
        return None


class _Trainer(TorchTrainer):
    """TorchTrainer without the helpers that a session of one program has no use for.

    Each costs a process of 2 to 3 s of start-up: one serves datasets (there are none here), one frees resources when
    the controller dies (which ends a private session anyway; without a dashboard it only prints errors).
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if _session_is_private() else set())
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


def _session_is_private() -> bool:
    """Whether this program started Ray itself, on one machine."""
    return not os.environ.get("RAY_ADDRESS") and (not ray.is_initialized() or len(ray.nodes()) == 1)


@contextmanager
def _ray_train_environment() -> Iterator[None]:
    """Settings of Ray Train that it reads from the environment only, unless the user has set them."""
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_S,
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # What workers print reaches the driver as it is; patched, it is logged besides.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
    if _session_is_private():
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # this machine is not taken away with a warning
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
