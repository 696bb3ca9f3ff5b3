"""Notices that workers are taken away: each is answered by one saved state, and its last seconds by another."""

import os
import signal
import time

import pytest
import torch

from nearid_ray.errors import UsageError
from nearid_ray.training.notice import NOTHING, SAVE, Notices, _terminated, hear_sigterm
from nearid_ray.training.pool import Workers
from nearid_ray.training.settings import WorkerSettings


def due(notices: Notices, times: int = 3) -> list[int]:
    return [notices.due(Workers(), torch.device("cpu")) for _ in range(times)]


def test_a_node_that_is_drained_is_saved_from_at_once_and_again_shortly_before_it_goes() -> None:
    deadline_ms: list[int | None] = [None]
    notices = Notices(deadline_ms=lambda: deadline_ms[0])
    assert due(notices) == [NOTHING, NOTHING, NOTHING]
    deadline_ms[0] = int((time.time() + 120) * 1000)
    assert due(notices) == [SAVE, NOTHING, NOTHING]
    deadline_ms[0] = int((time.time() + 5) * 1000)
    assert due(notices) == [SAVE, NOTHING, NOTHING]


def test_a_node_that_is_drained_without_a_time_is_saved_from_once() -> None:
    assert due(Notices(deadline_ms=lambda: 0)) == [SAVE, NOTHING, NOTHING]


def test_a_process_that_is_terminated_saves_first() -> None:
    before = signal.getsignal(signal.SIGTERM)
    notices = Notices(deadline_ms=lambda: None)
    try:
        hear_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        assert due(notices) == [SAVE, NOTHING, NOTHING]
    finally:
        signal.signal(signal.SIGTERM, before)
        _terminated.clear()


def test_fewer_workers_than_one_or_more_than_all_are_refused() -> None:
    assert WorkerSettings(workers=4, min_workers=2).fewest == 2
    assert WorkerSettings(workers=4).fewest == 4
    with pytest.raises(UsageError, match=r"min_workers is 5; expected 0 to workers \(4\)"):
        WorkerSettings(workers=4, min_workers=5)
    with pytest.raises(UsageError, match="resize_every_s is 0; expected a number above 0"):
        WorkerSettings(resize_every_s=0)
