"""Notices that workers will be taken away, on which all of them save their state at the same step.

A notice comes from Ray where a node is drained (the warning of a spot machine, SIGTERM to `ray start`), from SIGTERM to
a worker's own process, or from the driver, when it is asked to end. Each worker sees its own; after each step they
agree.
"""

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context

from nearid_ray.cluster import in_main_thread, told_to_end
from nearid_ray.training.pool import Workers

NOTHING, SAVE, END = 0, 1, 2
"""What a notice asks for: no more than usual; save and go on; save and end."""

_LOOK_S = 1.0
_LAST_S = 10.0
"""A node with a deadline is saved from once more so long before it."""
_REGISTERED_S = 2.0
"""How long Ray Train may take to register a checkpoint; a process that ends before takes it along."""

_terminated = threading.Event()
"""SIGTERM came to this process."""


class Notices:
    """One worker's view: call `due` after every step, on every worker."""

    def __init__(self, key: str = "", deadline_ms: Callable[[], int | None] | None = None) -> None:
        """`key` names the driver's notice. `deadline_ms` is for tests: None, or when the node goes (0: not known)."""
        self._key, self._deadline_ms = key, deadline_ms or _drain_deadline_ms
        self._saved: set[str] = set()
        self._asked_to_end = False
        if key:
            threading.Thread(target=self._ask_driver, daemon=True, name="notices").start()

    def due(self, workers: Workers, device: torch.device) -> int:
        """NOTHING, SAVE or END, the same on all workers. Every worker must call it."""
        return workers.all_largest([self._own()], device)[0]

    def leave_if_told(self) -> None:
        """End this process if SIGTERM asked for it; the state is saved."""
        if _terminated.is_set():
            time.sleep(_REGISTERED_S)
            os._exit(128 + signal.SIGTERM)

    def _own(self) -> int:
        if self._asked_to_end:
            return END
        if _terminated.is_set():
            return self._once("terminated")
        deadline_ms = self._deadline_ms()
        if deadline_ms is None:
            return NOTHING
        if deadline_ms and deadline_ms - time.time() * 1000 < _LAST_S * 1000:
            return self._once(f"last before {deadline_ms}")
        return self._once(f"drained until {deadline_ms}")

    def _once(self, notice: str) -> int:
        if notice in self._saved:
            return NOTHING
        self._saved.add(notice)
        return SAVE

    def _ask_driver(self) -> None:
        while not self._asked_to_end:
            with suppress(Exception):  # the cluster's head may be away for a moment; there is nothing to hear then
                self._asked_to_end = bool(internal_kv._internal_kv_get(self._key))
            time.sleep(_LOOK_S)


@contextmanager
def driver_notice() -> Iterator[str]:
    """A key for `Notices`: SIGTERM to the driver, while the block lasts, tells all workers to save and end."""
    key = f"nearid-end-{secrets.token_hex(8)}"

    def tell() -> None:
        internal_kv._internal_kv_put(key, b"1")

    with told_to_end(tell):
        yield key


class HearSigterm(WorkerGroupCallback):
    """Makes the workers' processes take SIGTERM for a notice."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        worker_group.execute(hear_sigterm)


def hear_sigterm() -> None:
    """SIGTERM to this process is a notice from now on."""
    if in_main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


def _drain_deadline_ms() -> int | None:
    """When a node of the group is taken away, as Ray tells (0: not when); None where none is."""
    info = get_train_context().preemption_context.preemption_info
    return None if info is None else info.deadline_ms or 0
