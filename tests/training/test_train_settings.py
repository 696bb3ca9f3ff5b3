"""Settings of training say what is wrong with them."""

import itertools
import math

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.training.settings import TrainSettings, WorkerSettings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("alpha", -0.1, "alpha is -0.1; expected a number, 0 or more"),
        ("alpha", math.nan, "alpha is nan"),
        ("temperature", 0.0, "temperature is 0.0; expected a number above 0"),
        ("learning_rate", math.inf, "learning_rate is inf"),
        ("anchor_mask_probability", 1.5, "expected a probability from 0 to 1"),
        ("adam_beta2", 1.0, "expected a number from 0 to below 1"),
        ("global_batch", 0, "global_batch is 0; expected 1 or more"),
        ("positives", 0, "positives is 0; expected 1 or more"),
        ("evaluate_every", -1, "evaluate_every is -1; expected 0 or more"),
        ("reduction", "mean", "reduction is 'mean'; expected one of paper, pairs"),
        ("distractors", "all", "expected views or anchor"),
        ("precision", "fp8", "expected fp32, bf16 or fp16"),
        ("engines", ("a", "a"), "expected different names"),
        ("repeats", ("mtg",), "repeats: 'mtg' is not SOURCE=N"),
        ("repeats", ("mtg=0",), "repeats: 'mtg=0' is not SOURCE=N"),
        ("repeats", ("mtg=2", "mtg=3"), "each source once"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainSettings(**{name: value})  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_worker_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="workers is 0; expected 1 or more"):
        WorkerSettings(workers=0)


def test_repeats_become_a_mapping() -> None:
    assert TrainSettings(repeats=("mtg=4", "a=1")).repeats_by_source() == {"mtg": 4, "a": 1}


def test_learning_rate_warms_up_in_a_line_and_falls_to_zero_along_a_cosine() -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_steps=4)
    rates = [settings.learning_rate_at(step, 104) for step in range(105)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.5) and rates[104] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))


def test_planned_steps_follow_epochs_or_max_steps_and_must_exceed_warm_up() -> None:
    assert TrainSettings(epochs=3, warmup_steps=10).planned_steps(7) == 21
    assert TrainSettings(epochs=3, max_steps=50, warmup_steps=10).planned_steps(7) == 50
    with pytest.raises(UsageError, match="warmup_steps 100 must be below the number of steps, which is 77"):
        TrainSettings(epochs=11).planned_steps(7)
