"""Where a cell's job runs: on a disk without room, on a store or beside a server that fails, on data with a bad row."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearid_ray.data.store import Dataset
from nearid_ray.embedding.cache import TokenCache
from tests.e2e.conftest import photo
from tests.faults.jobs_under_test import OFF, JobUnderTest
from tests.faults.world import World

AWAY_S = 60.0
FAILS_S = 6.0


@dataclass(kw_only=True)
class Setting:
    """Where and with what a cell's job runs."""

    output: str
    source: Path
    command: tuple[str, ...] = ()
    """Instead of the job's own."""
    more: tuple[str, ...] = ()
    tracking: tuple[str, ...] = OFF
    strike: Callable[[], None] = lambda: None
    """The fault itself, where the setting has it in its hands."""
    mend: Callable[[], None] = lambda: None
    """Takes the fault's cause away before the same command is given again."""
    check: Callable[[], list[str]] = list
    """What is wrong besides, at the end."""
    compared: bool = True
    """Whether the output is compared with the undisturbed one; else `check` does."""


@contextmanager
def plain(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """An output on the machine's disk."""
    yield Setting(output=str(folder / "out"), source=world.made)


@contextmanager
def elastic(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """One worker a node, as many as there are nodes, and one at the least."""
    more = ("--threads", "2", "--min-workers", "1", "--resize-every-s", "4")
    yield Setting(output=str(folder / "out"), source=world.made, more=more)


@contextmanager
def small_disk(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """An output on a file system with room for a part of it, which grows when the job has said so."""
    disk = folder / "disk"
    disk.mkdir()
    made = world.made / job.name
    files = [path for path in made.rglob("*") if path.is_file()]
    room_kib = max(64, round(0.6 * sum(-(-path.stat().st_size // 4096) * 4 for path in files)))
    _mount("-t", "tmpfs", "-o", f"size={room_kib}k", "tmpfs", str(disk))
    try:
        yield Setting(
            output=str(disk / "out"),
            source=world.made,
            mend=lambda: _mount("-o", "remount,size=64m", str(disk)),
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def on_s3(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """An output on S3, whose server answers with errors for some seconds and then is well again."""

    def strike() -> None:
        world.s3.failing_until = time.monotonic() + FAILS_S

    before = world.s3.errors
    more = ("--tracking-uri", "off")
    yield Setting(
        output=f"s3://nearid/{job.name}-{folder.name}",
        source=world.made,
        tracking=more,
        strike=strike,
        check=lambda: [] if world.s3.errors > before else ["the server was asked nothing while it failed"],
    )


@contextmanager
def tracked(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """A job that logs to an MLflow server, which is killed and comes back after a minute."""
    server = world.mlflow()
    name = f"{job.name} {folder.name}"

    def strike() -> None:
        server.kill()
        threading.Timer(AWAY_S, server.start).start()

    yield Setting(
        output=str(folder / "out"),
        source=world.made,
        tracking=("--tracking-uri", server.address, "--run-name", name),
        strike=strike,
        check=lambda: _wrong_in_mlflow(server.address, name, job),
    )
    server.await_ready()


def _wrong_in_mlflow(address: str, name: str, job: JobUnderTest) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    runs = client.search_runs([client.get_experiment_by_name("nearid").experiment_id])
    mine = [run for run in runs if run.info.run_name == name]
    if [run.info.status for run in mine] != ["FINISHED"]:
        return [f"MLflow has {[run.info.status for run in mine]} of it; expected one FINISHED"]
    if job.name == "tune":  # its numbers are its trials'
        mine = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == mine[0].info.run_id]
    wrong = [] if mine and all(run.data.metrics for run in mine) else ["MLflow has no numbers of it"]
    if job.name == "train":
        steps = [metric.step for metric in client.get_metric_history(mine[0].info.run_id, "loss")]
        if sorted(steps) != list(range(1, 61)):
            wrong.append(f"MLflow has the losses of {len(steps)} of 60 steps")
    return wrong


@contextmanager
def poisoned(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """A picture that cannot be decoded; for what reads tokens, tokens that are not numbers."""
    prepare = {"ingest": _poisoned_photos, "synthesize": _poisoned_view, "embed": _poisoned_view}
    yield prepare.get(job.name, _poisoned_tokens)(world, job, folder)


@contextmanager
def deadly(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """A piece of work that kills every process that begins it, as a picture does that crashes its reader."""
    name = "step 20" if job.kind == "step" else "000-000003"
    place = world.observed / "deadly"
    yield Setting(
        output=str(folder / "out"),
        source=world.made,
        strike=lambda: place.write_text(name) and None,
        mend=lambda: place.unlink(missing_ok=True),
    )


def _poisoned_photos(world: World, job: JobUnderTest, folder: Path) -> Setting:
    root, whole = folder / "photos", folder / "whole"
    for identity in range(10):
        for view in range(2):
            photo(root / f"thing {identity:02}" / f"{view}.png", seed=10 * identity + view)
    flags = ("photos", "--root", str(root), "--size-px", "64", "--workers", "2", "--max-error-share", "1", *OFF)
    world.begin(job)
    world.set_pace(0.0)
    run = world.start(("ingest", *flags, "--output", str(whole)))
    assert run.wait(300) == 0, run.said()
    bad = root / "thing 04" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    output = folder / "out"

    def check() -> list[str]:
        here, there = (
            {row["identity_id"]: row for row in Dataset(place).read().to_pylist()} for place in (output, whole)
        )
        differing = [name for name in there if here.get(name) != there[name]]
        views = here.get("photos:thing 04", {}).get("views") or []
        errors = [view["error"] for view in views if view["error"]] or [here.get("photos:thing 04", {}).get("error")]
        told = [] if differing == ["photos:thing 04"] and errors != [""] else [f"rows differ: {differing}, {errors}"]
        return told + ([] if here.keys() == there.keys() else ["rows are missing"])

    command = ("ingest", *flags, "--output", str(output))
    return Setting(output=str(output), source=world.made, command=command, check=check, compared=False)


def _poisoned_view(world: World, job: JobUnderTest, folder: Path) -> Setting:
    for name in job.after:
        shutil.copytree(world.made / name, folder / "made" / name)
    path = sorted((folder / "made" / "ingest" / "data").glob("*.parquet"))[2]
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["views"][0]["image"]["bytes"] = rows[1]["views"][0]["image"]["bytes"][:100]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    identity, output = rows[1]["identity_id"], folder / "out"
    key = "distractor_id" if job.name == "synthesize" else "item_id"

    def check() -> list[str]:
        here, there = ({row[key]: row for row in _rows(place)} for place in (output, world.made / job.name))
        bad = {name for name, row in here.items() if row["error"]}
        wrong = [] if bad and {here[name]["identity_id"] for name in bad} == {identity} else [f"errors in {bad}"]
        wrong += [] if here.keys() == there.keys() else ["rows are missing or too many"]
        return wrong + [f"{name} differs" for name in there if name not in bad and here.get(name) != there[name]][:3]

    more = ("--max-error-share", "1")
    return Setting(output=str(output), source=folder / "made", more=more, check=check, compared=False)


def _rows(place: Path) -> list[dict[str, Any]]:
    return Dataset(place).read().to_pylist()


def _poisoned_tokens(world: World, job: JobUnderTest, folder: Path) -> Setting:
    shutil.copytree(world.made, folder / "made")
    tokens = folder / "made" / "embed"
    cache = TokenCache.open(str(tokens))
    split = "train" if job.kind == "step" else "test"
    index = cache.index.to_pylist()
    place = next(
        n for n, row in enumerate(index) if row["split"] == split and row["role"] == "view" and not row["draw"]
    )
    item = np.empty((1, cache.tokens, cache.width), np.float16)
    cache.gather(np.array([place]), item)
    file = tokens / "tokens" / f"{index[place]['shard']}.arrow"
    data = file.read_bytes()
    assert data.count(item.tobytes()) == 1
    file.write_bytes(data.replace(item.tobytes(), np.full_like(item, np.nan).tobytes()))

    def mend() -> None:
        run = world.start(
            (
                *("embed", "--tuples", str(folder / "made" / "ingest")),
                *("--distractors", str(folder / "made" / "synthesize"), "--output", str(tokens), "--verify", *OFF),
                *map(str, ("--draws", 1, "--dtype", "float32", "--gpus-per-worker", 1)),
            )
        )
        assert run.wait(300) == 0, run.said()

    more = ("--retry-errors",) if job.name == "evaluate" else ()
    return Setting(output=str(folder / "out"), source=folder / "made", more=more, mend=mend)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
