"""Running a sweep: passes train on the driver's threads' behalf, while Ray Tune searches, reports and stops.

A pass is one group of Ray Train workers; a trial of Ray Tune is a small process that reports what its run does in a
pass (`hub`, `member`). With one run a pass this is the ordinary sweep of one TorchTrainer a trial.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Queue
from typing import Any

import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import FIFOScheduler

from nearid_ray.data.store import Location
from nearid_ray.training.following import OnRows
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.outputs import TrainedHead
from nearid_ray.training.session import ray_train_environment
from nearid_ray.training.settings import WorkerSettings
from nearid_ray.training.sources import TokenSource
from nearid_ray.training.tokens import Cache
from nearid_ray.training.trainer import print_progress, train_many
from nearid_ray.tuning.hub import HubSteering, said
from nearid_ray.tuning.member import METRIC, Member
from nearid_ray.tuning.plan import Pass

CHECKPOINTS_FOLDER = "checkpoints"
_HEAD_NODE = "node:__internal_head__"
"""A resource that each cluster has on its head node; trials take a crumb of it instead of CPUs."""
_CRUMB = 1e-4

OnEnd = Callable[[Pass, Mapping[str, TrainedHead], Mapping[str, str]], None]
"""Called when a pass has ended: its heads, and why others have none."""


class Passes:
    """Trains passes, some at once, each from a thread of this process that waits for its workers."""

    def __init__(
        self,
        *,
        at_once: int,
        hub: Any,
        source: TokenSource,
        cache: Cache,
        init: str | None,
        output: Location,
        where: WorkerSettings,
        waits: bool,
        on_rows: OnRows,
        on_end: OnEnd,
    ) -> None:
        """`on_rows` and `on_end` are called from the threads, one at a time."""
        self._hub, self._source, self._cache, self._init = hub, source, cache, init
        self._storage, self._where, self._waits = output.child(CHECKPOINTS_FOLDER), where, waits
        self._on_rows, self._on_end = on_rows, on_end
        self._one = threading.Lock()
        self._waiting: Queue[Pass] = Queue()
        self.errors: list[BaseException] = []
        self.ended = 0
        """Passes that came to their end in order."""
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, one: Pass) -> None:
        """Train a pass when there is room."""
        self._waiting.put(one)

    def wait(self) -> None:
        """Wait for all passes; raises the first error that ended one."""
        self._waiting.join()
        if self.errors:
            raise self.errors[0]

    def _work(self) -> None:
        while True:
            one = self._waiting.get()
            try:
                self._train(one)
            except BaseException as error:  # raised again by the thread that waits
                self.errors.append(error)
                self._end(dict.fromkeys(one.runs, f"{type(error).__name__}: {error}"))
            finally:
                self._waiting.task_done()

    def _train(self, one: Pass) -> None:
        trained = train_many(
            one.runs,
            tokens=self._source,
            storage=self._storage,
            name=one.name,
            init=self._init,
            opened=self._cache,
            where=self._where,
            on_row=print_progress,
            on_rows=self._tell,
            on_known=self._know,
            steering=HubSteering(self._hub, one.name, self._waits),
        )
        reasons: dict[str, str] = ray.get(self._hub.reasons.remote())
        with self._one:
            self._on_end(one, trained, {name: reasons.get(name, "") for name in one.runs if name not in trained})
            self.ended += 1
        self._end(dict.fromkeys(one.runs, ""))

    def _tell(self, name: str, rows: list[HistoryRow]) -> None:
        with self._one:
            self._on_rows(name, rows)

    def _know(self, name: str, rows: list[HistoryRow]) -> None:
        """What an earlier call trained; trials report it again, so that the scheduler knows what it knew."""
        steps = max(row.step for row in rows) + 1
        for row in rows:
            if row.val_ssr is not None:
                ray.get(self._hub.put.remote({name: said(row, steps)}))
        self._tell(name, rows)

    def _end(self, reasons: Mapping[str, str]) -> None:
        ray.get(self._hub.end.remote(dict(reasons)))


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Ray Tune without its tables, loggers and signal handlers: the job tells what there is to tell."""
    wanted = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ray_train_environment():
            yield
    finally:
        logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


def search(
    hub: Any,
    search_alg: Any,
    space: Mapping[str, Any],
    *,
    trials: int,
    at_once: int,
    scheduler: FIFOScheduler | None = None,
) -> tune.ResultGrid:
    """Run Ray Tune until each trial has reported its run.

    Args:
        hub: where runs and trials meet.
        search_alg: what is tried.
        space: its space, for the record.
        trials: how many at most.
        at_once: trials that report at once.
        scheduler: may stop trials.
    """
    member = tune.with_resources(tune.with_parameters(Member, hub=hub), {"CPU": 0, _HEAD_NODE: _CRUMB})
    with tempfile.TemporaryDirectory(prefix="nearid-tune-") as folder:
        tuner = tune.Tuner(
            member,
            param_space=dict(space),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=search_alg,
                scheduler=scheduler,
                num_samples=trials,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                callbacks=[JsonLoggerCallback()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        return tuner.fit()
