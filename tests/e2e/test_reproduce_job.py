"""`jobs/reproduce.py`: a table from nothing on a tiny toybox, nothing twice, and what it refuses."""

import csv
import json

import pytest

from tests.e2e.conftest import summary_of

TINY = ("--train-identities", 24, "--val-identities", 6, "--test-identities", 8, "--max-steps", 21, "--workers", 1)
OFF = ("--tracking-uri", "off")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where the table is made."""
    return tmp_path_factory.mktemp("reproduce") / "out"


def stamps(folder):
    """When each file that takes work was written."""
    kept = [*folder.rglob("*.parquet"), *folder.rglob("*.arrow"), *(folder / "heads").rglob("*.safetensors")]
    return {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.usefixtures("ray_session")
def test_one_command_makes_a_table_and_nothing_is_made_twice(run_job, output):
    ended = run_job("reproduce", "table1", "--output", output, *TINY, *OFF)
    assert ended.code == 0, ended.err
    assert "Toy data and a toy backbone" in ended.out
    with (output / "tables" / "table1.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    measured = [rows[name] for name in ("siglip2-so400m", "nearid")]
    assert {name for name, row in rows.items() if row["nearid_ssr"]} == {"siglip2-so400m", "nearid"}
    for row in measured:
        low, value, high = (float(row[f"nearid_ssr{part}"]) for part in ("_low", "", "_high"))
        assert 0 <= low <= value <= high <= 1
        assert -1 <= float(row["mtg_mo"]) <= 1
        assert row["dbpp_mh"] == ""
    assert "\\begin{tabular}" in (output / "tables" / "table1.tex").read_text()
    assert "not run" in (output / "tables" / "table1.md").read_text()
    assert [path.name for path in (output / "heads").iterdir() if path.is_dir()] == ["nearid"]
    assert summary_of(output / "tables")["job"] == "reproduce"

    before = stamps(output)
    again = run_job("reproduce", "table1", "--output", output, *TINY, *OFF)
    assert again.code == 0, again.err
    assert stamps(output) == before
    said = [out.split("row  ", 1)[-1].split("\nreproduce\n")[0] for out in (ended.out, again.out)]
    assert said[0] == said[1]

    read = output.parent / "read"
    finished = run_job("reproduce", "table7", "--evaluation", output / "evaluation-nearid", "--output", read, *OFF)
    assert finished.code == 0, finished.err
    assert "SigLIP2 and NearID are here the toy backbone" in finished.out
    assert sorted(path.name for path in read.iterdir()) == ["tables"]


def test_a_head_trained_in_another_way_is_not_taken_for_the_table(run_job, output):
    settings = output / "heads" / "nearid" / "settings.json"
    settings.write_text(json.dumps({"content": {"alpha": 7}}))
    ended = run_job("reproduce", "table1", "--output", output, *TINY, *OFF)
    assert ended.code == 2
    assert "trained with other settings" in ended.err
    assert "alpha: there 7, now 0.5" in ended.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "WHAT one of: table1"),
        (("table11",), "'table11' is no table or figure"),
        (("table4",), "prints formulas"),
        (("photos",), "photos is empty"),
        (("photos", "--photos", "{out}/nothing"), "nothing"),
        (("table2",), "give its output as --alignment"),
        (("figure4",), "give its output as --alignment"),
        (("figure6",), "'figure6' is no table or figure"),
        (("figure5", "--evaluation", "{out}/nothing"), "drawn by jobs/report.py"),
        (("table1", "--rows", "vsm"), "SCORER=ROW"),
        (("table1", "--evaluation", "a", "--tokens", "b"), "give one of them"),
        (("table1", "--evaluation", "{out}/nothing"), "holds no metrics.json"),
        (("control", "--data", "paper"), "the published data has no artefact controls"),
        (("table3", "--data", "paper", "--train-index", "a.json"), "or none of them"),
    ],
)
def test_a_mistake_is_one_clear_message_and_leaves_nothing(run_job, tmp_path, argv, said):
    place = () if not argv else ("--output", tmp_path / "new")
    ended = run_job("reproduce", *(part.format(out=tmp_path) for part in argv), *place)
    assert ended.code == 2
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert not (tmp_path / "new").exists()


def test_the_heads_of_a_table_are_the_papers_settings():
    from nearid_ray import presets
    from nearid_ray.settings import build
    from nearid_ray.stages.reproduce_heads import heads_of
    from nearid_ray.training.settings import TrainSettings

    def preset(values):
        return build(TrainSettings, {name: value for name, value in values.items() if name != "backbone"}).resolved()

    alphas = heads_of("alpha", "paper")
    assert sorted(head.resolved()["alpha"] for head in alphas.values()) == [0, 0.1, 0.25, 0.5, 1, 2]
    assert alphas["nearid"].resolved() == preset(presets.paper())
    betas = heads_of("beta", "paper").values()
    assert [(head.resolved()["alpha"], head.resolved()["beta"]) for head in betas] == [
        (1, 0), (1, 0.1), (1, 0.2), (1, 0.3),
    ]  # fmt: skip
    data = heads_of("data", "paper")
    for name, settings in (("mtg-only", presets.mtg_only()), ("single-engine", presets.single_engine())):
        assert data[name].resolved() == preset(settings)
    for suite in ("objectives", "alpha", "beta", "data"):
        for kind in ("toybox", "paper"):
            assert {head.seed for head in heads_of(suite, kind, max_steps=999).values()} == {0}
    left_out = heads_of("engines", "toybox", left_out=("toybox-recolor",))
    assert set(left_out["nearid"].engines) - set(left_out["without-toybox-recolor"].engines) == {"toybox-recolor"}
    assert heads_of("nearid", "toybox", trained=("a", "b"))["nearid"].engines == ("a", "b")


def test_a_dry_run_prints_every_step_of_the_paper_and_writes_nothing(run_job, tmp_path):
    ended = run_job("reproduce", "all", "--data", "paper", "--output", tmp_path / "paper", "--dry-run")
    assert ended.code == 0, ended.err
    for said in (
        "python jobs/ingest.py nearid --output",
        "python jobs/ingest.py nearid-distractors",
        "Aleksandar/NearID-Qwen_1328",
        "python jobs/ingest.py mtg-distractors",
        "--backbone google/siglip2-so400m-patch14-384",
        "406,935 distractors",
        "19 head(s), those that read the same in one pass",
        "circle-rank",
        "nearid-alpha-1-beta-0.3",
    ):
        assert said in ended.out, said
    assert not (tmp_path / "paper").exists()
