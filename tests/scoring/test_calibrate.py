"""Calibrations fitted on eval records: what counts as different, thresholds on other pairs, and whose they are."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import nearid_ray
from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, Location, locate, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.models.checkpoint import CALIBRATION_FILE, HeadCard, save_head
from nearid_ray.scoring.calibrate import (
    CalibrateSettings,
    Pairs,
    check_points,
    fit,
    fit_condition,
    labelled_pairs,
    name_in_records,
    read_records,
    unseen_probability,
)
from nearid_ray.stages.calibrate import Calibrate, run_calibrate
from nearid_ray.stages.release import Release, run_release
from nearid_ray.tracking import TrackingSettings
from schemas import SIMILARITIES
from tests.scoring.conftest import moved_head

QUIET = TrackingSettings(tracking_uri="off")


def write_records(folder: Path, split: str, *, seed: int, identities: int = 300, scorer: str = "mine") -> Path:
    """An evaluation's similarities: same pairs around 0.8, distractors around 0.5, random pairs around 0.1."""
    rng = np.random.default_rng(seed)
    rows = []
    for identity in range(identities):
        for kind, engine, mean in (
            ("positive", "", 0.8),
            ("distractor", "redraw", 0.5),
            ("distractor", "redraw-control", 0.9),
            ("random", "", 0.1),
            ("crossed", "redraw", 0.3),
        ):
            for repeat in range(4):
                rows.append(
                    {
                        "pair_id": f"{split}-{identity}-{kind}-{engine}-{repeat}",
                        "kind": kind,
                        "identity_id": f"t:{identity}",
                        "category": "mug",
                        "split": split,
                        "view_index": repeat,
                        "other_identity_id": f"t:{identity + (kind == 'random')}",
                        "other_view_index": repeat,
                        "engine": engine,
                        "oracle": None,
                        "scorer": scorer,
                        "condition": "full",
                        "similarity": float(np.clip(rng.normal(mean, 0.12), -1, 1)),
                    }
                )
    dataset = Dataset(folder / "similarities")
    dataset.shard("000-000000").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=SIMILARITIES.schema)))
    store_settings(dataset, SIMILARITIES.name, {"split": split})
    return folder


@pytest.fixture(scope="module")
def val(tmp_path_factory) -> Location:
    return locate(write_records(tmp_path_factory.mktemp("val"), "val", seed=0))


@pytest.fixture(scope="module")
def test(tmp_path_factory) -> Location:
    return locate(write_records(tmp_path_factory.mktemp("test"), "test", seed=1))


def test_controls_and_crossed_pairs_are_no_different_pairs(val):
    pairs = labelled_pairs(read_records(val, CalibrateSettings()), "mine", "full")
    kinds, counts = np.unique(pairs.kind, return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {"distractor": 1200, "positive": 1200, "random": 1200}
    assert np.array_equal(pairs.same, pairs.kind == "positive")
    only = CalibrateSettings(kinds=("random",))
    assert set(labelled_pairs(read_records(val, only), "mine", "full").kind) == {"positive", "random"}


def test_rates_wished_on_validation_pairs_hold_on_test_pairs(val, test, functions):
    scorer = nearid_ray.load(f"{functions}:means")
    settings = CalibrateSettings()
    stored = fit(read_records(val, settings), scorer, "mine", settings)
    assert [point.wished for point in stored.of("full").points] == [0.1, 0.01]  # 2,400 pairs do not tell 0.001
    for one in check_points(read_records(test, settings, "test"), stored, "mine", resamples=50):
        assert one.false_accepts.value == pytest.approx(one.point.wished, rel=0.5)
        assert one.false_accepts.low <= one.false_accepts.value <= one.false_accepts.high
        both = (one.by_kind["distractor"].value + one.by_kind["random"].value) / 2
        assert one.false_accepts.value == pytest.approx(both)
        assert one.by_kind["distractor"].value > one.by_kind["random"].value
    assert stored.of("full").reliability.expected_error < 0.05
    with pytest.raises(UsageError, match=r"has no threshold for a false-accept rate of 0.001; it has 0.1, 0.01"):
        stored.of("full").threshold(0.001)
    with pytest.raises(UsageError, match="not for foreground"):
        stored.of("foreground")


def test_reliability_is_of_identities_that_the_fit_has_not_seen():
    # Similarities that say nothing: a fit judged by its own pairs would look better than chance.
    rng = np.random.default_rng(0)
    pairs = Pairs(
        similarity=rng.normal(size=400),
        same=rng.random(400) < 0.5,
        identity=np.repeat(np.arange(100), 4),
        kind=np.full(400, "random"),
    )
    unseen = unseen_probability(pairs, "isotonic")
    seen = fit_condition(pairs, CalibrateSettings()).calibration.probability(pairs.similarity)
    assert np.mean((seen - pairs.same) ** 2) < 0.25 < np.mean((unseen - pairs.same) ** 2)
    assert np.isfinite(unseen).all()


def test_pairs_without_a_similarity_count_in_the_coverage_alone():
    similarity = np.array([0.9, 0.8, np.nan, 0.1, 0.2, 0.3])
    pairs = Pairs(similarity, np.array([1, 1, 1, 0, 0, 0], bool), np.arange(6), np.full(6, "random"))
    found = fit_condition(pairs, CalibrateSettings(method="logistic"))
    assert found.calibration.coverage == pytest.approx(5 / 6) and found.calibration.num_pairs == 5
    assert found.points == ()
    with pytest.raises(UsageError, match="0 same and 3 different pairs"):
        fit_condition(Pairs(similarity[3:], pairs.same[3:], pairs.identity[3:], pairs.kind[3:]), CalibrateSettings())


def test_the_scorer_is_found_in_the_records_or_asked_for(val, functions):
    scorer, records = nearid_ray.load(f"{functions}:means"), read_records(val, CalibrateSettings())
    with pytest.raises(UsageError, match=r"which of the scorers .* It has mine; none has its weights.*--name NAME"):
        name_in_records(val, records, scorer)
    with pytest.raises(UsageError, match=r"has no scorer 'other'; it has mine"):
        name_in_records(val, records, scorer, "other")
    assert name_in_records(val, records, scorer, "mine") == "mine"


def test_the_test_split_is_not_fitted_on(test):
    with pytest.raises(UsageError, match=r"has no pairs of the split 'val', but of test; .*--split val"):
        read_records(test, CalibrateSettings())


def test_a_calibration_lies_beside_the_head_and_comes_with_its_release(val, test, toy, files, tmp_path):
    head = moved_head(toy)
    folder = tmp_path / "heads" / "toy" / "best"
    save_head(str(folder), head, HeadCard.of(head, toy.spec, toy.fingerprint))
    done = run_calibrate(
        Calibrate(
            scorer=str(folder),
            records=val.uri,
            check=test.uri,
            output=str(tmp_path / "calibration"),
            name="mine",
            tracking=QUIET,
        )
    )
    assert done.summary["full"]["too_few_pairs_for"] == ["0.001"]
    assert (tmp_path / "calibration" / "reliability.svg").read_text().startswith("<svg")
    scorer = nearid_ray.load(str(folder), device="cpu")
    similarity = scorer.similarity(files[0], files[1])
    fitted = scorer.calibrated()
    for share in (0.5, 0.1):
        expected = fitted.calibration.probability(similarity, same_share=share).item()
        assert scorer.probability(files[0], files[1], same_share=share) == pytest.approx(expected)
    assert scorer.same(files[0], files[0]) and scorer.same(files[0], files[1]) == (similarity >= fitted.threshold(0.01))
    with pytest.raises(UsageError, match="one picture has a mask, the other has none"):
        scorer.probability(files[0], files[0], mask_a=np.ones((80, 96), bool))

    run_release(Release(head=str(folder), output=str(tmp_path / "release"), tracking=QUIET))
    released = nearid_ray.load(str(tmp_path / "release"), device="cpu")
    assert released.probability(files[0], files[1]) == pytest.approx(scorer.probability(files[0], files[1]), abs=0.02)
    (tmp_path / "release" / CALIBRATION_FILE).unlink()
    run_release(Release(head=str(folder), output=str(tmp_path / "release"), tracking=QUIET))
    assert (tmp_path / "release" / CALIBRATION_FILE).exists()

    other = moved_head(toy, seed=5)
    save_head(str(folder), other, HeadCard.of(other, toy.spec, toy.fingerprint))
    with pytest.raises(UsageError, match="was the head trained again"):
        nearid_ray.load(str(folder), device="cpu").probability(files[0], files[1])
    with pytest.raises(UsageError, match="was the head trained again"):
        run_release(Release(head=str(folder), output=str(tmp_path / "r2"), tracking=QUIET))


def test_without_a_calibration_probabilities_are_refused_in_words(head_folder, files, tmp_path):
    scorer = nearid_ray.load(str(head_folder), device="cpu")
    with pytest.raises(UsageError, match=r"has no calibration; fit one .* with jobs/calibrate.py"):
        scorer.same(files[0], files[1])
    for content, message in (
        (b"{", "is no calibration"),
        (json.dumps({"format": 2}).encode(), "has another format than 1"),
        (json.dumps({"format": 1, "conditions": {"full": {}}}).encode(), "is no calibration"),
    ):
        (tmp_path / CALIBRATION_FILE).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            nearid_ray.load(str(head_folder), device="cpu", calibration=str(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ()}, "expected distractor, random, or both"),
        ({"kinds": ("positive",)}, "expected distractor, random, or both"),
        ({"conditions": ("masked",)}, "expected some of full, foreground"),
        ({"false_accept_rates": (0.1, 1.0)}, "expected numbers between 0 and 1"),
        ({"false_accept_rates": (math.nan,)}, "expected numbers between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CalibrateSettings(**wrong)
