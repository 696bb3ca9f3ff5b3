"""What Ray Train is told for the sake of short start-up and quiet logs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.train.torch import TorchTrainer

from nearid_ray.training.notice import HearSigterm

# Ray Train's controller looks for news from the workers this often; the default of 2 s is what a report costs at worst.
_POLL_S = "0.2"


class LeanTrainer(TorchTrainer):
    """TorchTrainer whose workers hear SIGTERM, without the helpers that have nothing to do here.

    Each of these costs a process of 2 to 3 s of start-up: one serves datasets (there are none here), one frees the
    workers' resources when the controller dies (Ray does so itself, for they belong to it; the helper stays on the
    cluster when the driver is killed).
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        callbacks.append(HearSigterm())
        unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


def session_is_private() -> bool:
    """Whether this program started Ray itself, on one machine."""
    return not os.environ.get("RAY_ADDRESS") and (not ray.is_initialized() or len(ray.nodes()) == 1)


@contextmanager
def ray_train_environment() -> Iterator[None]:
    """Settings of Ray Train that it reads from the environment only, unless the user has set them."""
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_S,
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # An elastic group that cannot start with all its workers tries with fewer after so long.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
        # What workers print reaches the driver as it is; patched, it is logged besides.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
    if session_is_private():
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # this machine is not taken away with a warning
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
