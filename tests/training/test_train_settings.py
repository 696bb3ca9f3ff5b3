"""Settings of training say what is wrong with them."""

import itertools
import math
from typing import Any

import pytest

from nearid_ray import presets
from nearid_ray.errors import UsageError
from nearid_ray.settings import build, flat_fields
from nearid_ray.stages.train import Train, run_name
from nearid_ray.training.losses import OBJECTIVE_NAMES
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.sources import CachedTokens, OnlineSettings, token_source


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


@pytest.mark.parametrize("name", presets.TRAIN)
def test_every_preset_is_a_training(name: str) -> None:
    job = build(Train, {"tokens": ("a",), "output": "b", **presets.TRAIN[name]()}, name)
    (run,) = job.runs().values()
    assert (run.weight_decay, run.clip, run.epochs, run.distractors) == (1e-4, 1.0, 11, "views")
    assert (run.anchor_mask_probability, run.positive_mask_probability, run.distractor_mask_probability) == (
        (0.5, 0.2, 0.6)
    )
    if name != "toybox":
        assert (run.learning_rate, run.global_batch, run.warmup_steps) == (1e-4, 128, 100)
        assert job.online.backbone == "google/siglip2-so400m-patch14-384"


def test_the_presets_of_the_papers_tables() -> None:
    objectives = {
        build(TrainSettings, known(presets.TRAIN[f"table3/{name}"]())).make_objective() for name in OBJECTIVE_NAMES
    }
    assert len(objectives) == len(OBJECTIVE_NAMES) == 8
    rows = {
        name: build(TrainSettings, known(presets.TRAIN[f"table6/{name}"]()))
        for name in ("nearid+mtg", "nearid-only", "mtg-only", "single-engine")
    }
    assert [row.repeats for row in rows.values()] == [("mtg=4",), (), ("mtg=8",), ()]
    assert [len(row.engines) for row in rows.values()] == [5, 4, 1, 1]
    assert [row.sources for row in rows.values()] == [("nearid", "mtg"), ("nearid",), ("mtg",), ("nearid",)]
    assert rows["single-engine"].engines == ("flux-fill-512",)
    # (18,786 + 4 x 5,000) / 128, eleven times: the paper's "about 3,344 steps".
    assert rows["nearid+mtg"].planned_steps(math.ceil((18_786 + 4 * 5_000) / 128)) == 3344


def known(preset: dict[str, Any]) -> dict[str, Any]:
    """What a preset says of the training itself."""
    return {name: value for name, value in preset.items() if name in flat_fields(TrainSettings)}


def test_runs_are_named_by_objective_and_alpha() -> None:
    job = Train(tokens=("a",), output="b", alphas=(0.0, 0.5), training=TrainSettings(objective="circle-rank"))
    assert list(job.runs()) == ["circle-rank-alpha-0", "circle-rank-alpha-0.5"]
    assert run_name(TrainSettings(objective="infonce")) == "infonce"
    with pytest.raises(UsageError, match="objective infonce has no option alpha"):
        Train(tokens=("a",), output="b", alphas=(0.1,), training=TrainSettings(objective="infonce")).runs()


def test_a_default_that_is_written_out_is_the_same_setting() -> None:
    TrainSettings(alpha=0.5, temperature=0.07).check_same(TrainSettings().resolved())
    with pytest.raises(UsageError, match=r"objective 'nearid' then, 'siglip-rank' now"):
        TrainSettings(objective="siglip-rank").check_same(TrainSettings().resolved())


@pytest.mark.parametrize(
    ("tokens", "online", "said"),
    [
        (("a", "online"), OnlineSettings(tuples=("t",)), "expected token caches, or `online` alone"),
        (("online",), OnlineSettings(), "give --tuples and --distractor-data"),
        (("a",), OnlineSettings(tuples=("t",)), "go with --tokens online"),
    ],
)
def test_tokens_are_caches_or_online(tokens: tuple[str, ...], online: OnlineSettings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        token_source(tokens, online)
    with pytest.raises(UsageError, match="tuples names 1 datasets, distractor_data 2"):
        OnlineSettings(tuples=("a",), distractor_data=("b", "c"))


def test_paths_of_tokens_and_data_are_absolute_wherever_a_worker_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert token_source(["toy/tokens"], OnlineSettings()) == CachedTokens((str(tmp_path / "toy/tokens"),))
    online = OnlineSettings(tuples=("toy/tuples",), distractor_data=("toy/distractors",), backbone="model")
    source = token_source(["online"], online)
    assert source.settings.tuples == (str(tmp_path / "toy/tuples"),)
    assert source.settings.distractor_data == (str(tmp_path / "toy/distractors"),)
    assert source.settings.backbone == str(tmp_path / "model")
