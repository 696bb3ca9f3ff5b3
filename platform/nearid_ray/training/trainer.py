"""The Ray Train side of training: one group of workers that trains one group of heads after the other.

The loop itself is `HeadTraining` and knows nothing of Ray. Here its workers are started, its states become Ray Train
checkpoints, lost workers are replaced and go on from the last of them, and results come back to the driver.
"""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import get_device

from nearid_ray.cluster import Terminated, grows, resources
from nearid_ray.data.store import Location, locate
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.checkpoints import Held, checkpoint_of, last_checkpoint, read_checkpoint
from nearid_ray.training.following import ROWS, OnRows, following, rows_text
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.loop import HeadTraining, Rows
from nearid_ray.training.notice import END, NOTHING, Notices, driver_notice
from nearid_ray.training.outputs import TrainedHead
from nearid_ray.training.pool import Workers
from nearid_ray.training.session import LeanTrainer, ray_train_environment
from nearid_ray.training.settings import TrainSettings, WorkerSettings, grouped
from nearid_ray.training.sources import CachedTokens, TokenSource
from nearid_ray.training.steering import Steering
from nearid_ray.training.tokens import Cache
from nearid_ray.watching import Watchdog, left_of, traced_items

OnRow = Callable[[str, HistoryRow, int], None]


def initial_head(cache: Cache, init: str | None = None) -> AttentionPoolingHead:
    """The head training starts from: the backbone's own; or a trained head's, or a release's, of the same backbone."""
    if init is None:
        return AttentionPoolingHead.from_state_dict(
            cache.head_state(), cache.backbone["heads"], cache.backbone["layer_norm_eps"]
        )
    from nearid_ray.models import release  # loads transformers

    return release.initial_head(init, cache.backbone)


class Progress:
    """Prints one line for each validation, with the time that is left."""

    def __init__(self) -> None:
        self._began: tuple[int, float] | None = None
        """The first step that was seen, which a resumed training does not begin with, and when."""

    def __call__(self, name: str, row: HistoryRow, steps: int) -> None:
        if self._began is None:
            self._began = row.step, time.monotonic()
        if row.val_ssr is None or row.val_pa is None:
            return
        loss = "" if row.loss is None else f"  loss {row.loss:.4f}"
        first, then = self._began
        left = left_of(row.step - first, steps - first, time.monotonic() - then)
        said = f"val SSR {row.val_ssr:.1%}  PA {row.val_pa:.1%}" + (f"  {left} left" if row.step > first else "")
        print(f"{name}: step {row.step}/{steps}{loss}  {said}", flush=True)


print_progress = Progress()
"""Workers get copies of it, so it never counts for two trainings."""


def train_many(
    runs: Mapping[str, TrainSettings],
    *,
    tokens: str | TokenSource,
    storage: str | Location,
    name: str,
    init: str | None = None,
    opened: Cache | None = None,
    where: WorkerSettings | None = None,
    on_row: OnRow | None = print_progress,
    on_rows: OnRows | None = None,
    on_known: OnRows | None = None,
    steering: Steering | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, TrainedHead]:
    """Train a head for each settings in one group of Ray Train workers.

    Runs that read the same are trained together, each batch being read once for all of their heads; the groups follow
    one another.

    Called again with the same storage and name it goes on where it stopped, and does nothing for what is finished.

    Args:
        runs: settings by a name of the run.
        tokens: a token cache (or what opens tokens), at a place every worker sees.
        storage: absolute path or URI under which checkpoints are kept, likewise.
        name: name of the whole; checkpoints of another list of runs under this name are refused.
        init: what to start from: folder of a trained head (`save_head`), or a release (`release.initial_head`); the
            backbone's own head when left out.
        opened: the tokens, where the caller has opened them already.
        where: number and kind of workers.
        on_row: called on the first worker with (run's name, row, number of steps) after every step.
        on_rows: called on the driver, while training goes on, with (run's name, its rows since the last call); rows
            that an earlier call has trained are not among them.
        on_known: called on the driver before training with (run's name, the rows that an earlier call has trained).
        steering: hears of validations and may let runs leave before their last step; they are returned as they are
            then. Runs that come to numbers that are not finite leave too, and are not returned.
        callbacks: for Ray Train's RunConfig, such as Tune's TuneReportCallback.

    Raises:
        UsageError: settings, cache and head do not fit each other, or not the checkpoints under `name`.
        FloatingPointError: a loss or gradient was not finite.
        StoreError: there is no room for a checkpoint.
        Terminated: SIGTERM came; the last step's state is saved.
        ray.train.TrainingFailedError: workers failed more often than allowed.
    """
    where = where or WorkerSettings()
    place = storage if isinstance(storage, Location) else locate(storage)
    source = CachedTokens((tokens,)) if isinstance(tokens, str) else tokens
    if not runs:
        raise UsageError("there is nothing to train: no settings were given")
    path = place.path if not place.is_local else str(Path(place.path).absolute())
    filesystem = None if place.is_local else place.filesystem
    cache = source.open() if opened is None else opened
    head = initial_head(cache, init)
    origins = check_runs(runs, cache, head, where)
    held = read_checkpoint(last_checkpoint(f"{path}/{name}", filesystem), runs, origins)
    for name_of_run, state in {**held.finished, **held.current}.items():
        if on_known is not None:
            on_known(name_of_run, [HistoryRow.saved(row) for row in state["history"]])
    if steering is not None and held.failed:
        steering.failed(held.failed)
    if len(held.ended()) < len(runs):
        gpu = where.gpu if where.gpu is not None else ray.cluster_resources().get("GPU", 0) >= where.fewest
        _check_room(where, gpu)
        config = {
            "runs": dict(runs),
            "origins": origins,
            "source": source,
            "head": head,
            "where": where,
            "on_row": on_row,
            "profile": place.child("profile"),
            "steering": steering,
        }
        try:
            asked = f"{where.fewest} worker(s) of {where.threads} CPU" + (" and 1 GPU" if gpu else "")
            with (
                Watchdog("train", sign="validation or checkpoint", wanted=asked) as watchdog,
                following(_heard(on_rows, watchdog)) as followers,
                ray_train_environment(),
                driver_notice() as config["notice"],
            ):
                run_config = RunConfig(
                    name=name,
                    storage_path=path,
                    storage_filesystem=filesystem,
                    failure_config=FailureConfig(max_failures=where.max_failures),
                    checkpoint_config=CheckpointConfig(num_to_keep=2),
                    logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
                    callbacks=[*followers, *callbacks],  # type: ignore[list-item]
                )
                result = _fit(config, where, gpu, run_config)
        except ray.train.TrainingFailedError as error:
            if _is_full(error):
                raise StoreError(
                    f"no space left to write the checkpoints in {place.uri}; free some and run the same command again"
                ) from error
            raise
        problem = result.return_value  # type: ignore[attr-defined]
        if problem:
            kind, message = problem
            if kind == "ended":
                raise Terminated
            raise (UsageError if kind == "usage" else FloatingPointError)(message)
        held = read_checkpoint(result.checkpoint, runs, origins)
    return {run: TrainedHead.of(run, runs[run], held.finished[run]) for run in runs if run in held.finished}


def check_runs(
    runs: Mapping[str, TrainSettings],
    cache: Cache,
    head: AttentionPoolingHead | None = None,
    where: WorkerSettings | None = None,
) -> dict[str, dict[str, Any]]:
    """The origin of each run (tokens and initial head), found on the driver alone.

    Raises:
        UsageError: what would fail on all workers: settings, cache and head do not fit each other.
    """
    origins: dict[str, dict[str, Any]] = {}
    head = head or initial_head(cache)
    for group in grouped(runs):
        for name, settings in group.items():
            if not name or "/" in name:
                raise UsageError(f"{name!r} cannot name a run; give a name without slashes")
            if where and settings.global_batch < where.workers:
                raise UsageError(
                    f"{name}: global_batch {settings.global_batch} is smaller than the number of workers, "
                    f"{where.workers}; some would never have a sample. Raise global_batch or lower workers"
                )
        training = HeadTraining({name: deepcopy(head) for name in group}, cache, group)
        for count in range(where.fewest, where.workers + 1) if where else ():
            _check_equal_parts(training, count)
        origins |= {name: run.origin for name, run in training.runs.items()}
    return origins


def _fit(config: dict[str, Any], where: WorkerSettings, gpu: bool, run_config: RunConfig) -> ray.train.Result:
    """Train; Ray Train replaces workers that die, and this its controller, from the last checkpoint."""
    for died in range(where.max_failures + 1):
        try:
            return LeanTrainer(
                _train_worker,  # type: ignore[arg-type]
                train_loop_config=config,
                scaling_config=_scaling(where, gpu),
                run_config=run_config,
            ).fit()
        except ray.exceptions.RayActorError as error:
            if died == where.max_failures:
                raise
            print(f"Ray Train's controller died ({str(error).splitlines()[0]}); training goes on", file=sys.stderr)
    raise AssertionError("the last try returns or raises")


def _scaling(where: WorkerSettings, gpu: bool) -> ScalingConfig:
    number: Any = (where.fewest, where.workers) if where.min_workers else where.workers
    elastic: dict[str, Any] = {"elastic_resize_monitor_interval_s": where.resize_every_s} if where.min_workers else {}
    resources: dict[str, float] = {"CPU": where.threads, **({"GPU": 1} if gpu else {})}
    if where.worker_resource:
        resources[where.worker_resource] = 0.001  # a node of one such resource has room for all its workers
    return ScalingConfig(num_workers=number, use_gpu=gpu, resources_per_worker=resources, **elastic)


def _heard(on_rows: OnRows | None, watchdog: Watchdog) -> OnRows:
    """`on_rows`, and a sign of life for each call."""

    def hear(name: str, rows: list[HistoryRow]) -> None:
        watchdog.alive()
        if on_rows is not None:
            on_rows(name, rows)

    return hear


def _is_full(error: ray.train.TrainingFailedError) -> bool:
    """Whether a worker had no room to write; what it raised reaches the driver as text."""
    failures = getattr(error, "worker_failures", {}).values()
    return any(os.strerror(errno.ENOSPC) in str(failure) for failure in failures)


def _check_equal_parts(training: HeadTraining, workers: int) -> None:
    """Refuse now what the reference mode would only say at the first batch that the workers cannot share evenly."""
    if not training.blank:
        return
    size = training.settings.global_batch
    rest = training.selection.samples_per_epoch % size if training.steps >= training.batches_per_epoch else 0
    uneven = [number for number in (size, rest) if number % workers]
    if uneven:
        said = " and ".join(map(str, uneven))
        raise UsageError(
            f"mode reference needs batches that the {workers} workers can share evenly; here are some of {said} "
            "samples. Take fewer workers (1 always fits) or another global_batch, or mode exact"
        )


def _check_room(where: WorkerSettings, gpu: bool) -> None:
    """Refuse what a cluster that does not grow can never start; Ray would wait for ever."""
    if not ray.is_initialized() or grows():
        return
    cpus, gpus = resources()
    if where.fewest * where.threads > cpus or (gpu and where.fewest > gpus):
        raise UsageError(
            f"{where.fewest} workers x {where.threads} CPUs{' and a GPU each' if gpu else ''} are more than the "
            f"{cpus:g} CPUs and {gpus:g} GPUs of the cluster; lower workers or threads, "
            + ("leave out --gpu, " if gpu else "")
            + "or join a larger cluster (RAY_ADDRESS)"
        )


def _train_worker(config: dict[str, Any]) -> tuple[str, str] | None:
    """One worker's part. Mistakes that a new try would repeat are returned, for Ray retries what is raised."""
    try:
        _train_all(config)
    except UsageError as error:
        return "usage", str(error)
    except FloatingPointError as error:
        return "number", str(error)
    except _Ended:
        return "ended", ""
    return None


class _Ended(Exception):
    """The driver was asked to end, and the state is saved."""


def _train_all(config: dict[str, Any]) -> None:
    where: WorkerSettings = config["where"]
    torch.set_num_threads(where.threads)
    # Ray Train announces every report by a logger outside its own hierarchy, which its log level does not reach.
    logging.getLogger().setLevel(logging.WARNING)
    workers, device = Workers.current(), get_device()
    config = config | {"notices": Notices(config["notice"])}
    cache = config["source"].open(str(device), where.threads)
    held = read_checkpoint(ray.train.get_checkpoint(), config["runs"], config["origins"])
    for group in grouped(config["runs"]):
        left = {name: settings for name, settings in group.items() if name not in held.ended()}
        if not left:
            continue
        training = HeadTraining(
            {name: deepcopy(config["head"]) for name in left},
            cache,
            left,
            workers=workers,
            device=device,
            micro_batch=where.micro_batch,
            resident=where.resident,
            tolerant=config["steering"] is not None,
        )
        if left.keys() <= held.current.keys():
            training.restore({name: held.current[name] for name in left})
        _train_group(training, held, config, workers)


def _train_group(training: HeadTraining, held: Held, config: dict[str, Any], workers: Workers) -> None:
    """Train runs to their end, reporting validations and checkpoints; `held` is brought up to date."""
    unsaid: list[tuple[str, dict[str, Any]]] = []
    notices: Notices = config["notices"]
    place = config["profile"].child(f"step-{training.step}.json.gz") if workers.rank == 0 else None
    for rows in traced_items(training.run(), config["where"].profile_steps, place):
        unsaid += [(name, asdict(row)) for name, row in rows.items()]
        if config["on_row"] is not None and workers.rank == 0:
            for name, row in rows.items():
                config["on_row"](name, row, training.steps)
        row = next(iter(rows.values()))
        notice = notices.due(workers, training.device)
        due = training.checkpoint_due or notice != NOTHING
        _steer(training, held, rows, config["steering"], workers)
        if training.step == training.steps:
            held.finish(training.state())
        elif due and training.runs:
            held.current = training.state()
        if due or row.val_ssr is not None:
            said = {"step": row.step, "loss": row.loss, "val_ssr": row.val_ssr, "val_pa": row.val_pa}
            ended = not training.runs
            _report(held if due or ended else None, said | {ROWS: rows_text(unsaid)}, workers)
            unsaid = []
        if notice != NOTHING:
            notices.leave_if_told()
        if notice == END and training.step < training.steps:
            raise _Ended
    if training.failed and not training.runs:  # the last ones left without a row
        _steer(training, held, {}, config["steering"], workers)
        _report(held, {"step": training.step, ROWS: rows_text(unsaid)}, workers)


def _steer(training: HeadTraining, held: Held, rows: Rows, steering: Steering | None, workers: Workers) -> None:
    """Let runs leave that are not to go on. Every worker must call it; the first one asks."""
    if steering is None:
        return
    failed = {name: reason for name, reason in training.failed.items() if name not in held.failed}
    if failed and workers.rank == 0:
        steering.failed(failed)
    held.failed |= failed
    if not any(row.val_ssr is not None for row in rows.values()):
        return
    asked = steering.validated(rows, training.steps) if workers.rank == 0 else ()
    leaving = workers.all_largest([int(name in asked) for name in training.runs], training.device)
    if training.step < training.steps:
        names = [name for name, leaves in zip(training.runs, leaving, strict=True) if leaves]
        if names:
            held.finish(training.leave(names))


def _report(held: Held | None, said: dict[str, Any], workers: Workers) -> None:
    """Report numbers and register a checkpoint if there is one. Every worker must call it; the first one writes."""
    if held is None or workers.rank:
        ray.train.report(said)
        return
    with checkpoint_of(held) as checkpoint:
        ray.train.report(said, checkpoint=checkpoint)
