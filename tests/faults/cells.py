"""The cells of the matrix: which fault meets which job, how a cell is run, and what has to hold afterwards."""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from nearid_ray.data.lock import LOCK
from tests.faults import faults, settings
from tests.faults.jobs_under_test import BY_NAME, JobUnderTest, located
from tests.faults.settings import Setting
from tests.faults.world import Run, World

SEED = 7
RAYS_MARKER = ".validate_storage_marker"
"""Ray Train leaves it beside its checkpoints."""
HANG_S = 420.0
"""A job that has not ended by then hangs."""


Prepare = Callable[[World, JobUnderTest, Path], AbstractContextManager[Setting]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault and how a job is expected to come through it."""

    title: str
    strike: faults.Fault
    prepare: Prepare = settings.plain
    again: bool = False
    """Whether the same command has to be given again; else the job has to finish by itself."""
    either: bool = False
    """Whether both will do."""
    bounded: bool = False
    """Whether no more rows may be begun again than were in flight where it struck (training: see `steps_again`)."""
    steps_again: int | None = None
    """How many steps of training may be begun again, where it is warned."""


KINDS: dict[str, Kind] = {
    "worker": Kind(title="SIGKILL of a worker process", strike=faults.kill_worker, bounded=True),
    "actor": Kind(title="SIGKILL of an actor", strike=faults.kill_actor, either=True),
    "node": Kind(title="SIGKILL of a node", strike=faults.kill_node, bounded=True),
    "driver": Kind(title="SIGKILL of the driver", strike=faults.kill_driver, again=True, bounded=True),
    "partition": Kind(title="partition of a node", strike=faults.cut_node, bounded=True),
    "s3": Kind(title="S3 errors for some seconds", strike=faults.set_off, prepare=settings.on_s3),
    "disk": Kind(title="full disk", strike=faults.nothing, prepare=settings.small_disk, again=True),
    "mlflow": Kind(title="MLflow server away for a minute", strike=faults.set_off, prepare=settings.tracked),
    "row": Kind(title="poisoned row", strike=faults.nothing, prepare=settings.poisoned, either=True),
    "deadly": Kind(
        title="a row that kills its process every time", strike=faults.set_at_once, prepare=settings.deadly, again=True
    ),
    "terminate": Kind(title="SIGTERM to the driver", strike=faults.terminate_driver, again=True, steps_again=1),
    "preemption": Kind(title="SIGTERM to a node", strike=faults.take_node_away),
    "elastic": Kind(title="a node leaves and joins", strike=faults.leave_and_join, prepare=settings.elastic),
    "notice": Kind(title="SIGTERM to a worker process", strike=faults.terminate_worker, steps_again=2),
}

ROWS = ("ingest", "synthesize", "embed", "evaluate")
"""Jobs that make rows on a pool of workers."""
SENSELESS: dict[tuple[str, str], str] = {
    **{("elastic", job): "rows are made by whatever workers there are; see SIGKILL of a node" for job in ROWS},
    **{("notice", job): "nothing is saved within a shard; the same as SIGKILL" for job in ROWS},
    ("elastic", "tune"): "each pass of it is a training; see there",
    ("notice", "tune"): "each pass of it is a training; see there",
    ("row", "tune"): "tune reads what train reads, through the same function",
}
"""(fault, job) -> why there is no such cell."""

CELLS = [(kind, job) for kind in KINDS for job in BY_NAME if (kind, job) not in SENSELESS]


@dataclass
class Seen:
    """What was seen of one cell; a line of the report."""

    fault: str
    job: str
    what: str = ""
    seconds: float = 0.0
    again: int = 0
    """How often the same command was given again."""
    codes: list[int] = field(default_factory=list)
    rows: int = 0
    """Rows (training: samples of all steps) that the job makes."""
    in_flight: int = 0
    """Of these, rows in flight where the fault struck."""
    made_again: int = 0
    """Rows begun more than once, in all runs together."""
    ended_s: float = 0.0
    """Seconds until the last process of the job was gone."""
    wrong: list[str] = field(default_factory=list)


def run_cell(world: World, kind_name: str, job_name: str, folder: Path) -> Seen:
    """Run a job, plant the fault, give the same command again where needed, and compare."""
    kind, job = KINDS[kind_name], BY_NAME[job_name]
    drawn = random.Random(f"{SEED} {kind_name} {job_name}")
    seen = Seen(kind_name, job_name)
    world.make_undisturbed(job)
    with kind.prepare(world, job, folder) as setting:
        world.begin(job)
        began = time.monotonic()
        command = setting.command or job.command(setting.source, setting.output, setting.tracking)
        command = (*command, *setting.more)
        world.strike = setting.strike
        run = world.start(command)
        struck = kind.strike(world, job, run, drawn)
        seen.what = struck.what
        seen.codes.append(run.wait(HANG_S))
        first_end = world.await_end()[1] if seen.codes[-1] == 124 else []
        seen.wrong += [f"still there after a hang: {text}" for text in first_end]
        while seen.codes[-1] and seen.again < 2:
            setting.mend()
            if struck.node:
                world.machine.restore(struck.node)
                struck.node = ""
            run = world.start(command)
            seen.again += 1
            seen.codes.append(run.wait(HANG_S))
        seen.seconds = round(time.monotonic() - began, 1)
        if struck.node:
            world.machine.restore(struck.node)
        ended_s, left = world.await_end()
        seen.ended_s = round(ended_s, 1)
        seen.wrong += [f"left over: {text}" for text in left]
        _count(world, job, struck, seen)
        _judge(kind, job, setting, world, run, seen)
    return seen


def _count(world: World, job: JobUnderTest, struck: faults.Struck, seen: Seen) -> None:
    """Rows begun, and how many of them more than once."""
    begun = world.begun(job.kind)
    rows = {event.name: event.rows for event in begun if event.rows}
    seen.rows = sum(rows.values())
    seen.made_again = sum(event.rows for event in begun) - seen.rows
    lost = {event.name: max(event.rows, rows.get(event.name, 0)) for event in struck.lost}
    seen.in_flight = sum(lost.values())


def _judge(kind: Kind, job: JobUnderTest, setting: Setting, world: World, run: Run, seen: Seen) -> None:
    if 124 in seen.codes:
        seen.wrong.append(f"it hung: nothing ended in {HANG_S:.0f} s")
    if seen.codes[-1]:
        seen.wrong.append(f"it did not finish, codes {seen.codes}: {run.said()[-1500:]}")
    if not kind.either and bool(seen.again) != kind.again:
        expected = "the same command again" if kind.again else "no other command"
        seen.wrong.append(f"expected {expected}, codes {seen.codes}: {run.said()[-800:]}")
    most = seen.in_flight if job.kind != "step" else (kind.steps_again or 0) * 8
    if (kind.bounded and job.kind != "step") or (kind.steps_again is not None and job.kind == "step"):
        seen.wrong += [] if seen.made_again <= most else [f"{seen.made_again} rows begun again, promised {most}"]
    output = located(setting.output)
    differing = job.differs(output, located(str(world.made / job.name))) if setting.compared else []
    seen.wrong += [f"differs: {name}" for name in differing[:5]]
    hidden = [LOCK] if output.child(LOCK).exists() else []
    hidden += [str(p) for p in Path(setting.output).rglob(".*") if p.is_file() and p.name != RAYS_MARKER]
    seen.wrong += [f"left over: {name}" for name in hidden]
    seen.wrong += setting.check()
