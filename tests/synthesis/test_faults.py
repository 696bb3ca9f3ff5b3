"""Synthesis on a real small Ray under faults: every row once, none made again, the bytes of an undisturbed run.

The engine is the simulated one (`sleeping`), made to fail as a file in a folder says.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nearid_ray.data.pipeline import RunSettings, RunSummary, run_plan, run_shard, shards_to_make
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset
from nearid_ray.errors import StoreError
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.engines.sleeping import SleepingEngine, SleepingSettings
from nearid_ray.synthesis.gate import GateSettings
from nearid_ray.synthesis.settings import Selection, SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors, selected
from nearid_ray.synthesis.task import SynthesisTask

# Noise is rarely near a view: this threshold rejects some rows at each attempt.
SETTINGS = SynthesisSettings(
    engines=("sleeping-1", "sleeping-2"),
    rows_per_shard=2,
    engine_batch=2,
    gate=GateSettings(min_object_difference=70.0, retries=2),
)


class Faulty(SleepingEngine):
    """Sleeps, and fails while its folder holds a file `raise` (a third of the rows) or `kill` (its process, once)."""

    def __init__(self, settings: SleepingSettings, folder: str) -> None:
        super().__init__(settings)
        self.folder = Path(folder)

    def load(self) -> None:
        super().load()
        with open(self.folder / "loads", "a") as file:
            file.write(f"{os.getpid()} {self.name}\n")

    def generate(self, requests: list[EngineRequest]) -> list[EngineResult | Exception]:
        if (self.folder / "kill").exists() and len(list((self.folder / "out" / "data").glob("*"))) > 1:
            (self.folder / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.folder / "raise").exists() and any(request.seed % 3 == 0 for request in requests):
            raise RuntimeError("planted")
        return super().generate(requests)


def prepared(
    tuples: Dataset, folder: Path, settings: SynthesisSettings = SETTINGS, row_s: float = 0.0
) -> tuple[SynthesisTask, Dataset, Plan]:
    """(task, output, plan) with faulty engines that take so long a row."""
    folder.mkdir(exist_ok=True)
    output = Dataset(folder / "out")
    plan = plan_distractors(tuples, output, settings)
    task = make_task(tuples, plan, settings, plan.shard_names)
    task.engines = {
        hash_: Faulty(replace(engine.config, row_s=row_s), str(folder))  # type: ignore[attr-defined]
        for hash_, engine in task.engines.items()
    }
    return task, output, plan


def run(tuples: Dataset, folder: Path, row_s: float = 0.0, workers: int = 2, **settings: object) -> RunSummary:
    task, output, plan = prepared(tuples, folder, row_s=row_s)
    return run_plan(task, output, plan, RunSettings(workers=workers, **settings), title="faults")  # type: ignore[arg-type]


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out" / "data").iterdir())}


@pytest.fixture(scope="module")
def undisturbed(toys: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the plan gives without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    task, output, plan = prepared(toys, folder)
    without_ray(task, output, plan)
    attempts = set(output.read(["attempt"])["attempt"].to_pylist())
    assert attempts == {0, 1, 2}, "the gate rejects nothing, retries are not tried"
    return shards(folder)


def test_each_worker_loads_each_model_once_and_a_killed_one_costs_no_row(ray_session, toys, tmp_path, undisturbed):
    (tmp_path / "kill").write_text("")
    summary = run(toys, tmp_path, row_s=0.05)
    assert not (tmp_path / "kill").exists(), "no worker was killed"
    assert shards(tmp_path) == undisturbed
    assert (summary.rows, summary.errors) == (summary.rows_made, 0)
    loads = (tmp_path / "loads").read_text().split("\n")[:-1]
    assert len(loads) == len(set(loads)), "a worker loaded a model twice"
    assert len({line.split()[0] for line in loads}) == 3
    again = run(toys, tmp_path)
    assert (again.rows_made, again.shards_made) == (0, 0)


def test_rows_that_raise_are_rows_with_an_error_and_their_shards_alone_are_made_again(
    ray_session, toys, tmp_path, undisturbed
):
    (tmp_path / "raise").write_text("")
    failed = run(toys, tmp_path)
    rows = Dataset(tmp_path / "out").read(["seed", "error", "verdict", "attempt"]).to_pylist()
    # A retry of a good row may draw a failing seed as well.
    assert {row["error"] for row in rows} == {"", "RuntimeError: planted"}
    assert all((row["seed"] % 3 == 0) == bool(row["error"]) for row in rows)
    assert failed.errors == sum(bool(row["error"]) for row in rows) and failed.failed
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    (tmp_path / "raise").unlink()
    assert run(toys, tmp_path).rows_made == 0
    mended = run(toys, tmp_path, retry_errors=True)
    assert mended.errors == 0 and shards(tmp_path) == undisturbed
    kept = {path.name for path in (tmp_path / "out" / "data").iterdir() if times[path.name] == path.stat().st_mtime_ns}
    assert len(kept) == len(times) - mended.shards_made > 0


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(ray_session, toys, small_disk, undisturbed):
    (small_disk.path / "filler").write_bytes(bytes(4_100_000))
    with pytest.raises(Exception, match="no space left to write") as caught:
        run(toys, small_disk.path)
    assert "StoreError" in str(caught.value) or isinstance(caught.value, StoreError)
    done = len(shards(small_disk.path))
    assert done < len(undisturbed)
    assert not list(small_disk.path.rglob(".*.tmp"))
    small_disk.remount("size=64m")
    assert run(toys, small_disk.path).shards_made == len(undisturbed) - done
    assert shards(small_disk.path) == undisturbed


@pytest.fixture
def elsewhere(toys: Dataset, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Runs code in a process of its own, in which `t` is this module and `arguments` are those of `run`."""
    started: list[subprocess.Popen] = []
    paths = [str(Path(__file__).parent), *sys.path]
    head = f"""
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_faults as t
tuples, folder = t.Dataset({toys.location.uri!r}), Path({str(tmp_path)!r})
"""

    def start(code: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ADDRESS", None)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", head + code], env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_shards(folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while len(list((folder / "out" / "data").glob("*.parquet"))) < count:
        assert time.monotonic() < deadline, "no shard appeared"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_a_killed_driver_costs_only_the_shards_in_flight(ray_session, elsewhere, toys, tmp_path, undisturbed):
    driver = elsewhere("""
from nearid_ray.cluster import ray_session
with ray_session(num_cpus=2):
    t.run(tuples, folder, row_s=0.4)
""")
    wait_for_shards(tmp_path, 2, driver)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 20  # its workers notice, and end
    before = -1
    while (done := len(shards(tmp_path))) != before and time.monotonic() < deadline:
        before = done
        time.sleep(2)
    assert 2 <= done < len(undisturbed)
    assert run(toys, tmp_path).shards_made == len(undisturbed) - done
    assert shards(tmp_path) == undisturbed


@pytest.mark.faults
def test_a_node_removed_in_mid_run_costs_no_row(elsewhere, tmp_path, undisturbed):
    # Ray is told of GPUs that are not there: decoding, painting and encoding then run apart, two workers a GPU.
    cluster = elsewhere("""
import threading, time
import ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)

def remove():
    while len(list((folder / "out" / "data").glob("*.parquet"))) < 4:
        time.sleep(0.05)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("removed at", len(list((folder / "out" / "data").glob("*.parquet"))), flush=True)

thread = threading.Thread(target=remove)
thread.start()
summary = t.run(tuples, folder, row_s=0.3, workers=4, gpus_per_worker=0.5)
thread.join()
print("rows", summary.rows, summary.rows_made, summary.errors)
again = t.run(tuples, folder)
print("again", again.rows_made)
ray.shutdown()
cluster.shutdown()
""")
    out, _ = cluster.communicate(timeout=300)
    assert cluster.returncode == 0, out
    removed = int(out.split("removed at ")[1].split()[0])
    assert removed < len(undisturbed), "nothing was left to do"
    rows = Dataset(tmp_path / "out").read(["distractor_id"])["distractor_id"]
    assert len(rows) == len(rows.unique())
    assert f"rows {len(rows)} {len(rows)} 0" in out and "again 0" in out
    assert shards(tmp_path) == undisturbed
    loads = (tmp_path / "loads").read_text().split("\n")[:-1]
    assert len(loads) == len(set(loads)), "a worker loaded a model twice"


def without_ray(task: SynthesisTask, output: Dataset, plan: Plan) -> list[str]:
    made = shards_to_make(output, plan, RunSettings())
    for shard in made:
        run_shard(task, output, shard, plan.members(shard))
    return made


def test_later_engines_add_rows_and_change_none(toys, tmp_path, undisturbed):
    half = without_ray(*prepared(toys, tmp_path, replace(SETTINGS, engines=("sleeping-1",))))
    before = shards(tmp_path)
    assert before == {name: data for name, data in undisturbed.items() if name in before}
    more = without_ray(*prepared(toys, tmp_path, replace(SETTINGS, engine_batch=1)))  # of the new rows
    after = shards(tmp_path)
    assert len(more) == len(half) and {name: after[name] for name in before} == before
    rows = Dataset(tmp_path / "out").read(["engine"])["engine"].value_counts().to_pylist()
    assert len({row["counts"] for row in rows}) == 1


def test_parts_of_a_plan_make_it_whole(toys, tmp_path, undisturbed):
    made = []
    for selection in (
        Selection(max_rows=3),
        Selection(only_engine=("sleeping-2",), shard="1/3"),
        Selection(shard="2/2"),
        Selection(shard="1/2"),
    ):
        task, output, plan = prepared(toys, tmp_path)
        made.append(without_ray(task, output, selected(plan, selection)))
    assert len(made[0]) == 2  # of two rows each
    assert sum(map(len, made)) == len(set().union(*made)) == len(undisturbed)
    assert shards(tmp_path) == undisturbed


def test_parts_made_apart_are_together_the_dataset(toys, tmp_path, undisturbed):
    files: dict[str, bytes] = {}
    for part in ("1/2", "2/2"):
        task, output, plan = prepared(toys, tmp_path / part[0])
        without_ray(task, output, selected(plan, Selection(shard=part)))
        assert not files.keys() & shards(tmp_path / part[0]).keys()
        files |= shards(tmp_path / part[0])
    assert files == undisturbed
