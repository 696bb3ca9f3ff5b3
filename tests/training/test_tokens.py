"""Reading tokens: buffers that stay valid as long as promised, steps read ahead, tokens held on the device."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from nearid_ray.training.tokens import Ahead, ResidentTokens, TokenReader

CPU = torch.device("cpu")


@pytest.fixture
def cache(make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]) -> Any:
    return make_cache(make_index({f"s:{i}": 2 for i in range(5)}))


def test_a_result_stays_valid_until_its_buffer_comes_round_again(cache: Any) -> None:
    reader = TokenReader(cache, CPU, buffers=2)
    rows = [np.array([3, 1]), np.array([5, 2, 2, 9]), np.array([0])]
    first, second = reader.read_NTD(rows[0]), reader.read_NTD(rows[1])
    assert np.array_equal(first.numpy(), cache.tokens_NTD[rows[0]])
    assert np.array_equal(second.numpy(), cache.tokens_NTD[rows[1]])
    third = reader.read_NTD(rows[2])
    assert np.array_equal(third.numpy(), cache.tokens_NTD[rows[2]])
    assert np.array_equal(second.numpy(), cache.tokens_NTD[rows[1]]), "only the oldest may go"
    assert third.data_ptr() == first.data_ptr(), "no new memory"
    assert reader.read_NTD(np.array([], np.int64)).shape == (0, cache.tokens, cache.width)


def test_resident_tokens_are_those_of_the_cache(cache: Any) -> None:
    held = ResidentTokens(cache, CPU, np.array([4, -1, 7, 7, 30]))
    assert np.array_equal(held.read_NTD(np.array([30, 4, 7])).numpy(), cache.tokens_NTD[[30, 4, 7]])


def test_the_next_step_is_made_on_another_thread_while_the_present_one_is_used() -> None:
    made: list[tuple[int, str]] = []
    ready = threading.Event()

    def make(step: int) -> int:
        made.append((step, threading.current_thread().name))
        ready.set()
        return 10 * step

    ahead = Ahead(make, end=4)
    assert ahead.take(1) == 10
    ready.clear()
    assert ready.wait(5) or made[-1][0] == 2
    assert ahead.take(2) == 20 and ahead.take(3) == 30
    ahead.close()
    assert [step for step, _ in made] == [1, 2, 3], "each once, and none beyond the end"
    main = threading.current_thread().name
    assert [name == main for _, name in made] == [True, False, False]


def test_a_step_out_of_turn_is_made_at_once() -> None:
    ahead = Ahead(lambda step: step, end=100)
    assert [ahead.take(step) for step in (3, 4, 50, 7)] == [3, 4, 50, 7]
    ahead.close()


def test_an_error_of_reading_ahead_is_raised_where_the_step_is_taken() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    ahead = Ahead(make, end=9)
    assert ahead.take(1) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(2)
    ahead.close()
