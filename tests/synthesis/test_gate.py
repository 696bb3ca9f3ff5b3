"""The quality gate: each verdict on a planted picture, and rejected rows painted again with another seed."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.gate import GateSettings, check_gate, judge, load_embed, measure, object_alone
from nearid_ray.synthesis.paint import Batches, Painter, Row

GATE = GateSettings()


def view_and_mask(seed: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    view = np.random.default_rng(seed).integers(20, 230, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[8:20, 4:26] = 255
    return view, mask


def painted(change: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    view, mask = view_and_mask()
    inside = mask > 0
    image = view.copy()
    if change == "flat":
        image[inside] = 90
    elif change == "burnt":
        image[inside] = np.where(np.random.default_rng(1).random((inside.sum(), 3)) < 0.9, 255, 128)
    elif change == "noise":
        image[inside] = np.random.default_rng(2).integers(20, 230, (inside.sum(), 3))
    elif change == "one step":
        image[inside] += 1
    return view, image, mask


@pytest.mark.parametrize(
    ("change", "flagged", "expected"),
    [
        ("noise", None, "accepted"),
        ("noise", False, "accepted"),
        ("noise", True, "flagged"),
        ("flat", None, "blank"),
        ("burnt", None, "saturated"),
        ("nothing", None, "unchanged"),
        ("one step", None, "unchanged"),
    ],
)
def test_each_fault_has_its_verdict(change, flagged, expected):
    assert judge(measure(*painted(change), flagged=flagged), GATE) == expected


def test_a_soft_edge_does_not_hide_a_blank_picture():
    view, mask = view_and_mask()
    request = EngineRequest(view_HW3=view, mask_HW=mask, seed=0)

    class Blank(Moody):
        def generate(self, requests):
            return [EngineResult(image_HW3=np.full_like(r.view_HW3, 90), mask_HW=r.mask_HW) for r in requests]

    soft = Painter(batches=Batches(Blank(set())), gate=GATE, feather_px=4)  # type: ignore[arg-type]
    result = soft.paint([Row(row_id="a", batch=0, request=request)])[0]
    assert result.verdict == "blank"
    assert result.image_HW3[mask > 0].std() > 5


def test_what_is_measured_equals_explicit_loops():
    view, image, mask = painted("burnt")
    seen = measure(view, image, mask)
    values = [[int(image[y, x, c]) for y, x in np.argwhere(mask)] for c in range(3)]
    ends = sum(v in (0, 255) for channel in values for v in channel)
    changes = [abs(int(image[y, x, c]) - int(view[y, x, c])) for y, x in np.argwhere(mask) for c in range(3)]
    means = [sum(channel) / len(channel) for channel in values]
    spreads = [
        (sum((v - m) ** 2 for v in channel) / len(channel)) ** 0.5 for channel, m in zip(values, means, strict=True)
    ]
    assert seen.saturated_share == pytest.approx(ends / len(changes))
    assert seen.object_mean_difference == pytest.approx(sum(changes) / len(changes))
    assert seen.object_deviation == pytest.approx(max(spreads))
    assert (seen.object_similarity, seen.flagged) == (None, None)


def test_only_the_masked_object_decides_the_similarity():
    view, image, mask = painted("noise")
    other = view.copy()
    other[mask == 0] = 7
    seen: list[np.ndarray] = []

    def embed(pictures):
        seen.extend(pictures)
        return np.stack([picture.astype(float).reshape(-1) for picture in pictures])

    similarity = measure(view, image, mask, embed=embed).object_similarity
    assert (
        similarity == measure(other, np.where(mask[..., None] > 0, image, other), mask, embed=embed).object_similarity
    )
    assert measure(view, view, mask, embed=embed).object_similarity == pytest.approx(1)
    assert similarity is not None and 0 < similarity < 0.99
    assert {picture.shape for picture in seen} == {(22, 22, 3)}
    assert (object_alone(view, mask)[:5] == 0).all() and (object_alone(view, mask)[5:17] > 0).any()


def test_a_real_backbone_rejects_what_is_too_far():
    settings = GateSettings(gate_backbone="toybox-siglip2", min_similarity=0.98)
    embed = load_embed(settings)
    far = measure(*painted("noise"), embed=embed)
    near = measure(*painted("one step"), embed=embed)
    assert far.object_similarity < near.object_similarity <= 1 + 1e-6
    assert (judge(far, settings), judge(far, settings, control=True)) == ("too-far", "accepted")
    assert judge(far, GateSettings(gate_backbone="toybox-siglip2")) == "accepted"  # measured alone


def test_a_backbone_that_is_not_there_is_refused_and_a_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec, said in (("/no/such/folder", "no such folder"), (str(tmp_path), "config.json is missing")):
        with pytest.raises(UsageError, match=said):
            check_gate(GateSettings(gate_backbone=spec))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert check_gate(GateSettings(gate_backbone="./model")).gate_backbone == str(tmp_path / "model")
    assert check_gate(GateSettings(gate_backbone="toybox-siglip2")).gate_backbone == "toybox-siglip2"
    assert check_gate(GATE) == GATE


def test_a_control_may_stay_the_same_but_not_be_blank():
    assert judge(measure(*painted("nothing")), GATE, control=True) == "accepted"
    assert judge(measure(*painted("flat")), GATE, control=True) == "blank"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retries": -1}, "retries"),
        ({"max_saturated_share": 1.5}, "max_saturated_share"),
        ({"min_object_difference": -1.0}, "min_object_difference"),
        ({"min_similarity": 0.5}, "gate_backbone"),
        ({"gate_backbone": "x", "min_similarity": 2.0}, "cosine"),
        ({"gate_revision": "main"}, "gate_revision"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        GateSettings(**wrong)


@dataclass
class Moody:
    """Changes nothing for the seeds that it is told, noise for others; like a real model, the batch moves a bit."""

    lazy: set[int]
    name: str = "moody"
    group: str = "train"
    batches: list[list[int]] = field(default_factory=list)

    def generate(self, requests):
        self.batches.append([request.seed for request in requests])
        made = []
        for request in requests:
            noise = np.random.default_rng(request.seed).integers(20, 230, request.view_HW3.shape, dtype=np.uint8)
            noise[0, 0] = noise[8, 4] = len(requests)
            made.append(
                EngineResult(
                    image_HW3=request.view_HW3 if request.seed in self.lazy else noise, mask_HW=request.mask_HW
                )
            )
        return made


def rows(count: int, batch: int = 2) -> list[Row]:
    made = []
    for number in range(count):
        view, mask = view_and_mask(number, size=32)
        name = f"row{number}"
        request = EngineRequest(view_HW3=view, mask_HW=mask, seed=seed_of(name, 0))
        made.append(Row(row_id=name, batch=number // batch, request=request))
    return made


def painter(engine: Moody, retries: int) -> Painter:
    return Painter(batches=Batches(engine), gate=GateSettings(retries=retries))  # type: ignore[arg-type]


def lazy(*tries: tuple[int, int]) -> set[int]:
    return {seed_of(f"row{number}", attempt) for number, attempt in tries}


def test_rejected_rows_are_painted_again_among_themselves_in_the_plans_order():
    engine = Moody(lazy((0, 0), (3, 0), (3, 1), (5, 0), (5, 1), (5, 2)))
    results = painter(engine, retries=2).paint(rows(6))
    assert [result.attempt for result in results] == [1, 0, 0, 2, 0, 2]
    assert [result.verdict for result in results] == ["accepted"] * 5 + ["unchanged"]
    planned = [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0), (5, 0)]]
    repeated = [[(0, 1), (3, 1)], [(5, 1)], [(3, 2), (5, 2)]]
    expected = [[seed_of(f"row{row}", attempt) for row, attempt in batch] for batch in planned + repeated]
    assert engine.batches == expected
    again = painter(Moody(engine.lazy), retries=2).paint(rows(6))
    for first, second in zip(results, again, strict=True):
        assert np.array_equal(first.image_HW3, second.image_HW3)


def test_without_retries_a_rejected_row_is_kept_with_its_verdict():
    results = painter(Moody(lazy((1, 0))), retries=0).paint(rows(3))
    assert [(r.attempt, r.verdict) for r in results] == [(0, "accepted"), (0, "unchanged"), (0, "accepted")]


def test_the_batches_are_those_of_the_plan_whatever_rows_fail_to_be_read():
    engine = Moody(set())
    made = rows(6, batch=3)
    made[1] = Row(row_id="row1", batch=0, request=None, error="broken")
    results = painter(engine, retries=1).paint(made)
    assert [len(batch) for batch in engine.batches] == [2, 3]
    assert results[1].error == "broken" and results[1].verdict == "none"


def test_an_engine_whose_region_leaks_or_does_not_fit_costs_the_row():
    class Odd(Moody):
        def generate(self, requests):
            empty = np.zeros((32, 32), np.uint8)
            return [EngineResult(image_HW3=requests[0].view_HW3, mask_HW=empty), RuntimeError("planted")]

    results = painter(Odd(set()), retries=3).paint(rows(2))
    assert "mask is empty" in results[0].error
    assert results[1].error == "RuntimeError: planted"
    assert [r.attempt for r in results] == [0, 0]
