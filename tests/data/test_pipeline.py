"""Plan, then run, on a real small Ray: nothing lost, nothing twice, the same bytes after every disturbance."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from nearid_ray.data.pipeline import Begun, RunSettings, ShardResult, run_plan, run_shard
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.store import Dataset
from nearid_ray.errors import StoreError, UsageError

ROWS = 60


@dataclass
class Squares:
    """Squares numbers; rows ending in 7 fail as data while `broken` exists; a worker dies once where `crash` says."""

    scratch: str
    uses_model: bool = False

    def setup(self) -> None:
        self.base = 2

    def prepare(self, work: pa.Table) -> list[int]:
        return [int(name) for name in work["row_id"].to_pylist()]

    def compute(self, prepared: list[int]) -> list[tuple[int, str]]:
        crash = Path(self.scratch, "crash")
        if 30 in prepared and crash.exists():
            crash.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        broken = Path(self.scratch, "broken").exists()
        return [(0, "planted") if broken and n % 10 == 7 else (n**self.base, "") for n in prepared]

    def finish(self, work: pa.Table, computed: list[tuple[int, str]]) -> ShardResult:
        values, errors = zip(*computed, strict=True)
        table = pa.table({"row_id": work["row_id"], "square": pa.array(values), "error": pa.array(errors)})
        return ShardResult(table, {f"side/{work['shard'][0].as_py()}.txt": str(sum(values)).encode()})


def _plan(output: Dataset, rows: int = ROWS) -> Plan:
    work = pa.table({"row_id": [str(n) for n in range(rows)]})
    return make_plan(output, work, table="squares", content={}, rows_per_shard=4)


def _bytes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "log" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """What the rows give without Ray."""
    folder = tmp_path_factory.mktemp("plain")
    output, task = Dataset(folder), Squares(str(folder))
    plan = _plan(output)
    task.setup()
    for shard in plan.pending:
        run_shard(task, output, shard, plan.members(shard))
    return _bytes(folder)


def test_ray_makes_what_a_bare_loop_makes_and_a_rerun_makes_nothing(ray_session, tmp_path, undisturbed):
    output, task = Dataset(tmp_path), Squares(str(tmp_path))
    first = run_plan(task, output, _plan(output), RunSettings(), title="test")
    assert _bytes(tmp_path) == undisturbed
    assert (first.rows, first.rows_made, first.rows_before, first.errors) == (ROWS, ROWS, 0, 0)
    second = run_plan(task, output, _plan(output), RunSettings(), title="test")
    assert (second.rows, second.rows_made, second.rows_before, second.shards_made) == (ROWS, 0, ROWS, 0)
    assert _bytes(tmp_path) == undisturbed


def test_a_killed_worker_costs_no_row(ray_session, tmp_path, undisturbed):
    output = Dataset(tmp_path / "out")
    (tmp_path / "crash").write_text("")
    run_plan(Squares(str(tmp_path)), output, _plan(output), RunSettings(workers=2), title="test")
    assert not (tmp_path / "crash").exists(), "no worker was killed"
    assert _bytes(tmp_path / "out") == undisturbed


def test_rows_that_fail_are_data_and_can_be_made_again(ray_session, tmp_path, undisturbed):
    output, task = Dataset(tmp_path / "out"), Squares(str(tmp_path))
    (tmp_path / "broken").write_text("")
    failed = run_plan(task, output, _plan(output), RunSettings(), title="test")
    assert (failed.rows, failed.errors, failed.error_examples, failed.failed) == (ROWS, 6, ("planted",), True)
    assert not run_plan(task, output, _plan(output), RunSettings(max_error_share=0.5), title="test").failed
    (tmp_path / "broken").unlink()
    mended = run_plan(task, output, _plan(output), RunSettings(retry_errors=True), title="test")
    assert (mended.rows, mended.errors, mended.shards_made) == (ROWS, 0, 6)
    assert _bytes(tmp_path / "out") == undisturbed


def test_the_three_steps_apart_give_the_same_bytes(tmp_path, undisturbed):
    # On a machine that Ray believes to have GPUs; a session of its own.
    code = f"""
import ray, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
import test_pipeline as t
output = t.Dataset({str(tmp_path)!r})
task = t.Squares({str(tmp_path)!r}, uses_model=True)
print(t.run_plan(task, output, t._plan(output), t.RunSettings(gpus_per_worker=0.5), title="apart"))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert _bytes(tmp_path) == undisturbed


def test_a_pool_that_does_not_fit_is_refused_with_the_arithmetic(ray_session, tmp_path):
    output = Dataset(tmp_path)
    with pytest.raises(UsageError, match=r"9 worker\(s\) of 1 CPU and 0 GPU need 9 CPU.*the cluster has 4 CPU"):
        run_plan(Squares(str(tmp_path)), output, _plan(output), RunSettings(workers=9), title="test")
    with pytest.raises(UsageError, match="the cluster has 4 CPU and 0 GPU"):
        run_plan(Squares(str(tmp_path)), output, _plan(output), RunSettings(workers=1, gpus_per_worker=1), title="t")


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus_per_worker": -1.0}, {"max_error_share": 2.0}])
def test_run_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunSettings(**wrong)


def test_work_at_which_processes_die_again_and_again_is_not_begun_for_ever(ray_session):
    from ray.experimental.internal_kv import _internal_kv_list

    with Begun("a-run", "/data/set", most=3) as begun:
        for _ in range(3):
            begun.count("model", "000-000001")
        begun.count("model", "000-000002")
        begun.count("writing", "000-000001")
        with pytest.raises(StoreError, match=r"/data/set: processes died 3 times at the model of shard 000-000001"):
            begun.count("model", "000-000001")
    assert _internal_kv_list("nearid-begun/") == []
