"""Heads that leave a stack: the others do not notice, and a head that cannot go on does not take them with it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.settings import TrainSettings

BASE = TrainSettings(learning_rate=3e-3, warmup_steps=3, global_batch=16, max_steps=16, evaluate_every=4)
RUNS = {
    "nearid": replace(BASE, alpha=1.0),
    "cohesion": replace(BASE, objective="nearid-cohesion", beta=0.3, learning_rate=1e-3, clip=0.5),
    "circle": replace(BASE, objective="circle-rank", gamma=32.0, margin=0.2, warmup_steps=6),
    "siglip": replace(BASE, objective="siglip-rank", temperature=0.1, weight_decay=0.1, adam_beta1=0.8),
}
WILD = replace(BASE, learning_rate=1e30)


@pytest.fixture(scope="module")
def cache(make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]) -> Any:
    views = {f"s:{i:02}": 2 + i % 2 for i in range(40)}
    return make_cache(make_index(views, split=lambda name: "val" if name >= "s:30" else "train"))


def training(cache: Any, runs: Mapping[str, TrainSettings], **options: Any) -> HeadTraining:
    heads = {}
    for name in runs:
        torch.manual_seed(0)
        heads[name] = AttentionPoolingHead(16, 2, 32)
    return HeadTraining(heads, cache, runs, **options)


def trained(cache: Any, runs: Mapping[str, TrainSettings], leaving: Mapping[int, Collection[str]]) -> dict[str, Any]:
    """State of each run at its end, some leaving after a step."""
    together, ended = training(cache, runs), {}
    for _ in together.run():
        ended |= together.leave(leaving.get(together.step, ()))
    return ended | together.state()


def assert_same(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    for name, value in left["head"].items():
        torch.testing.assert_close(right["head"][name], value, rtol=0, atol=1e-5)
    for mine, other in zip(left["history"], right["history"], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert (mine["val_ssr"], mine["val_pa"]) == (other["val_ssr"], other["val_pa"])


def test_each_head_of_a_stack_is_the_head_trained_alone_whoever_leaves_on_the_way(cache: Any) -> None:
    stacked = trained(cache, RUNS, {4: ["circle"], 8: ["nearid"]})
    assert {name: state["step"] for name, state in stacked.items()} == {
        "circle": 4,
        "nearid": 8,
        "cohesion": 16,
        "siglip": 16,
    }
    for name, settings in RUNS.items():
        alone = trained(cache, {name: settings}, {stacked[name]["step"]: [name]})
        assert_same(alone[name], stacked[name])
        assert stacked[name]["best"]["step"] == alone[name]["best"]["step"]


def test_nothing_is_computed_for_a_head_that_left(cache: Any) -> None:
    together = training(cache, RUNS)
    for rows in together.run():
        if together.step == 4:
            head = together.runs["circle"].head
            together.leave(["circle"])
            before = {name: value.clone() for name, value in head.state_dict().items()}
        assert ("circle" in rows) == (together.step <= 4)
    assert len(together._stack) == 3
    for name, value in head.state_dict().items():
        assert torch.equal(before[name], value)
    assert [row.step for row in together.runs["nearid"].history] == list(range(17))


def test_training_goes_on_from_the_state_of_those_that_stayed(cache: Any) -> None:
    whole = trained(cache, RUNS, {4: ["circle"]})
    first = training(cache, RUNS)
    for _ in first.run():
        if first.step == 4:
            first.leave(["circle"])
        if first.step == 8:
            break
    state = first.state()
    second = training(cache, {name: RUNS[name] for name in state})
    second.restore(state)
    list(second.run())
    for name, other in second.state().items():
        assert_same(whole[name], other)


def test_all_may_leave_and_training_is_over(cache: Any) -> None:
    together, steps = training(cache, RUNS), []
    for _ in together.run():
        steps.append(together.step)
        if together.step == 4:
            together.leave(list(RUNS))
    assert steps == [0, 1, 2, 3, 4]


def test_a_head_that_cannot_go_on_leaves_and_the_others_go_on(cache: Any) -> None:
    together = training(cache, {"wild": WILD, "nearid": RUNS["nearid"]}, tolerant=True)
    list(together.run())
    assert set(together.failed) == {"wild"} and "learning rate is too high" in together.failed["wild"]
    assert_same(trained(cache, {"nearid": RUNS["nearid"]}, {})["nearid"], together.state()["nearid"])


def test_a_head_whose_validation_is_not_finite_leaves_too(cache: Any) -> None:
    runs = {"broken": RUNS["nearid"], "nearid": RUNS["nearid"]}
    together, seen = training(cache, runs, tolerant=True), []
    for rows in together.run():
        seen.append(rows)
        if together.step == 3:  # the step after it moves the weights; the validation after that sees them
            with torch.no_grad():
                together.runs["broken"].head.mlp.fc2.bias.fill_(float("inf"))
    assert set(together.failed) == {"broken"}
    assert all(isinstance(row, HistoryRow) for row in seen[-1].values()) and set(seen[-1]) == {"nearid"}


def test_all_heads_may_fail_and_training_ends_without_an_error(cache: Any) -> None:
    together = training(cache, {"wild": WILD, "wilder": replace(WILD, alpha=2.0)}, tolerant=True)
    list(together.run())
    assert set(together.failed) == {"wild", "wilder"} and not together.runs


def test_without_tolerance_the_first_failure_ends_training(cache: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"wild, step \d+: loss"):
        list(training(cache, {"wild": WILD, "nearid": BASE}).run())


def test_a_stack_of_one_objective_has_the_losses_and_gradients_of_each_head_alone(cache: Any) -> None:
    """Heads of one objective share one pass of the loss, others have their own; every mix must be the same."""
    mixed = {
        "a": BASE,
        "b": replace(BASE, alpha=0.0, reduction="pairs"),
        "c": replace(BASE, objective="infonce"),
        "d": replace(BASE, objective="nearid-cohesion", beta=0.2),
        "e": replace(BASE, alpha=2.0, beta=0.5, chunk=5),
        "f": replace(BASE, alpha=3.0, chunk=5),
    }
    together = training(cache, mixed)
    next(rows for rows in together.run() if together.step == 2)
    for name, settings in mixed.items():
        alone = training(cache, {name: settings})
        row = next(rows for rows in alone.run() if alone.step == 2)[name]
        mine = together.runs[name].history[-1]
        assert mine.loss == pytest.approx(row.loss, rel=1e-6) and mine.parts == pytest.approx(row.parts, rel=1e-5)
        assert mine.grad_norm == pytest.approx(row.grad_norm, rel=1e-4)
