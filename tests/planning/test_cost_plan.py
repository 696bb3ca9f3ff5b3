import json

import pyarrow as pa
import pytest

from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone
from nearid_ray.planning.hardware import GPUS
from nearid_ray.planning.plan import make_cost_plan
from nearid_ray.planning.settings import PlanSettings
from nearid_ray.planning.text import as_markdown, as_text
from nearid_ray.planning.work import BACKBONES, SO400M, engine_flops
from nearid_ray.presets import PLAN
from nearid_ray.settings import build
from nearid_ray.stages.plan import PlanCost, run_plan_cost
from nearid_ray.synthesis.catalog import list_engines

SMALL = {"identities": 10, "views": 25, "test_identities": 2, "mtg_samples": 0, "gpus": 2}


def plan(**changes):
    return make_cost_plan(PlanSettings(**(SMALL | changes)))


def stage(found, name):
    return next(stage for stage in found.stages if stage.name.strip() == name)


def painted(folder, engine: str, rows: int, seconds: float):
    """The output of a synthesis of which the log tells so many rows and seconds."""
    output = Dataset(folder)
    output.location.child("settings.json").write_bytes(json.dumps({"table": "distractors"}).encode())
    log = [{"shard": "0", "rows": rows, "began": 0.0, "ended": 999.0, "engine": engine, "paint_s": seconds}]
    output.location.child("log", "a.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(log)))
    output.shard("000-000000").write_bytes(parquet_bytes(pa.table({"error": [""] * rows})))
    return output


def test_the_paper_makes_316505_distractors_and_its_hours_are_rows_times_seconds():
    found = make_cost_plan(build(PlanCost, PLAN["paper"]()).size)
    painting = [stage for stage in found.stages if stage.name.startswith("synthesize")]
    assert sum(stage.rows for stage in painting) == 316_505
    by_hand = sum(45_215 * engine_flops(e) / (312e12 * 0.35) for e in found.settings.engines) / 3600
    assert sum(stage.hours for stage in painting) == pytest.approx(by_hand)
    assert found.total()["gpu_hours"] == pytest.approx(
        sum(s.hours for s in found.stages if s.uses_gpu and s.part_of_total)
    )


def test_the_token_cache_of_one_draw_has_the_size_that_its_numbers_give():
    found = plan(engines=("sdxl-512", "flux-fill-512"), train_engines=("flux-fill-512",))
    tokens = stage(found, "embed tokens")
    # 20 views and 20 distractors to train on, 5 views and 10 distractors to measure, each whole and masked.
    assert tokens.rows == 2 * (40 + 15)
    assert tokens.storage_gib == pytest.approx(110 * 729 * 1152 * 2 / 2**30)


def test_more_gpus_shorten_the_clock_and_not_the_hours():
    one, eight = plan(gpus=1), plan(gpus=8)
    assert one.total()["gpu_hours"] == eight.total()["gpu_hours"]
    assert stage(eight, "synthesize sdxl-512").wall_hours == stage(one, "synthesize sdxl-512").wall_hours / 8
    assert stage(eight, "train from cached tokens").wall_hours == stage(one, "train from cached tokens").wall_hours


def test_measured_rows_take_the_place_of_the_assumption_and_say_so(tmp_path):
    painted(tmp_path / "d", "sdxl-512", rows=50, seconds=25.0)
    found = plan(measured=(f"synthesize={tmp_path}/d",))
    own, other = stage(found, "synthesize sdxl-512"), stage(found, "synthesize sdxl-1024")
    assert own.row_s == 0.5 and own.origin.startswith("measured in")
    assert own.hours == pytest.approx(25 * 0.5 / 3600)
    assert other.origin.startswith("assumed")


def test_an_engine_of_unknown_work_needs_a_measurement(tmp_path):
    own = {"engines": ("mine",), "train_engines": ()}
    with pytest.raises(UsageError, match=r"'mine'.*--measured"):
        plan(**own)
    painted(tmp_path / "d", "mine", rows=10, seconds=5.0)
    found = plan(**own, measured=(f"synthesize={tmp_path}/d",))
    assert stage(found, "synthesize mine").row_s == 0.5


def test_cost_is_time_and_storage_and_alternatives_do_not_count():
    found = plan(price_per_gpu_hour=2.0, storage_usd_gib_month=1.0, months=3.0)
    painting = stage(found, "synthesize sdxl-512")
    assert found.cost_usd(painting) == pytest.approx(2 * painting.hours + 3 * painting.storage_gib)
    counted = [s for s in found.stages if "or " not in s.name]
    assert found.total()["cost_usd"] == pytest.approx(sum(found.cost_usd(s) for s in counted))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "v100"}, "expected one of t4"),
        ({"backbone": "mine/vit"}, "--parameters, --layers, --tokens, --width"),
        ({"measured": ("synthesise=x",)}, "expected STAGE=FOLDER"),
        ({"measured": ("embed=/nothing",)}, "no dataset"),
        ({"measured": ("train=/nothing",)}, "summary.json"),
    ],
)
def test_what_is_not_known_is_refused_with_what_to_do(changes, said):
    with pytest.raises(UsageError, match=said):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": 12}, "at least two an identity"),
        ({"gpus": 0}, "gpus is 0"),
        ({"engines": ()}, "at least one engine"),
        ({"train_engines": ("sdxl",)}, "not among engines"),
        ({"utilisation": 35}, "share above 0"),
        ({"price_per_gpu_hour": -1}, "0 or more"),
    ],
)
def test_impossible_sizes_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        PlanSettings(**(SMALL | changes))


def test_times_of_another_backbone_are_refused(tmp_path):
    output = Dataset(tmp_path / "tokens")
    output.location.child("settings.json").write_bytes(b'{"table": "tokens_index"}')
    output.location.child("backbone.json").write_bytes(b'{"spec": "toybox-siglip2", "width": 128}')
    log = [{"shard": "0", "rows": 5, "began": 0.0, "ended": 1.0}]
    output.shard("000-000000").write_bytes(parquet_bytes(pa.table({"error": [""] * 5})))
    output.location.child("log", "a.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(log)))
    with pytest.raises(UsageError, match=r"toybox-siglip2, tokens 128 wide.*1152 wide"):
        plan(measured=(f"embed={tmp_path}/tokens",))
    found = plan(backbone="toybox-siglip2", measured=(f"embed={tmp_path}/tokens",))
    assert stage(found, "embed tokens").row_s == 0.2


def test_the_sizes_of_backbones_are_those_of_the_models():
    described = load_backbone("toybox-siglip2", dtype="float32").describe()
    known = BACKBONES["toybox-siglip2"]
    assert (known.parameters, known.tokens, known.width) == tuple(
        described[n] for n in ("parameters", "tokens", "width")
    )
    # Patch embedding, positions, 27 layers of attention and MLP with biases and norms, the last norm.
    width, mlp = SO400M.width, 4304
    layer = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width
    by_hand = (14 * 14 * 3 + 1) * width + 729 * width + 27 * layer + 2 * width
    assert by_hand == SO400M.parameters


def test_every_engine_of_the_plan_can_be_run():
    known = list_engines()
    for engine in build(PlanCost, PLAN["paper-nine-engines"]()).size.engines:
        assert engine in known
        assert engine_flops(engine) > 0


def test_the_plan_says_what_is_measured_and_what_assumed(tmp_path, capsys):
    run_plan_cost(PlanCost(output=str(tmp_path / "plan"), size=PlanSettings(**SMALL)))
    said = capsys.readouterr().out
    assert "Measured (on workers like these): nothing" in said and "data sheet of a100-80" in said
    stored = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert stored["total"]["gpu_hours"] == pytest.approx(sum(
        s["hours"] for s in stored["stages"] if s["uses_gpu"] and s["part_of_total"]
    ))  # fmt: skip
    assert "| total |" in (tmp_path / "plan" / "plan.md").read_text()


def test_text_and_markdown_hold_a_line_a_stage():
    found = plan()
    for name in (stage.name for stage in found.stages):
        assert any(line.startswith(name) for line in as_text(found).splitlines())
        assert f"| {name} |" in as_markdown(found)
    assert set(GPUS) >= {"a100-80", "h100", "l40s"}
