"""What a cell of the matrix works with: the cluster, the observer's log, jobs started on it, the undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.jobs_under_test import BY_NAME, JobUnderTest
from tests.faults.machine import Machine
from tests.faults.servers import S3, MlflowServer

ROOT = Path(__file__).resolve().parents[2]
OBSERVED = Path(__file__).parent / "observed"
KEPT = (
    "DashboardAgent",
    "RuntimeEnvAgent",
    "IDLE",
    "ActorLocationTracker",
    "_AutoscalingCoordinatorActor",
    "_StatsActor",
)
"""Ray's own processes that serve a cluster, not a job: they stay."""
UNDISTURBED = "NEARID_FAULTS_UNDISTURBED"
"""Variable that names a folder for the undisturbed runs; those of an earlier call of the same code are then used."""
UNDISTURBED_S = 600.0
"""A job without a fault takes some ten seconds."""
ENDS_WITHIN_S = 60.0
"""How long a job's processes may live on after it."""


@dataclass(frozen=True)
class Event:
    """A line of the observer's log."""

    event: str
    kind: str
    name: str
    rows: int
    pid: int
    node: str
    time: float


@dataclass
class Run:
    """One start of a job."""

    process: subprocess.Popen
    log: Path
    began: float = field(default_factory=time.monotonic)

    def wait(self, timeout_s: float) -> int:
        """Its exit code; 124 where it had to be ended, which is what a hang looks like."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return 124

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class World:
    """One small cluster for all cells."""

    def __init__(
        self,
        folder: Path,
        prepare: Callable[[str], dict[str, str]] | None = None,
        nodes: tuple[str, ...] = ("a", "b"),
        s3: "S3 | None" = None,
    ) -> None:
        """`prepare` gives what is added to the environment, told the address at which nodes reach this process."""
        self.folder, self.observed = folder, folder / "observed"
        self.observed.mkdir(parents=True)
        self.made = Path(os.environ.get(UNDISTURBED, folder / "undisturbed"))
        paths = [str(OBSERVED), str(ROOT / "platform"), str(ROOT)]
        self.machine = Machine(
            {
                "NEARID_OBSERVED": str(self.observed),
                "PYTHONPATH": os.pathsep.join(paths),
                "RAY_USAGE_STATS_ENABLED": "0",
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            }
        )
        self.runs = 0
        self.s3 = s3 or S3()
        self.strike: Callable[[], None] = lambda: None
        """What the present cell's fault does, where its setting has it in its hands."""
        self._mlflow: MlflowServer | None = None
        try:
            if prepare is not None:
                self.machine.environment |= prepare(self.machine.host)
            for name in ("head", *nodes):
                self.machine.add(name)
        except BaseException:
            self.machine.close()
            raise

    def close(self) -> None:
        if self._mlflow is not None:
            self._mlflow.kill()
        self.machine.close()

    def mlflow(self) -> MlflowServer:
        """The MLflow server, started when it is first asked for."""
        if self._mlflow is None:
            self._mlflow = MlflowServer(self.folder / "mlflow", self.machine.host)
        return self._mlflow

    def make_undisturbed(self, job: JobUnderTest) -> None:
        """Run the job, and those before it, without a fault, where that has not been done."""
        for name in job.after:
            self.make_undisturbed(BY_NAME[name])
        output = self.made / job.name
        if (output / "summary.json").exists():
            return
        self.begin(job)
        self.set_pace(0.0)
        run = self.start(job.command(self.made, str(output)))
        assert run.wait(UNDISTURBED_S) == 0, run.said()
        assert self.await_end()[1] == []

    def begin(self, job: JobUnderTest) -> None:
        """Forget what was observed, and set the job's pace."""
        (self.observed / "log").unlink(missing_ok=True)
        (self.observed / "deadly").unlink(missing_ok=True)
        self.set_pace(job.pace_s)

    def set_pace(self, pause_s: float) -> None:
        """The pause before each piece of work, from now on."""
        new = self.observed / "pace.new"
        new.write_text(str(pause_s))
        new.replace(self.observed / "pace")

    def start(self, command: tuple[str, ...]) -> Run:
        """A job's driver on the head node."""
        self.runs += 1
        name, *flags = command
        log = self.folder / f"run-{self.runs:03}-{name}.log"
        argv = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
        with log.open("wb") as stream:
            process = self.machine.drive(argv, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
        return Run(process, log)

    def events(self) -> list[Event]:
        place = self.observed / "log"
        lines = place.read_text().split("\n")[:-1] if place.exists() else []
        return [Event(**json.loads(line)) for line in lines]

    def begun(self, kind: str) -> list[Event]:
        return [event for event in self.events() if event.event == "begun" and event.kind == kind]

    def in_flight(self, *kinds: str) -> list[Event]:
        """Pieces that are begun, not ended, and whose process lives."""
        return [event for event in self.unended(*kinds) if psutil.pid_exists(event.pid)]

    def unended(self, *kinds: str) -> list[Event]:
        """Pieces that are begun and not ended by the same process."""
        open_: dict[tuple[int, str, str], Event] = {}
        for event in self.events():
            if event.event == "begun":
                open_[event.pid, event.kind, event.name] = event
            else:
                open_.pop((event.pid, event.kind, event.name), None)
        return [event for event in open_.values() if event.kind in kinds]

    def unfinished(self, *nodes: str) -> list[Event]:
        """The last event of each piece of work that was begun on one of the nodes (any, where none is named) and is not
        written: what is lost when they go, also where a step has ended and its outcome lies in a node's memory."""
        events = self.events()
        last = "finish" if any(event.kind == "prepare" for event in events) else "shard"
        written = {event.name for event in events if event.event == "ended" and event.kind in (last, "step")}
        there = [event for event in events if event.name not in written and (not nodes or event.node in nodes)]
        return list({event.name: event for event in there}.values())

    def await_work(self, run: Run, kind: str, count: int, *kinds: str, timeout_s: float = 240.0) -> list[Event]:
        """Wait until so many pieces have begun and some of `kinds` are in flight; those."""
        wanted = kinds or (kind,)
        return self.wait_for(
            run,
            lambda: len(self.begun(kind)) >= count and self.in_flight(*wanted),
            f"{count} pieces of work, and one of {wanted} in flight",
            timeout_s,
        )

    def wait_for(self, run: Run | None, reached: Callable[[], Any], what: str, timeout_s: float = 240.0) -> Any:
        """What `reached` returns when it is true."""
        deadline = time.monotonic() + timeout_s
        while not (found := reached()):
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{run.said() if run else ''}"
            assert run is None or run.process.poll() is None, f"it ended before {what}\n{run.said() if run else ''}"
            time.sleep(0.03)
        return found

    def actors(self, *parts: str) -> list[psutil.Process]:
        """Processes of the nodes whose title holds one of the parts."""
        found = []
        for node in self.machine.nodes.values():
            for process in node.processes():
                try:
                    title = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if title.startswith("ray::") and any(part in title for part in parts):
                    found.append(process)
        return found

    def left_over(self) -> list[str]:
        """Processes of jobs on the nodes, and dead ones that nobody has buried."""
        found = []
        for node in self.machine.nodes.values():
            mine = {process.pid for process in node.processes()}
            for process in node.processes():
                try:
                    words = process.cmdline()
                    title, script = " ".join(words).strip(), "".join(words[1:2])
                    found += [
                        f"{node.name}: dead {child.name()}"
                        for child in process.children()
                        if child.status() == psutil.STATUS_ZOMBIE and child.pid not in mine
                    ]
                except psutil.Error:
                    continue
                worker = title.startswith("ray::") and not any(name in title for name in KEPT)
                if worker or Path(script).parent == ROOT / "jobs" or script.endswith("setup_worker.py"):
                    found.append(f"{node.name}: {title[:80]}")
        return found

    def await_end(self) -> tuple[float, list[str]]:
        """(seconds until no process of a job was left, what is left when that is too long)."""
        began = time.monotonic()
        while (left := self.left_over()) and time.monotonic() - began < ENDS_WITHIN_S:
            time.sleep(0.5)
        return time.monotonic() - began, left


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
