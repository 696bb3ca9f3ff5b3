"""Sweeps on a real Ray: every trial comes out as if it had been trained alone."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.models.checkpoint import load_head
from nearid_ray.stages import tune as stage
from nearid_ray.stages.tune import Tune, plan_tune, run_tune
from nearid_ray.tracking import TrackingSettings
from nearid_ray.training.history import read_history
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.trainer import initial_head
from nearid_ray.tuning import sweep
from nearid_ray.tuning.asha import AshaSettings

BASE = TrainSettings(
    learning_rate=3e-3, warmup_steps=3, global_batch=12, max_steps=24, evaluate_every=4, checkpoint_every=8
)
SPACE = ("alpha=0,1", "learning_rate=3e-3,1e-4")
ASHA = AshaSettings(asha=True, grace_steps=8, reduction_factor=2)
ONE = WorkerSettings(workers=1)


def settings_of(cache_uri: str, output: Path, **changes: Any) -> Tune:
    given: dict[str, Any] = {"space": SPACE, "asha": ASHA, "training": BASE, "where": ONE}
    tracking = TrackingSettings(tracking_uri=f"sqlite:///{output.parent}/mlflow.db")
    return Tune(tokens=(cache_uri,), output=str(output), tracking=tracking, **(given | changes))


@pytest.fixture(scope="module")
def swept(ray_session: None, cache_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused sweep with successive halving."""
    output = tmp_path_factory.mktemp("sweep") / "out"
    run_tune(settings_of(cache_uri, output))
    return output


def records(output: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_bytes()) for path in (output / "trials").glob("*.json")}


def alone(cache_uri: str, settings: TrainSettings, steps: int) -> HeadTraining:
    """The training of one head by itself, up to a step."""
    cache = TokenCache.open(cache_uri)
    training = HeadTraining({"one": initial_head(cache)}, cache, {"one": settings})
    for _ in training.run():
        if training.step == steps:
            break
    return training


def test_every_trial_is_the_training_of_its_settings_alone_however_long_it_was_let_on(
    swept: Path, cache_uri: str
) -> None:
    held = records(swept)
    assert len(held) == 4
    for name, record in held.items():
        training = alone(cache_uri, replace(BASE, **record["values"]), record["steps"])
        run = training.runs["one"]
        last, _ = load_head(str(swept / "heads" / name / "last"))
        best, card = load_head(str(swept / "heads" / name / "best"))
        assert run.best is not None
        for key, value in run.head.state_dict().items():
            torch.testing.assert_close(last.state_dict()[key], value, rtol=0, atol=1e-5)
            torch.testing.assert_close(best.state_dict()[key], run.best["head"][key], rtol=0, atol=1e-5)
        assert card.metrics["val_ssr"] == record["val_ssr"] == run.best["val_ssr"]
        history = read_history((swept / "heads" / name / "history.csv").read_bytes())
        assert [row.loss for row in history[1:]] == pytest.approx([row.loss for row in run.history[1:]], abs=1e-5)


def test_halving_lets_the_better_half_go_on_at_each_rung(swept: Path, cache_uri: str) -> None:
    held = records(swept)
    assert {record["state"] for record in held.values()} == {"finished", "stopped"}
    every = {
        name: alone(cache_uri, replace(BASE, **record["values"]), 24).runs["one"].history
        for name, record in held.items()
    }
    live = set(held)
    for rung in (8, 16):
        reached = {
            name: max(row.val_ssr or 0 for row in every[name] if row.val_ssr is not None and 0 < row.step <= rung)
            for name in live
        }
        cutoff = sorted(reached.values(), reverse=True)[max(1, len(reached) // 2) - 1]
        stopped = {name for name, value in reached.items() if value < cutoff}
        assert {name for name, record in held.items() if record["steps"] == rung} == stopped
        live -= stopped
    assert {name for name, record in held.items() if record["state"] == "finished"} == live


def test_results_name_the_best_trial_whose_head_is_exported(swept: Path) -> None:
    held = records(swept)
    best = max((record["val_ssr"], record["val_pa"]) for record in held.values())
    exported, card = load_head(str(swept / "best"))
    assert (card.metrics["val_ssr"], card.metrics["val_pa"]) == best
    name = json.loads((swept / "summary.json").read_bytes())["best"]
    assert (held[name]["val_ssr"], held[name]["val_pa"]) == best
    theirs, _ = load_head(str(swept / "heads" / name / "best"))
    assert all(torch.equal(value, exported.state_dict()[key]) for key, value in theirs.state_dict().items())
    table = (swept / "table.md").read_text()
    assert table.count("\n") == 2 + 4 and table.count("**") == 2
    assert (swept / "trials.csv").read_text().startswith("trial,alpha,learning_rate,state,steps,best_step,val_ssr")
    picture = (swept / "tradeoff.svg").read_text()
    assert picture.count("<circle") >= 4 and "PA, %, validation split" in picture


def test_mlflow_has_one_parent_with_a_child_a_trial(swept: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{swept.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("nearid").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run not in parents}
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert {path.path for path in client.list_artifacts(parents[0].info.run_id)} >= {"table.md", "tradeoff.svg"}
    for name, record in records(swept).items():
        child = children[name]
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.info.status == "FINISHED" and child.data.tags["state"] == record["state"]
        assert child.data.metrics["best_val_ssr"] == pytest.approx(record["val_ssr"])
        assert float(child.data.params["alpha"]) == record["values"]["alpha"]
        steps = [one.step for one in client.get_metric_history(child.info.run_id, "loss")]
        assert sorted(steps) == list(range(1, record["steps"] + 1))


def test_the_same_sweep_again_trains_nothing_and_ends_what_was_not_written(
    swept: Path, cache_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed leaves trials without a record; their pass is in its checkpoint."""
    before = records(swept)
    lost = sorted(before)[0]
    (swept / "trials" / f"{lost}.json").unlink()

    def refuse(name: str, row: Any, steps: int) -> None:
        raise AssertionError("nothing was left to train")

    monkeypatch.setattr(sweep, "print_progress", refuse)
    again = run_tune(settings_of(cache_uri, swept))
    assert records(swept) == before and again.summary["trials_ended_before"] == len(before) - 1
    monkeypatch.setattr(stage, "_train", refuse)
    assert run_tune(settings_of(cache_uri, swept)).summary["trials_ended_before"] == len(before)


def test_the_folder_of_another_sweep_is_refused_with_the_difference(swept: Path, cache_uri: str) -> None:
    with pytest.raises(UsageError, match=r"holds another sweep:\n.*alpha=0,1.*\n?"):
        run_tune(settings_of(cache_uri, swept, space=("alpha=0,2",)))
    with pytest.raises(UsageError, match="learning_rate"):
        run_tune(settings_of(cache_uri, swept, space=("alpha=0,1",)))


def test_what_could_never_run_is_refused_and_nothing_is_written(
    ray_session: None, cache_uri: str, tmp_path: Path
) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=match):
            run_tune(settings_of(cache_uri, tmp_path / "out", **changes))

    refused("the sweep has no trials", space=())
    refused("a preset names its own trials", preset="table8")
    refused("needs --trials N and a space", search="random")
    refused("leave out --trials", trials=3)
    refused("evaluate_every is 0", training=replace(BASE, evaluate_every=0))
    refused(
        "5 workers x 1 CPUs = 5 CPUs, the cluster has 4 CPUs and 0 GPUs", where=WorkerSettings(workers=5, gpu=False)
    )
    assert not (tmp_path / "out" / "settings.json").exists() and not (tmp_path / "out" / "heads").exists()


def test_the_plan_says_trials_passes_and_rungs(cache_uri: str, tmp_path: Path) -> None:
    plan = plan_tune(settings_of(cache_uri, tmp_path / "out"))
    assert plan["trials"].startswith("4: alpha-0_learning_rate-0.003, alpha-0_learning_rate-0.0001")
    assert list(plan["rungs"].values()) == ["(8, 16)"] and not (tmp_path / "out").exists()


def test_the_command_plans_a_preset_and_refuses_a_setting_that_does_not_exist(cache_uri: str, tmp_path: Path) -> None:
    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).parents[2] / "jobs" / "tune.py"
        command = [sys.executable, str(script), "--tokens", cache_uri, "--output", str(tmp_path / "out"), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    plan = job("--preset", "toybox/table8+table9", "--dry-run")
    assert plan.returncode == 0 and "9: alpha-0, alpha-0.1" in plan.stdout
    wrong = job("--space", "alpah=0,1")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: space alpah: training has no such setting; did you mean alpha?\n"
    assert not (tmp_path / "out").exists()
