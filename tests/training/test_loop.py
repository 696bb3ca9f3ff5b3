"""The loop learns, resumes to the last bit, and measures what it says."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from nearid_ray.errors import UsageError
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.pool import Workers
from nearid_ray.training.settings import TrainSettings
from nearid_ray.training.stack import HeadStack
from nearid_ray.training.state import load_state, save_state
from nearid_ray.training.tokens import TokenReader
from nearid_ray.training.validation import Validation

SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "warmup_steps": 5,
    "global_batch": 16,
    "max_steps": 20,
    "evaluate_every": 10,
    "checkpoint_every": 10,
}


def new_head() -> AttentionPoolingHead:
    torch.manual_seed(0)
    return AttentionPoolingHead(16, 2, 32)


@pytest.fixture(scope="module")
def cache(make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]) -> Any:
    """38 identities to train on, so that the last batch of an epoch is short; 12 for validation."""
    views = {f"s:{i:02}": 2 + i % 2 for i in range(50)}
    return make_cache(make_index(views, split=lambda name: "val" if name >= "s:38" else "train"))


class One(HeadTraining):
    """The training of a single head."""

    def __init__(self, head: AttentionPoolingHead, cache: Any, settings: TrainSettings, **options: Any) -> None:
        super().__init__({"one": head}, cache, {"one": settings}, **options)
        self.head = head

    @property
    def history(self) -> list[HistoryRow]:
        return self.runs["one"].history

    @property
    def best(self) -> dict[str, Any] | None:
        return self.runs["one"].best

    def rows(self) -> Iterator[HistoryRow]:
        for rows in self.run():
            yield rows["one"]


def training(cache: Any, **changes: Any) -> One:
    return One(new_head(), cache, TrainSettings(**{**SETTINGS, **changes}))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_loss_falls_and_validation_success_rises(cache: Any) -> None:
    run = training(cache, max_steps=80)
    rows = list(run.rows())
    losses = [row.loss for row in rows if row.loss is not None]
    assert len(losses) == 80 and np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    measured = [row.val_ssr for row in rows if row.val_ssr is not None]
    assert max(measured[1:]) > measured[0] + 0.2


def test_history_has_a_row_a_step_and_validation_where_it_was_asked_for(cache: Any) -> None:
    run = training(cache, max_steps=25)
    rows = list(run.rows())
    assert rows == run.history
    assert [row.step for row in rows] == list(range(26))
    assert [row.step for row in rows if row.val_ssr is not None] == [0, 10, 20, 25]
    assert rows[3].epoch == pytest.approx(1.0) and run.batches_per_epoch == 3
    assert rows[7].loss == pytest.approx(rows[7].parts["disc"] + 0.5 * rows[7].parts["rank"])
    assert rows[-1].learning_rate == pytest.approx(3e-3 * 0.5 * (1 + np.cos(np.pi * 19 / 20)))


def test_resuming_gives_the_run_that_was_never_interrupted_to_the_last_bit(cache: Any, tmp_path: Path) -> None:
    whole = training(cache)
    list(whole.rows())
    first = training(cache)
    for row in first.rows():
        if row.step == 10:
            break
    save_state(tmp_path / "last.pt", first.state())
    second = training(cache)
    second.restore(load_state(tmp_path / "last.pt"))
    list(second.rows())
    assert same(whole.head.state_dict(), second.head.state_dict())
    assert whole.best is not None and second.best is not None
    assert same(whole.best["head"], second.best["head"]) and whole.best["step"] == second.best["step"]
    assert [row.loss for row in whole.history] == [row.loss for row in second.history]


def test_a_state_does_not_change_when_training_goes_on(cache: Any) -> None:
    run = training(cache)
    rows = run.rows()
    for _ in range(11):
        next(rows)
    state = run.state()
    saved = state["one"]
    before = {name: value.clone() for name, value in saved["head"].items()}
    moment = saved["optimizer"]["state"][0]["exp_avg"].clone()
    list(rows)
    assert same(before, saved["head"]) and torch.equal(moment, saved["optimizer"]["state"][0]["exp_avg"])
    assert not same(before, run.head.state_dict())


def test_a_state_of_other_settings_is_refused_by_name(cache: Any) -> None:
    state = training(cache).state()
    with pytest.raises(UsageError, match=r"alpha 0\.5 then, 2\.0 now"):
        training(cache, alpha=2.0).restore(state)


def test_a_state_of_other_tokens_or_another_initial_head_is_refused(cache: Any) -> None:
    state = training(cache).state()
    with pytest.raises(UsageError, match="another head or read other tokens"):
        One(new_head(), replace(cache, fingerprint="other"), TrainSettings(**SETTINGS)).restore(state)
    torch.manual_seed(1)
    with pytest.raises(UsageError, match="another head or read other tokens"):
        One(AttentionPoolingHead(16, 2, 32), cache, TrainSettings(**SETTINGS)).restore(state)


def test_the_best_head_is_the_one_with_the_highest_validation_ssr(cache: Any) -> None:
    run = training(cache, max_steps=60)
    heads = {}
    for row in run.rows():
        if row.val_ssr is not None and row.step:
            heads[row.step] = {name: value.clone() for name, value in run.head.state_dict().items()}
    measured = {row.step: (row.val_ssr, row.val_pa) for row in run.history if row.step in heads}
    assert run.best is not None
    assert run.best["step"] == max(measured, key=lambda step: (*measured[step], -step))
    assert same(run.best["head"], heads[run.best["step"]])


def test_without_validation_there_is_no_best_and_no_validation_split_is_needed(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    cache = make_cache(make_index({f"s:{i}": 2 for i in range(8)}))
    run = training(cache, evaluate_every=0)
    assert len(list(run.rows())) == 20 and run.best is None
    with pytest.raises(UsageError, match="no items of split 'val'"):
        training(cache)


def test_validation_counts_what_explicit_loops_count(cache: Any) -> None:
    run = training(cache, evaluate_every=0, max_steps=60)
    list(run.rows())
    head = run.head
    counts = Validation(cache, ["paint"]).measure(
        HeadStack([head]), TokenReader(cache, torch.device("cpu")), Workers()
    )[0]
    embedding: dict[tuple[str, int, str], np.ndarray] = {}
    for i, row in enumerate(cache.index.to_pylist()):
        if row["split"] == "val" and row["draw"] == 0 and not row["masked"] and row["engine"] in ("", "paint"):
            with torch.no_grad():
                vector = head(torch.from_numpy(cache.tokens_NTD[i : i + 1]))[0].double().numpy()
            embedding[row["identity_id"], row["view_index"], row["engine"]] = vector / np.linalg.norm(vector)
    names = sorted({name for name, _, _ in embedding})
    successes = []
    for name in names:
        views = [view for other, view, engine in embedding if other == name and not engine]
        success = 0
        for i in views:
            for j in views:
                if i != j:
                    pair = embedding[name, i, ""] @ embedding[name, j, ""]
                    success += bool(pair > embedding[name, i, ""] @ embedding[name, i, "paint"])
        successes.append(success)
    assert counts.identities == tuple(names) and counts.engines == ("paint",)
    assert counts.success_IE[:, 0].tolist() == successes and len(set(successes)) > 2


def test_bf16_learns_too(cache: Any) -> None:
    rough, exact = training(cache, precision="bf16"), training(cache)
    losses = [[row.loss for row in list(run.rows())[1:]] for run in (rough, exact)]
    assert np.allclose(losses[0], losses[1], rtol=0.1) and losses[0] != losses[1]


def test_tokens_of_another_width_are_refused(cache: Any) -> None:
    with pytest.raises(UsageError, match="head takes tokens of width 24, the token cache holds width 16"):
        One(AttentionPoolingHead(24, 2, 32), cache, TrainSettings(**SETTINGS))


def test_tokens_that_are_not_finite_stop_the_run_at_once(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    cache = make_cache(make_index({f"s:{i}": 2 for i in range(8)}))
    cache.tokens_NTD[:] = np.inf
    with pytest.raises(FloatingPointError, match="step 0: loss nan"):
        list(training(cache, evaluate_every=0).rows())


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint here"):
        load_state(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UsageError, match="not a checkpoint of training"):
        load_state(tmp_path / "text.pt")
