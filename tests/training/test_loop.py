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
from nearid_ray.training.settings import TrainSettings, grouped
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
    with pytest.raises(UsageError, match="another head or read other tokens:\n  tokens: there 'memory', now 'other'"):
        One(new_head(), replace(cache, fingerprint="other"), TrainSettings(**SETTINGS)).restore(state)
    torch.manual_seed(1)
    with pytest.raises(UsageError, match="initial_head: there"):
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


def test_tokens_that_are_not_finite_stop_the_run_and_are_named(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    cache = make_cache(make_index({f"s:{i}": 2 for i in range(8)}, engines=["paint"], draws=[1], masked=[False]))
    (bad,) = [
        i
        for i, row in enumerate(cache.index.to_pylist())
        if (row["identity_id"], row["view_index"], row["engine"]) == ("s:3", 1, "paint")
    ]
    cache.tokens_NTD[bad, 2, 3] = np.nan
    said = rf"step 0: loss nan.*the tokens of row {bad} \(s:3 view 1, engine paint, draw 1\) are not finite"
    with pytest.raises(FloatingPointError, match=said):
        list(training(cache, evaluate_every=0).run())


def test_validation_tokens_that_are_not_finite_stop_the_run_and_are_named(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    split = lambda name: "val" if name == "s:7" else "train"  # noqa: E731
    cache = make_cache(make_index({f"s:{i}": 2 for i in range(8)}, split=split))
    cache.tokens_NTD[[row["identity_id"] == "s:7" for row in cache.index.to_pylist()]] = np.inf
    with pytest.raises(FloatingPointError, match=r"validation items are not finite, e\.g\. of row \d+ \(s:7 view"):
        list(training(cache).run())


def test_a_learning_rate_that_is_too_high_is_told_from_broken_tokens(cache: Any) -> None:
    with pytest.raises(FloatingPointError, match="all tokens are finite: the learning rate is too high"):
        list(training(cache, learning_rate=1e30, warmup_steps=0, clip=0.0, evaluate_every=0).run())


@pytest.mark.parametrize("options", [{"micro_batch": 13}, {"resident": True}])
def test_less_memory_or_resident_tokens_change_nothing(cache: Any, options: dict[str, Any]) -> None:
    plain, other = training(cache), One(new_head(), cache, TrainSettings(**SETTINGS), **options)
    losses = [[row.loss for row in list(run.rows())[1:]] for run in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in plain.head.state_dict().items():
        torch.testing.assert_close(other.head.state_dict()[name], value, rtol=0, atol=1e-4)


def test_heads_trained_together_are_those_trained_alone(cache: Any) -> None:
    runs = {
        "a": TrainSettings(**SETTINGS),
        "b": TrainSettings(**{**SETTINGS, "objective": "circle-rank", "learning_rate": 1e-3, "clip": 0.1}),
    }
    together = HeadTraining({name: new_head() for name in runs}, cache, runs)
    list(together.run())
    for name, settings in runs.items():
        alone = One(new_head(), cache, settings)
        list(alone.run())
        mine = together.runs[name]
        for key, value in alone.head.state_dict().items():
            torch.testing.assert_close(mine.head.state_dict()[key], value, rtol=0, atol=1e-4)
        assert [row.loss for row in mine.history[1:]] == pytest.approx([r.loss for r in alone.history[1:]], rel=1e-3)
        assert alone.best is not None and mine.best is not None and mine.best["step"] == alone.best["step"]


def test_runs_that_read_different_things_are_not_trained_together(cache: Any) -> None:
    runs = {"a": TrainSettings(**SETTINGS), "b": TrainSettings(**{**SETTINGS, "global_batch": 8})}
    with pytest.raises(UsageError, match=r"a and b cannot be trained together: they differ in \['global_batch'\]"):
        HeadTraining({name: new_head() for name in runs}, cache, runs)
    third = {**runs, "c": TrainSettings(**{**SETTINGS, "alpha": 2.0}), "d": TrainSettings(**SETTINGS, mode="reference")}
    assert [list(group) for group in grouped(third)] == [["a", "c"], ["b"], ["d"]]


def test_fp16_scales_the_loss_and_learns_too(cache: Any) -> None:
    rough, exact = training(cache, precision="fp16"), training(cache)
    rows = [list(run.rows())[1:] for run in (rough, exact)]
    taken = [row for row in rows[0] if np.isfinite(row.grad_norm or 0)]
    assert rows[0][0].loss_scale == 1024 and rows[1][0].loss_scale is None and len(taken) >= 15
    assert np.allclose([row.loss for row in rows[0]], [row.loss for row in rows[1]], rtol=0.1)
    again = training(cache, precision="fp16")
    again.restore(rough.state())
    assert again.runs["one"].scaler.get_scale() == rough.runs["one"].scaler.get_scale()


def test_a_global_batch_smaller_than_the_number_of_workers_is_refused(cache: Any) -> None:
    with pytest.raises(UsageError, match="global_batch 2 is smaller than the number of workers, 3"):
        One(new_head(), cache, TrainSettings(**{**SETTINGS, "global_batch": 2}), workers=Workers(count=3))


def test_objectives_are_refused_data_that_lacks_what_they_need(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    alone = make_cache(make_index({f"s:{i}": 2 for i in range(8)}, engines=()))
    with pytest.raises(UsageError, match="one: the training data \\(8 identities\\) has none"):
        training(alone, evaluate_every=0)
    losses = [row.loss for row in training(alone, evaluate_every=0, objective="infonce", distractor_slots=0).rows()]
    assert len(losses) == 20
    paired = make_cache(make_index({f"s:{i}": 2 for i in range(8)}))
    with pytest.raises(UsageError, match="no anchor with two distractors of known"):
        training(paired, evaluate_every=0, objective="infonce-oracle")


def test_a_batch_of_identities_without_distractors_is_refused(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    engines = ("fill", "paint")
    bare = [(f"s:{i}", view, engine) for i in range(1, 8) for view in range(2) for engine in engines]
    cache = make_cache(make_index({f"s:{i}": 2 for i in range(8)}, engines=engines, broken=bare))
    with pytest.raises(UsageError, match="needs distractors, but this global batch has none"):
        list(training(cache, evaluate_every=0, global_batch=2).run())


def test_the_oracle_of_each_distractor_reaches_the_objective(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    index = make_index({f"mtg:{i}": 2 for i in range(8)}, engines=["mtg"])
    oracle = [
        None if row["engine"] == "" else 0.1 * int(row["identity_id"][-1]) + 0.05 * row["view_index"]
        for row in index.to_pylist()
    ]
    cache = make_cache(index.append_column("oracle", pa.array(oracle, pa.float64())))
    run = training(cache, evaluate_every=0, objective="infonce-oracle", global_batch=8)
    items = run.selection.choose(run.selection.epoch(0, 8)[0], 0)
    batch = run._read(0).batch
    assert batch.oracle_BK is not None
    for i, rows in enumerate(items.distractor_BK):
        expected = [oracle[row] if row >= 0 else np.nan for row in rows]
        assert np.allclose(batch.oracle_BK[i].numpy(), expected, equal_nan=True)
    parts = next(run.rows()).parts
    assert set(parts) == {"disc", "oracle"} and parts["oracle"] > 0


def test_a_state_of_another_architecture_is_refused_saying_what_differs(cache: Any) -> None:
    state = training(cache).state()
    with pytest.raises(UsageError, match=r"architecture: there 'width 16, 2 attention heads, MLP 32', now .* MLP 64"):
        One(AttentionPoolingHead(16, 2, 64), cache, TrainSettings(**SETTINGS)).restore(state)


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint here"):
        load_state(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UsageError, match="not a checkpoint of training"):
        load_state(tmp_path / "text.pt")
