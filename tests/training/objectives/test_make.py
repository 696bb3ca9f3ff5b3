"""Objectives by name: defaults, options, refusals."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nearid_ray.errors import UsageError
from nearid_ray.training.losses import (
    OBJECTIVE_NAMES,
    EmbeddedTuples,
    NearIdObjective,
    ObjectiveOptions,
    check_data,
    make_objective,
)
from nearid_ray.training.objectives.circle import CircleObjective
from nearid_ray.training.objectives.infonce import InfoNceObjective
from nearid_ray.training.objectives.sigmoid import SigmoidObjective

MADE = {
    "nearid": NearIdObjective(alpha=0.5, beta=0.0, temperature=0.07, reduction="paper", mode="exact", strict=True),
    "nearid-cohesion": NearIdObjective(alpha=0.5, beta=0.1, strict=True),
    "infonce": InfoNceObjective(temperature=0.07, strict=True),
    "infonce-distractors": InfoNceObjective(distractors=True, strict=True),
    "infonce-oracle": InfoNceObjective(oracle=True, alpha=1.0, margin=0.05, strict=True),
    "infonce-distractors-oracle": InfoNceObjective(distractors=True, oracle=True, strict=True),
    "siglip-rank": SigmoidObjective(alpha=0.5, temperature=0.07, bias=-10.0, strict=True),
    "circle-rank": CircleObjective(alpha=0.5, margin=0.25, gamma=64.0, hinge="largest", strict=True),
}
NEEDS = {
    "infonce": set(),
    "infonce-distractors": {"distractors"},
    "infonce-oracle": {"distractors", "oracle"},
    "infonce-distractors-oracle": {"distractors", "oracle"},
}


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_every_name_makes_its_objective_with_the_published_numbers(name) -> None:
    assert make_objective(name) == make_objective(name, ObjectiveOptions()) == MADE[name]
    assert make_objective(name).needs == NEEDS.get(name, {"distractors"})


def test_options_are_taken_from_either_form() -> None:
    by_name = make_objective("circle-rank", alpha=0.1, hinge="mean", chunk=7)
    assert by_name == make_objective("circle-rank", ObjectiveOptions(alpha=0.1, hinge="mean", chunk=7))
    assert by_name == CircleObjective(alpha=0.1, hinge="mean", chunk=7, strict=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("triplet", {}, "objective is 'triplet'; expected one of nearid, nearid-cohesion, infonce, infonce-dis"),
        ("nearid", {"tau": 0.07}, "objective nearid has no option tau; its options are alpha, beta, temperature, red"),
        ("nearid", {"tau": None}, "objective nearid has no option tau"),
        ("infonce", {"alpha": 0.5}, "objective infonce has no option alpha; its options are temperature, chunk"),
        ("circle-rank", {"temperature": 0.1, "beta": 0.1}, "has no option beta, temperature"),
        ("nearid", {"alpha": -1.0}, "alpha is -1.0; expected a number, 0 or more"),
        ("nearid-cohesion", {"beta": -0.1}, "beta is -0.1"),
        ("siglip-rank", {"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ("siglip-rank", {"bias": float("inf")}, "bias is inf"),
        ("infonce", {"temperature": float("nan")}, "temperature is nan"),
        ("infonce-oracle", {"margin": 2.1}, "margin is 2.1; expected a cosine difference, 0 to 2"),
        ("circle-rank", {"margin": 1.1}, "margin is 1.1; expected a cosine, 0 to 1"),
        ("circle-rank", {"gamma": 0.0}, "gamma is 0.0"),
        ("circle-rank", {"hinge": "hard"}, "hinge is 'hard'; expected one of largest, mean"),
        ("nearid", {"mode": "released"}, "mode is 'released'; expected one of exact, reference"),
        ("siglip-rank", {"reduction": "sum"}, "reduction is 'sum'; expected one of paper, pairs"),
        ("nearid", {"chunk": 0}, "chunk is 0; expected a whole number, 1 or more"),
        ("nearid", {"chunk": 1.5}, "chunk is 1.5"),
    ],
)
def test_wrong_names_and_values_are_refused_with_what_was_expected(name, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_objective(name, **options)


def without_distractors(tuples: EmbeddedTuples) -> EmbeddedTuples:
    return replace(tuples, distractor_valid_BK=torch.zeros_like(tuples.distractor_valid_BK))


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_a_batch_without_distractors_is_refused_by_objectives_that_need_them(make_tuples, value_of, name) -> None:
    objective = make_objective(name)
    for tuples in (without_distractors(make_tuples(4, 2, 3)), make_tuples(4, 2, 0)):
        if objective.needs:
            with pytest.raises(UsageError, match="this global batch has none"):
                value_of(objective, tuples)
        else:
            assert value_of(objective, tuples).loss.isfinite()
        assert value_of(replace(objective, strict=False), tuples).loss.isfinite()


def test_data_without_what_an_objective_needs_is_refused_and_named() -> None:
    with pytest.raises(UsageError, match="needs distractors, but the toy set has none"):
        check_data(make_objective("nearid"), distractors=0, what="the toy set")
    with pytest.raises(UsageError, match="oracle values"):
        check_data(make_objective("infonce-oracle"), distractors=8, oracle_pairs=0)
    check_data(make_objective("infonce"), distractors=0, oracle_pairs=0)
    check_data(make_objective("infonce-oracle"), distractors=8)
    check_data(make_objective("nearid"), distractors=1, oracle_pairs=0)


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_missing_slots_may_hold_nan_in_every_objective(make_tuples, value_of, name) -> None:
    clean = make_tuples(6, 2, 3, seed=2)
    positive_BPD, distractor_BKD = clean.positive_BPD.detach().clone(), clean.distractor_BKD.detach().clone()
    positive_BPD[~clean.positive_valid_BP] = float("nan")
    distractor_BKD[~clean.distractor_valid_BK] = float("nan")
    spoilt = replace(clean, positive_BPD=positive_BPD.requires_grad_(), distractor_BKD=distractor_BKD.requires_grad_())
    outcomes = []
    for tuples in (clean, spoilt):
        value = value_of(make_objective(name, chunk=5), tuples)
        leaves = [tuples.anchor_BD, tuples.positive_BPD, tuples.distractor_BKD]
        outcomes.append([value.loss, *torch.autograd.grad(value.loss, leaves, materialize_grads=True)])
    assert all(torch.equal(expected, found) for expected, found in zip(*outcomes, strict=True))


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_autocast_around_changes_nothing_and_half_precision_is_raised(make_tuples, value_of, name) -> None:
    exact = make_tuples(6, 2, 3, missing=0.2)
    names = ("anchor_BD", "positive_BPD", "distractor_BKD")
    half = replace(exact, **{n: getattr(exact, n).detach().bfloat16().requires_grad_() for n in names})
    raised = replace(half, **{n: getattr(half, n).detach().float() for n in names})
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value_of(make_objective(name), half)
        mixed.loss.backward()
    plain = value_of(make_objective(name), raised)
    assert mixed.loss.dtype == torch.float32 and mixed.loss.item() == plain.loss.item()
    assert half.anchor_BD.grad is not None and half.anchor_BD.grad.isfinite().all()


class Waits(TorchDispatchMode):
    """Notes operations whose outcome the host must wait for: reading a number, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        by_mask = name.startswith("aten.index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for argument in args
            for index in (argument if isinstance(argument, (list, tuple)) else [])
        )
        if by_mask or any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_neither_loss_nor_gradients_wait_for_the_device(make_tuples, value_of, name, chunk: int) -> None:
    objective, tuples = replace(make_objective(name, chunk=chunk), strict=False), make_tuples(6, 2, 3)
    with Waits() as waits:
        value_of(objective, tuples).loss.backward()
    assert waits.found == []


def test_the_check_for_waits_finds_them(make_tuples) -> None:
    tuples = make_tuples(6, 2, 3)
    with Waits() as waits:
        tuples.anchor_BD[tuples.positive_valid_BP[:, 0]].sum().item()
    assert len(waits.found) >= 2
