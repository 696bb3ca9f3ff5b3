"""Each pair is asked once for all engines, with the right two pictures; what cannot be asked is told."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.data.images import decode_mask, decode_rgb, foreground_only
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.align_records import judged_similarities
from nearid_ray.evaluation.pairwise.judge import Inputs, described_judging, outcome_of, plan_judging
from nearid_ray.evaluation.pairwise.plan import PairSettings, plan_generated, plan_judgements
from nearid_ray.evaluation.pairwise.scorer import Judgement, Pair
from nearid_ray.evaluation.pairwise.task import JudgeTask
from schemas import JUDGED_GENERATED, JUDGEMENTS, validate

MakeData = Callable[..., tuple[Dataset, Dataset]]


class Seen:
    """Keeps what it is shown; says how alike the first rows of both pictures are."""

    batch_size = 5

    def __init__(self, *, uses_masks: bool = False, kind: str = "seen") -> None:
        self.uses_masks, self.kind, self.pairs = uses_masks, kind, []

    def check(self) -> None: ...

    def load(self, device: str) -> None: ...

    def described(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def score(self, pairs: list[Pair]) -> list[Judgement]:
        self.pairs += pairs
        return [
            Judgement(similarity=-float(np.abs(p.first.image_HW3[0].astype(int) - p.second.image_HW3[0]).mean()))
            for p in pairs
        ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> tuple[Dataset, Dataset]:
    return make_data(tmp_path_factory.mktemp("data"))


def task_of(inputs: dict[str, Dataset], scorer: Any, table: str = "judgements") -> JudgeTask:
    uris = {kind: dataset.location.uri for kind, dataset in inputs.items()}
    return JudgeTask(inputs=uris, scorer=scorer, name="mine", table=table)


def judged(folder: Path, work: pa.Table, task: JudgeTask) -> pa.Table:
    task.setup()
    return run_shard(task, Dataset(folder), "s", work.append_column("shard", pa.array(["s"] * len(work))))


def test_every_pair_stands_there_once_whatever_the_number_of_engines(data: tuple[Dataset, Dataset]) -> None:
    work, rejected = plan_judgements(*data, PairSettings())
    counts = Counter(zip(work["condition"].to_pylist(), work["kind"].to_pylist(), strict=True))
    per_condition = {"positive": 4 * 3, "distractor": 4 * 3 * 2, "crossed": 4 * 3 * 2}
    assert counts == {(c, kind): count for c in ("full", "foreground") for kind, count in per_condition.items()}
    assert len(set(work["row_id"].to_pylist())) == len(work) and rejected == []
    assert set(work["split"].to_pylist()) == {"test"}
    crossed = [row for row in work.to_pylist() if row["kind"] == "crossed"]
    assert {row["engine"] for row in crossed} == {"recolor"}, "only engines with an oracle have crossed pairs"
    assert all(row["view_index"] != row["other_view_index"] for row in crossed)
    one, _ = plan_judgements(*data, PairSettings(engines=("redraw",), conditions=("full",)))
    assert Counter(one["kind"].to_pylist()) == {"positive": 12, "distractor": 12}


def test_the_scorer_sees_the_two_pictures_of_its_row_and_foreground_is_black(
    data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    tuples, distractors = data
    work, _ = plan_judgements(*data, PairSettings(random_views=1))
    scorer = Seen(uses_masks=True)
    table = judged(tmp_path, work, task_of({"tuples": tuples, "distractors": distractors}, scorer))
    views = {row["identity_id"]: row["views"] for row in tuples.read().to_pylist()}
    painted = {(r["identity_id"], r["view_index"], r["engine"]): r for r in distractors.read().to_pylist()}
    assert len(scorer.pairs) == len(table) and validate(table, JUDGEMENTS) == []
    assert {"random"} < set(table["kind"].to_pylist())
    for row, pair in zip(table.to_pylist(), scorer.pairs, strict=True):
        first = views[row["identity_id"]][row["view_index"]]
        second = views[row["other_identity_id"]][row["other_view_index"]]
        # A distractor is cut out by the mask of the view into which it was painted.
        shown = painted[row["other_identity_id"], row["other_view_index"], row["engine"]] if row["engine"] else second
        for side, image, mask in ((pair.first, first, first), (pair.second, shown, second)):
            expected, outline = decode_rgb(image["image"]["bytes"]), decode_mask(mask["mask"]["bytes"])
            if row["condition"] == "foreground":
                expected = foreground_only(expected, outline)
                assert not side.image_HW3[0].any()
            assert np.array_equal(side.image_HW3, expected) and np.array_equal(side.mask_HW, outline)
        assert row["similarity"] == -float(
            np.abs(pair.first.image_HW3[0].astype(int) - pair.second.image_HW3[0]).mean()
        )
        assert (row["scorer"], row["error"]) == ("mine", "")


def test_a_larger_trial_holds_the_smaller_one(data: tuple[Dataset, Dataset]) -> None:
    whole, _ = plan_judgements(*data, PairSettings())
    order = list(dict.fromkeys(whole["identity_id"].to_pylist()))
    assert [name for name, _ in itertools.groupby(whole["identity_id"].to_pylist())] == order
    for count in (1, 2, 3):
        part, _ = plan_judgements(*data, PairSettings(max_identities=count))
        assert list(dict.fromkeys(part["identity_id"].to_pylist())) == order[:count]
    few, _ = plan_judgements(*data, PairSettings(max_pairs=7))
    assert few["row_id"].to_pylist() == whole["row_id"].to_pylist()[:7]
    seeds = (plan_judgements(*data, PairSettings(pair_seed=seed, max_pairs=1))[0] for seed in range(6))
    assert len({work["identity_id"][0].as_py() for work in seeds}) > 1


def no_masks(views_of: slice) -> Callable[[Any, Any], None]:
    def change(rows: Any, others: Any) -> None:
        for row in rows[views_of]:
            for view in row["views"]:
                view["mask"] = None

    return change


def test_pictures_without_masks_have_no_foreground_and_are_told(tmp_path: Path, make_data: MakeData) -> None:
    data = make_data(tmp_path / "some", no_masks(slice(0, 1)))
    work, rejected = plan_judgements(*data, PairSettings())
    bare = [row["condition"] for row in work.to_pylist() if row["identity_id"] == "test:000"]
    assert set(bare) == {"full"}
    assert Counter(record["reason"] for record in rejected) == {"no-mask": 3 + 6}
    masked, _ = plan_judgements(*data, PairSettings(conditions=("full",)), uses_masks=True)
    assert "test:000" not in masked["identity_id"].to_pylist() and set(masked["condition"].to_pylist()) == {"full"}
    none = make_data(tmp_path / "none", no_masks(slice(None)))
    with pytest.raises(UsageError, match=r"no pair of split 'test' .* condition foreground. No picture has a mask"):
        plan_judgements(*none, PairSettings(conditions=("foreground",)))
    with pytest.raises(UsageError, match="No picture has a mask"):
        plan_judgements(*none, PairSettings(conditions=("full",)), uses_masks=True)


def test_a_broken_picture_is_an_error_of_its_pairs_alone(tmp_path: Path, make_data: MakeData) -> None:
    def spoil(rows: Any, others: Any) -> None:
        rows[0]["views"][1]["image"]["bytes"] = b"no picture"

    tuples, distractors = make_data(tmp_path, spoil)
    work, _ = plan_judgements(tuples, distractors, PairSettings(conditions=("full",)))
    scorer = Seen()
    table = judged(tmp_path / "out", work, task_of({"tuples": tuples, "distractors": distractors}, scorer))
    for row in table.to_pylist():
        first = (row["identity_id"], row["view_index"]) == ("test:000", 1)
        second = (row["other_identity_id"], row["other_view_index"], row["engine"]) == ("test:000", 1, "")
        assert row["error"].startswith("first picture: not a picture") == first
        assert ("second picture: not a picture" in row["error"]) == second
        assert (row["similarity"] is None) == (first or second)
    assert len(scorer.pairs) == sum(not error for error in table["error"].to_pylist()) < len(table)
    assert validate(table, JUDGEMENTS) == []


def test_a_pair_that_is_not_valid_has_no_score_and_no_error(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    class Undecided(Seen):
        def score(self, pairs: list[Pair]) -> list[Judgement]:
            return [Judgement(answer="not valid"), *([Judgement()] * (len(pairs) - 1))]

    work, _ = plan_judgements(*data, PairSettings(max_pairs=2))
    task = task_of({"tuples": data[0], "distractors": data[1]}, Undecided())
    table = judged(tmp_path, work, task)
    assert table["similarity"].to_pylist() == [None, None] and validate(table, JUDGEMENTS) == []
    assert table["error"].to_pylist() == ["", "the scorer gave no finite number"]
    assert outcome_of(Dataset(tmp_path)) == {"unreadable_answers": 0, "coverage": 0.0}


def test_generated_pictures_are_shown_beside_the_first_good_view(
    tmp_path: Path, make_data: MakeData, make_generated: Callable[..., Dataset]
) -> None:
    def spoil(rows: Any, others: Any) -> None:
        rows[2]["views"][0]["error"] = "broken"

    tuples, _ = make_data(tmp_path, spoil)
    generated = make_generated(tmp_path / "generated", ["test:000", "test:002", "test:999"])
    work, rejected = plan_generated(tuples, generated, PairSettings())
    assert Counter(record["reason"] for record in rejected) == {"no-reference": 8}
    scorer = Seen()
    task = task_of({"tuples": tuples, "generated": generated}, scorer, "judged_generated")
    table = judged(tmp_path / "out", work, task)
    assert validate(table, JUDGED_GENERATED) == [] and len(table) == 16
    views = {row["identity_id"]: row["views"] for row in tuples.read().to_pylist()}
    pictures = {row["generated_id"]: row["image"]["bytes"] for row in generated.read().to_pylist()}
    for row, pair in zip(table.to_pylist(), scorer.pairs, strict=True):
        assert row["view_index"] == (1 if row["identity_id"] == "test:002" else 0)
        reference = views[row["identity_id"]][row["view_index"]]["image"]["bytes"]
        assert np.array_equal(pair.first.image_HW3, decode_rgb(reference))
        assert np.array_equal(pair.second.image_HW3, decode_rgb(pictures[row["generated_id"]]))
    # The job that compares with people reads it.
    records = judged_similarities(table)
    assert records["similarity"].to_pylist() == table["similarity"].to_pylist()
    one, _ = plan_generated(tuples, generated, PairSettings(max_identities=1), ["painter"])
    assert set(one["method"].to_pylist()) == {"painter"} and len(one) == 4
    with pytest.raises(UsageError, match=r"methods names sculptor; .* has dreamer, painter"):
        plan_generated(tuples, generated, PairSettings(), ["sculptor"])
    with pytest.raises(UsageError, match="VSM needs the masks of both pictures; generated pictures have none"):
        Inputs(tuples=tuples, generated=generated).work(PairSettings(), (), uses_masks=True)
    with pytest.raises(UsageError, match="none of the generated pictures"):
        plan_generated(tuples, make_generated(tmp_path / "others", ["test:999"]), PairSettings())


def planned(inputs: Inputs, output: Dataset, scorer: Any, name: str = "mine", **pairs: Any) -> Any:
    run = RunSettings(gpus_per_worker=0)
    return plan_judging(inputs, output, scorer, name, PairSettings(**pairs), run, rows_per_shard=16)


def test_an_output_grows_by_pairs_and_keeps_its_scorer(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    inputs, output = Inputs(tuples=data[0], distractors=data[1]), Dataset(tmp_path / "out")
    first = planned(inputs, output, Seen(), max_identities=1)
    first.task.setup()
    for shard in first.plan.pending:
        run_shard(first.task, output, shard, first.plan.members(shard))
    described = described_judging(inputs, output, Seen(), PairSettings(), seconds_a_row=36.0)
    assert described["rows"] == "120, of which 90 are to be made"
    assert described["hours of one worker (one GPU where the cluster has any)"] == "0.90 at 36.00 s a row"
    assert described["pairs"]["full, crossed"] == 24
    assert "run a trial first" in str(described_judging(inputs, output, Seen(), PairSettings()))
    grown = planned(inputs, output, Seen())
    assert sum(grown.plan.members(shard).num_rows for shard in grown.plan.pending) == 90
    assert outcome_of(output) == {"unreadable_answers": 0, "coverage": 1.0}
    with pytest.raises(UsageError, match=r"judge.kind: there 'seen', now 'other'"):
        planned(inputs, output, Seen(kind="other"))
    with pytest.raises(UsageError, match="scorer: there 'mine', now 'yours'"):
        planned(inputs, output, Seen(), name="yours")


def test_settings_out_of_range_are_refused() -> None:
    for wrong, message in (
        ({"split": "all"}, "split is 'all'"),
        ({"conditions": ("background",)}, "conditions is"),
        ({"random_views": -1}, "random_views is -1"),
        ({"max_pairs": 0}, "max_pairs is 0; expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            PairSettings(**wrong)  # type: ignore[arg-type]
