"""Which trials a rung stops, and which room a sweep needs."""

from types import SimpleNamespace
from typing import Any

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.training.settings import WorkerSettings
from nearid_ray.tuning.asha import AshaSettings, Halving, behind, rungs
from nearid_ray.tuning.resources import room

ON = AshaSettings(asha=True, grace_steps=10, reduction_factor=2)


class Judged:
    """A scheduler of some passes and what it has settled."""

    def __init__(self, members: dict[str, list[str]], steps: int = 100) -> None:
        self.settled: list[tuple[str, int, list[str]]] = []
        stops = {name: rungs(ON, steps, 10) for name in members}
        self.scheduler = Halving(members, stops, 2.0, self._settle, "score")

    def _settle(self, of_pass: str, step: int, leaving: Any) -> None:
        self.settled.append((of_pass, step, list(leaving)))

    def report(self, step: int, **scores: float) -> None:
        for name, score in scores.items():
            self.scheduler.on_trial_result(None, trial(name), {"step": step, "score": score})


def trial(name: str) -> Any:
    return SimpleNamespace(config={"trial": name})


def test_rungs_are_validations_each_so_many_times_as_far_as_the_last() -> None:
    assert rungs(ON, 100, 10) == (10, 20, 40, 80)
    assert rungs(AshaSettings(asha=True, grace_steps=15, reduction_factor=3), 200, 10) == (20, 50, 140)
    assert rungs(AshaSettings(asha=True), 400, 50) == (100, 300)


def test_a_sweep_that_could_never_stop_a_trial_is_refused() -> None:
    with pytest.raises(UsageError, match="evaluate_every is 0"):
        rungs(ON, 100, 0)
    with pytest.raises(UsageError, match="trials have 10 steps"):
        rungs(ON, 10, 10)
    with pytest.raises(UsageError, match="reduction_factor is 1"):
        AshaSettings(reduction_factor=1)


def test_the_best_share_goes_on_and_ties_go_on_with_it() -> None:
    assert behind({"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}, [0.9, 0.8, 0.7, 0.6], 2) == ["c", "d"]
    assert behind({"a": 0.9, "b": 0.9, "c": 0.7}, [0.9, 0.9, 0.7], 3) == ["c"]
    assert behind({"a": 0.1}, [0.1], 4) == []


def test_a_pass_is_judged_when_all_its_trials_have_reported_whatever_their_order() -> None:
    verdicts = []
    for order in (["a", "b", "c", "d"], ["d", "c", "b", "a"]):
        judged = Judged({"p": ["a", "b", "c", "d"]})
        scores = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
        for name in order[:3]:
            judged.report(10, **{name: scores[name]})
        assert judged.settled == []
        judged.report(10, **{order[3]: scores[order[3]]})
        verdicts.append([sorted(leaving) for _, _, leaving in judged.settled])
    assert verdicts == [[["c", "d"]], [["c", "d"]]]


def test_later_steps_wait_for_those_alone_that_are_left_and_validations_between_rungs_stop_nobody() -> None:
    judged = Judged({"p": ["a", "b", "c", "d"]})
    judged.report(10, a=0.4, b=0.3, c=0.2, d=0.1)
    judged.scheduler.on_trial_complete(None, trial("c"), {})
    judged.report(20, a=0.5, b=0.6)
    judged.report(30, b=0.6, a=0.7)
    assert judged.settled == [("p", 10, ["c", "d"]), ("p", 20, ["a"]), ("p", 30, [])]
    assert judged.scheduler.stopped == {"c": 10, "d": 10, "a": 20}


def test_a_trial_that_fails_does_not_hold_up_the_others() -> None:
    judged = Judged({"p": ["a", "b", "c"]})
    judged.report(10, a=0.4, b=0.3)
    assert judged.settled == []
    judged.scheduler.on_trial_error(None, trial("c"))
    assert judged.settled == [("p", 10, ["b"])]


def test_trials_of_another_pass_are_compared_with_those_before() -> None:
    judged = Judged({"p": ["a", "b"], "q": ["c", "d"]})
    judged.report(10, a=0.9, b=0.8)
    judged.report(10, c=0.7, d=0.85)
    assert judged.settled == [("p", 10, ["b"]), ("q", 10, ["c"])]
    alone = Judged({"r": ["e"]})
    alone.scheduler.know({0: [0.9, 0.8, 0.7]})
    alone.report(10, e=0.75)
    assert alone.settled == [("r", 10, ["e"])]


def test_a_report_that_comes_again_changes_nothing() -> None:
    judged = Judged({"p": ["a", "b"]})
    judged.report(10, a=0.9, b=0.8)
    judged.report(10, a=0.9)
    assert judged.settled == [("p", 10, ["b"])]


def test_passes_at_once_follow_from_what_the_cluster_has() -> None:
    assert room(WorkerSettings(workers=2, threads=2, gpu=False), 16, 0).passes == 4
    assert room(WorkerSettings(workers=2), 64, 5).passes == 2
    assert room(WorkerSettings(workers=4), 8, 2).pass_gpus == 0
    assert room(WorkerSettings(workers=4, min_workers=2, gpu=False), 2, 0).passes == 1
    assert room(WorkerSettings(workers=4, gpu=True), 1, 0, wanted=3).passes == 3


def test_a_sweep_without_room_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(UsageError, match="3 workers x 2 CPUs = 6 CPUs, the cluster has 4 CPUs and 0 GPUs"):
        room(WorkerSettings(workers=3, threads=2), 4, 0)
    with pytest.raises(UsageError, match="and a GPU each = 2 CPUs and 2 GPUs, the cluster has 8 CPUs and 1 GPUs"):
        room(WorkerSettings(gpu=True), 8, 1)
