"""Curation: the paper's rules, splits that do not depend on how the input lies, and rows that are exact copies."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import schemas
from nearid_ray.data.curate import PAIRS_FILE, PAIRS_SHEET, CurateTask, Curation, light_identities, plan_curation
from nearid_ray.data.curate_rules import CurateSettings, LightIdentity, LightView, choose, draw_splits
from nearid_ray.data.images import decode_rgb
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.store import Dataset, locate, parquet_bytes, read_parquet
from nearid_ray.data.views import empty_view
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of


def light(name: str, views: int | tuple[LightView, ...] = 2, **changes) -> LightIdentity:
    values = {"description": name, "object_kind": "rigid", "objaverse_id": f"asset-{name}", "split": "train"}
    if isinstance(views, int):
        views = tuple(LightView(f"{name}{i}", f"{seed_of(name, i):016x}", "{}", "") for i in range(views))
    values |= {"provenance": "{}", "error": "", "views": views, "shard": "s", "row": 0}
    return LightIdentity(**{"identity_id": f"x:{name}", **values, **changes})


def reasons(identities: list[LightIdentity], **settings) -> dict[str, str]:
    """record -> reason of what is left out."""
    return {r["record_id"]: r["reason"] for r in choose(identities, CurateSettings(**settings), {})[1]}


def test_other_kinds_too_few_views_and_errors_are_left_out_with_their_reason():
    broken = LightView("", "", "{}", "cut off")
    some = (LightView("v", "", "{}", ""), broken, LightView("w", "", "{}", ""), LightView("v", "", "{}", ""))
    found = [
        light("good"),
        light("soft", object_kind="deformable"),
        light("odd", object_kind=""),
        light("one", views=1),
        light("mended", views=some, error="1 of 4 views: a.jpg: cut off"),
        light("lost", error="the record cannot be read"),
        light("both", views=some, error="no record; 1 of 4 views: a.jpg: cut off"),
    ]
    assert reasons(found) == {
        "x:soft": "kind",
        "x:odd": "kind",
        "x:one": "too-few-views",
        "x:mended/1": "view-error",
        "x:mended/3": "view-twice",
        "x:lost": "identity-error",
        "x:both": "identity-error",
    }
    stays, _ = choose(found, CurateSettings(), {})
    assert {one.identity.identity_id: one.view_indices for one in stays} == {"x:good": (0, 1), "x:mended": (0, 2)}
    assert "x:odd" not in reasons(found, kinds=("rigid", "unknown"))
    assert "x:one" not in reasons(found, min_views=1)


def scored(name: str, aesthetics: list[float | None], dino: list[list[float]] | None) -> LightIdentity:
    views = tuple(
        LightView(f"{name}{i}", "", json.dumps({} if a is None else {"aesthetics": a}), "")
        for i, a in enumerate(aesthetics)
    )
    provenance = json.dumps({} if dino is None else {"dino_scores": dino})
    return light(name, views=views, provenance=provenance)


def test_syncds_thresholds_keep_good_views_in_pairs_that_are_alike_but_not_the_same():
    found = [
        scored("all", [5, 5, 6], [[1, 0.8, 0.75], [0, 1, 0.9], [0, 0, 1]]),
        scored("pair", [5, 6, 7], [[1, 0.5, 0.5], [0, 1, 0.7], [0, 0, 1]]),
        scored("copies", [5, 6, 7], [[1, 0.99, 0.5], [0, 1, 0.69], [0, 0, 1]]),
        scored("ugly", [5, 4.9, 4], [[1, 0.8, 0.8], [0, 1, 0.8], [0, 0, 1]]),
        scored("ends", [5, 5], [[1, 0.98], [0, 1]]),
        scored("unscored", [None, 5, 5], [[1, 0.8, 0.8], [0, 1, 0.8], [0, 0, 1]]),
        scored("no matrix", [5, 5], None),
        scored("nulls", [5, 5], [[None, None], [None, None]]),
    ]
    settings = {"min_aesthetics": 5.0, "min_dino": 0.7}
    stays, _ = choose(found, CurateSettings(**settings), {})
    assert {one.identity.identity_id: one.view_indices for one in stays} == {
        "x:all": (0, 1, 2), "x:pair": (1, 2), "x:ends": (0, 1), "x:unscored": (1, 2),
    }  # fmt: skip
    assert reasons(found, **settings) == {
        "x:pair/0": "view-dino",
        "x:copies/0": "view-dino", "x:copies/1": "view-dino", "x:copies/2": "view-dino", "x:copies": "too-few-views",
        "x:ugly/1": "view-aesthetics", "x:ugly/2": "view-aesthetics", "x:ugly/0": "view-dino",
        "x:ugly": "too-few-views",
        "x:unscored/0": "view-aesthetics",
        "x:no matrix/0": "view-dino", "x:no matrix/1": "view-dino", "x:no matrix": "too-few-views",
        "x:nulls/0": "view-dino", "x:nulls/1": "view-dino", "x:nulls": "too-few-views",
    }  # fmt: skip
    assert reasons(found) == {}, "off by default"


def test_one_identity_an_object_the_first_by_id_whatever_the_order():
    same = {"description": "a mug", "objaverse_id": "o"}
    found = [
        light("b", **same),
        light("a", **same),
        light("c", **same | {"description": "a cup"}),
        light("d", **same | {"objaverse_id": "p"}),
        light("e", description="a mug", objaverse_id=""),
        light("f", description="a mug", objaverse_id=""),
    ]
    assert reasons(found) == reasons(found[::-1]) == {"x:b": "same-object"}
    kept, _ = choose(found, CurateSettings(), {"x:b": "test"})
    assert "x:b" in {one.identity.identity_id for one in kept}, "what was written earlier stays"


def test_near_duplicates_are_left_out_only_on_request_and_none_is_left():
    alike = [light(n, views=(LightView(n, "00000000000000ff", "{}", ""), LightView(n + "2", f"{i}" * 16, "{}", "")))
             for i, n in enumerate("abc", start=4)]  # fmt: skip
    assert reasons(alike) == {}
    assert reasons(alike, near_duplicates="drop") == {"x:b": "near-duplicate", "x:c": "near-duplicate"}


NAMES = [f"x:{i}" for i in range(400)]


def test_splits_depend_on_seed_and_ids_alone_and_are_disjoint_by_construction():
    sizes = {"train": 300, "val": 40, "test": 60}
    splits = draw_splits(NAMES, sizes, 3, {})
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    assert draw_splits(shuffled, sizes, 3, {}) == splits
    assert draw_splits(NAMES, sizes | {"train": None}, 3, {}) == splits
    assert {split: list(splits.values()).count(split) for split in sizes} == sizes
    assert draw_splits(NAMES, sizes, 4, {}) != splits


def test_more_identities_move_at_most_as_many_and_none_where_they_are_added():
    sizes = {"train": None, "val": 40, "test": 60}
    before = draw_splits(NAMES, sizes, 0, {})
    more = [*NAMES, *(f"new:{i}" for i in range(10))]
    fresh = draw_splits(more, sizes, 0, {})
    assert sum(fresh[name] != before[name] for name in NAMES) <= 20
    grown = draw_splits(more, sizes, 0, before)
    assert {name: grown[name] for name in NAMES} == before
    assert {grown[name] for name in more[400:]} == {"train"}
    full = draw_splits(more, {"train": 300, "val": 40, "test": 60}, 0, before)
    assert full == before, "the splits are full; nobody is added"


def test_sizes_that_do_not_fit_are_refused_with_the_arithmetic():
    found = [light(str(i)) for i in range(10)] + [light("soft", object_kind="deformable")]
    said = r"train 9 \+ val 0 \+ test 2 = 11 identities .* 10 are there: 10 of the input's 11 .*left out: kind 1"
    with pytest.raises(UsageError, match=said):
        choose(found, CurateSettings(train=9, test=2), {})
    assert list(reasons(found, train=5, test=2).values()).count("not-drawn") == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": ()}, {"kinds": ("wooden",)}, {"min_views": 0}, {"max_dino": 2.0}, {"min_dino": 0.99}, {"train": -2},
        {"train": "rest", "val": -1}, {"hash_distance": 17}, {"near_duplicates": "maybe"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CurateSettings(**wrong)


def test_the_splits_of_the_input_stay_where_no_size_is_given():
    assert CurateSettings().sizes() is None
    assert CurateSettings(val=5).sizes() == {"train": None, "val": 5, "test": 0}
    assert CurateSettings(train=5, test="rest").sizes() == {"train": 5, "val": 0, "test": None}
    assert CurateSettings(test=-1).sizes() == {"train": 0, "val": 0, "test": None}
    assert choose([light("a", split="val")], CurateSettings(), {})[0][0].split == "val"


def rows(count: int) -> list[dict]:
    """Rows whose pictures are no pictures: curation must not look at them."""
    made = []
    for i in range(count):
        name, views = f"x:{i:03}", []
        for j in range(2 + i % 2):
            picture = {"bytes": bytes([i, j]) * 50, "path": f"{i}-{j}.png"}
            view = empty_view() | {"view_id": f"{i}-{j}", "image": picture, "perceptual_hash": f"{seed_of(i, j):016x}"}
            views.append(view | {"size_px": 8})
        row = dict.fromkeys(("category", "description", "objaverse_id", "error"), "") | {"object_kind": "rigid"}
        made.append(row | {"identity_id": name, "views": views, "split": "train", "source": "x", "provenance": "{}"})
    made[3]["views"][0] |= {"error": "cut off", "image": None, "view_id": ""}
    made[3]["error"] = "1 of 3 views: a: cut off"
    return made


def written(folder: Path, made: list[dict], per_shard: int) -> Dataset:
    """The rows as a finished dataset cut into shards."""
    output = Dataset(folder)
    work = pa.table({"row_id": [row["identity_id"] for row in made]})
    plan = make_plan(output, work, table="tuples", content={"source": "x"}, rows_per_shard=per_shard)
    by_id = {row["identity_id"]: row for row in made}
    for shard in plan.pending:
        members = [by_id[name] for name in plan.members(shard)["row_id"].to_pylist()]
        output.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(members, schema=schemas.TUPLES.schema)))
    return output


def run_plain(curation: Curation) -> dict[str, bytes]:
    """Without Ray; the files of the output."""
    task = CurateTask(curation.tuples.location.uri)
    for shard in curation.plan.pending:
        run_shard(task, curation.output, shard, curation.plan.members(shard))
    replace(curation, plan=Plan(curation.plan.rows, ())).run(RunSettings())  # the card and the report are left to do
    root = Path(curation.output.location.path)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_rows_are_copied_exactly_and_lie_the_same_however_the_input_lies(tmp_path):
    made, settings = rows(12), CurateSettings(val=2, test=3)
    one = written(tmp_path / "one", made, 5)
    two = written(tmp_path / "two", random.Random(1).sample(made, len(made)), 2)
    first = run_plain(plan_curation(one, Dataset(tmp_path / "a"), settings))
    second = run_plain(plan_curation(two, Dataset(tmp_path / "b"), settings))
    data = {name for name in first if name.startswith("data/")}
    assert {name for name in second if name.startswith("data/")} == data
    assert [name for name in data if first[name] != second[name]] == []
    copied = Dataset(tmp_path / "a").read().to_pylist()
    for row, old in zip(copied, made, strict=True):
        views = old["views"][1:] if old["error"] else old["views"]
        assert row == old | {"split": row["split"], "views": views, "error": ""}
    assert [row["split"] for row in copied].count("test") == 3
    assert schemas.validate(tmp_path / "a") == []
    rejected = read_parquet(locate(tmp_path / "a" / "rejected.parquet")).to_pylist()
    assert [(r["stage"], r["record_id"], r["reason"]) for r in rejected] == [("curate", "x:003/0", "view-error")]


def test_the_summary_counts_as_the_paper_does(tmp_path):
    made = rows(12)
    curation = plan_curation(written(tmp_path / "in", made, 5), Dataset(tmp_path / "out"), CurateSettings(test=3))
    counts = curation.summary()
    assert counts["all"] == {"identities": 12, "views": 29, "two_views": "58.3%", "three_views": "41.7%"}
    assert counts["train"]["identities"] == 9
    assert counts["test"]["identities"] == 3
    assert "val" not in counts


def test_an_output_grows_with_its_input_and_keeps_its_rows(tmp_path):
    made, settings = rows(12), CurateSettings(val=2, test=3)
    output = Dataset(tmp_path / "out")
    before = run_plain(plan_curation(written(tmp_path / "in", made[:8], 3), output, settings))
    after = run_plain(plan_curation(written(tmp_path / "in", made, 3), output, settings))
    assert {name: after[name] for name in before if name.startswith(("data/", "plan/"))} == {
        name: data for name, data in before.items() if name.startswith(("data/", "plan/"))
    }
    table = output.read(["identity_id", "split"]).to_pylist()
    assert sorted(row["identity_id"] for row in table) == [row["identity_id"] for row in made]
    assert [row["split"] for row in table[8:]] == ["train"] * 4
    again = plan_curation(Dataset(tmp_path / "in"), output, settings)
    assert again.plan.pending == ()


def test_an_input_that_changed_or_other_settings_are_refused(tmp_path):
    made, settings, output = rows(6), CurateSettings(), Dataset(tmp_path / "out")
    run_plain(plan_curation(written(tmp_path / "in", made, 3), output, settings))
    made[0]["views"][0]["view_id"] = "another"
    with pytest.raises(UsageError, match=r"1 identities there are not what the input says of them now, e\.g\. x:000"):
        plan_curation(written(tmp_path / "other", made, 3), output, settings)
    with pytest.raises(UsageError, match="min_views: there 2, now 3"):
        plan_curation(Dataset(tmp_path / "in"), output, CurateSettings(min_views=3))
    Dataset(tmp_path / "in").shard("000-000001").delete()
    with pytest.raises(UsageError, match="not complete: 1 of its shards"):
        plan_curation(Dataset(tmp_path / "in"), Dataset(tmp_path / "new"), settings)
    with pytest.raises(UsageError, match=r"no identity stays \(kind 6\)"):
        plan_curation(
            written(tmp_path / "other", made, 3), Dataset(tmp_path / "new"), CurateSettings(kinds=("unknown",))
        )
    assert not (tmp_path / "new").exists()


def test_a_row_that_moved_between_planning_and_copying_is_an_error_not_a_wrong_row(tmp_path):
    tuples = written(tmp_path / "in", rows(4), 2)
    curation = plan_curation(tuples, Dataset(tmp_path / "out"), CurateSettings())
    first, second = (tuples.shard(name).read_bytes() for name in tuples.shards())
    tuples.shard("000-000000").write_bytes(second)
    tuples.shard("000-000001").write_bytes(first)
    run_plain(curation)
    table = Dataset(tmp_path / "out").read(["identity_id", "views", "error"]).to_pylist()
    assert [row["identity_id"] for row in table] == ["x:000", "x:001", "x:002", "x:003"]
    assert all("no longer holds" in row["error"] and row["views"] == [] for row in table)


def test_near_duplicates_are_reported_with_a_sheet_and_across_splits(tmp_path, ray_session):
    from tests.data.test_card import toys

    toys(tmp_path / "toys", train=8, test=0, licence="cc-by-4.0")
    made = Dataset(tmp_path / "toys").read().to_pylist()
    made[5]["views"][1] = made[2]["views"][0]
    tuples = written(tmp_path / "in", made, 3)
    (tmp_path / "in" / "README.md").write_bytes((tmp_path / "toys" / "README.md").read_bytes())
    curation = plan_curation(tuples, Dataset(tmp_path / "out"), CurateSettings(test=4, hash_distance=0))
    summary = curation.run(RunSettings())  # on Ray
    assert (summary.rows, summary.rows_made, summary.errors) == (8, 8, 0)
    pairs = read_parquet(locate(tmp_path / "out" / PAIRS_FILE)).to_pylist()
    found = {
        (p["first_identity_id"], p["first_view_index"], p["second_identity_id"], p["second_view_index"]) for p in pairs
    }
    assert found == {(made[2]["identity_id"], 0, made[5]["identity_id"], 1)}
    splits = {i.identity_id: i.split for i in light_identities(Dataset(tmp_path / "out"))}
    assert pairs[0]["across_splits"] == (splits[made[2]["identity_id"]] != splits[made[5]["identity_id"]])
    assert curation.pair_counts()["pairs"] == 1
    assert decode_rgb((tmp_path / "out" / PAIRS_SHEET).read_bytes()).shape[1] > 2 * 160
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    # Dropped on request, and no report of what is gone.
    drop = CurateSettings(test=3, hash_distance=0, near_duplicates="drop")
    run_plain(plan_curation(tuples, Dataset(tmp_path / "dropped"), drop))
    assert made[5]["identity_id"] not in Dataset(tmp_path / "dropped").read(["identity_id"])["identity_id"].to_pylist()
    assert not (tmp_path / "dropped" / PAIRS_FILE).exists()
