"""The cells of the matrix: which fault meets which job, how a cell is run, and what has to hold afterwards."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import faults
from tests.faults.jobs_under_test import BY_NAME, OFF, JobUnderTest, located
from tests.faults.world import Run, World

SEED = 7
HANG_S = 420.0
"""A job that has not ended by then hangs."""


@dataclass(kw_only=True)
class Setting:
    """Where and with what a cell's job runs."""

    output: str
    source: Path
    more: tuple[str, ...] = ()
    tracking: tuple[str, ...] = OFF
    environment: dict[str, str] = field(default_factory=dict)
    mend: Callable[[], None] = lambda: None
    """Takes the fault's cause away before the same command is given again."""
    check: Callable[[], list[str]] = list
    """What is wrong besides, at the end."""


Prepare = Callable[[World, JobUnderTest, Path], AbstractContextManager[Setting]]


@contextmanager
def plain(world: World, job: JobUnderTest, folder: Path) -> Iterator[Setting]:
    """An output on the machine's disk."""
    yield Setting(output=str(folder / "out"), source=world.made)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault and how a job is expected to come through it."""

    title: str
    strike: faults.Fault
    prepare: Prepare = plain
    again: bool = False
    """Whether the same command has to be given again; else the job has to finish by itself."""
    either: bool = False
    """Whether both will do."""


KINDS: dict[str, Kind] = {
    "worker": Kind(title="SIGKILL of a worker process", strike=faults.kill_worker),
    "actor": Kind(title="SIGKILL of an actor", strike=faults.kill_actor, either=True),
    "node": Kind(title="SIGKILL of a node", strike=faults.kill_node),
    "driver": Kind(title="SIGKILL of the driver", strike=faults.kill_driver, again=True),
    "partition": Kind(title="partition of a node", strike=faults.cut_node),
    "terminate": Kind(title="SIGTERM to the driver", strike=faults.terminate_driver, again=True),
    "preemption": Kind(title="node taken away with notice", strike=faults.drain_node),
}

SENSELESS: dict[tuple[str, str], str] = {}
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
    with kind.prepare(world, job, folder) as setting:
        world.begin(job)
        began = time.monotonic()
        command = (*job.command(setting.source, setting.output, setting.tracking), *setting.more)
        run = world.start(command, setting.environment)
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
            run = world.start(command, setting.environment)
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
    ranks = 2 if job.kind == "step" else 1
    rows = {event.name: event.rows for event in world.begun(job.kind)}
    begun = sum(event.rows for event in world.begun(job.kind))
    seen.rows = sum(rows.values())
    seen.made_again = begun // ranks - seen.rows
    lost = {event.name: event.rows for event in struck.lost}
    seen.in_flight = sum(lost.values())


def _judge(kind: Kind, job: JobUnderTest, setting: Setting, world: World, run: Run, seen: Seen) -> None:
    if 124 in seen.codes:
        seen.wrong.append(f"it hung: nothing ended in {HANG_S:.0f} s")
    if seen.codes[-1]:
        seen.wrong.append(f"it did not finish, codes {seen.codes}: {run.said()[-1500:]}")
    if not kind.either and bool(seen.again) != kind.again:
        expected = "the same command again" if kind.again else "no other command"
        seen.wrong.append(f"expected {expected}, codes {seen.codes}: {run.said()[-800:]}")
    output = located(setting.output)
    differing = job.differs(output, located(str(world.made / job.name)))
    seen.wrong += [f"differs: {name}" for name in differing[:5]]
    hidden = [name for name in output.names() if name.startswith(".lock")] + [
        str(path) for path in Path(setting.output).rglob(".*") if path.is_file()
    ]
    seen.wrong += [f"left over: {name}" for name in hidden]
    seen.wrong += setting.check()
