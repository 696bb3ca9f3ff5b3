"""The faults of the matrix: what is done to a job in mid-work, at a point drawn by the cell's seed.

A fault is a function of (world, cell, run): it waits for its point, strikes, and says what it hit.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.jobs_under_test import JobUnderTest
from tests.faults.machine import NOTICE_S
from tests.faults.world import Event, Run, World, kill


@dataclass
class Struck:
    """What a fault hit."""

    what: str
    lost: list[Event] = field(default_factory=list)
    """Pieces of work that were in flight where it struck."""
    node: str = ""
    """The node to make whole again afterwards."""


Fault = Callable[[World, JobUnderTest, Run, random.Random], Struck]


def _point(world: World, job: JobUnderTest, run: Run, drawn: random.Random, *kinds: str) -> list[Event]:
    """In mid-work: so many pieces have begun, and some are in flight."""
    world.await_work(run, job.kind, drawn.randint(*job.strikes))
    time.sleep(drawn.uniform(0, 0.5 * job.pace_s))
    return world.await_work(run, job.kind, 0, *kinds)


def kill_worker(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """SIGKILL to a process at a piece of work: a task's worker where steps run apart, else one of the pool."""
    kinds = ("prepare", "finish") if job.name in ("synthesize", "embed") else (job.kind,)
    flying = _point(world, job, run, drawn, *kinds)
    hit = drawn.choice(flying)
    kill(hit.pid)
    return Struck(f"the process at {hit.kind} {hit.name} on node {hit.node}", [e for e in flying if e.pid == hit.pid])


def kill_actor(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """SIGKILL to an actor: the model's where steps run apart; Train's controller; else one that serves Ray Data."""
    flying = _point(world, job, run, drawn, job.kind)
    if job.name in ("synthesize", "embed"):
        hit = drawn.choice(flying)
        kill(hit.pid)
        return Struck(f"the model's actor at {hit.name}", [e for e in flying if e.pid == hit.pid])
    names = ("TrainController",) if job.kind == "step" else ("_StatsActor", "_AutoscalingCoordinatorActor")
    found = world.wait_for(run, lambda: world.actors(*names), f"one of {names}")
    victim = drawn.choice(found)
    title = " ".join(victim.cmdline()).strip()
    victim.kill()
    return Struck(f"the actor {title.removeprefix('ray::')[:40]}")


def kill_node(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """SIGKILL to all processes of a node that works and, where steps run apart, holds what was prepared."""
    flying = _point(world, job, run, drawn, job.kind)
    name = drawn.choice(sorted({event.node for event in flying}))
    lost = world.unfinished(name)
    world.machine.kill(name)
    return Struck(f"node {name}", lost, name)


def kill_driver(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """SIGKILL to the job's driver."""
    _point(world, job, run, drawn, job.kind)
    lost = world.unfinished()
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    return Struck("the driver", lost)


def cut_node(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """The network of a node that works goes away for good; its processes live on and cannot know."""
    flying = _point(world, job, run, drawn, job.kind)
    name = drawn.choice(sorted({event.node for event in flying}))
    lost = world.unfinished(name)
    world.machine.cut(name)
    how = "its link is down" if world.machine.spaces else "its processes are stopped"
    return Struck(f"node {name}: {how}", lost, name)


def terminate_driver(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """SIGTERM to the job's driver, as a scheduler sends it."""
    _point(world, job, run, drawn, job.kind)
    run.process.send_signal(signal.SIGTERM)
    return Struck("SIGTERM to the driver")


def take_node_away(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """The end of a spot machine: SIGTERM to the node, which tells the cluster and goes some seconds later."""
    flying = _point(world, job, run, drawn, job.kind)
    name = drawn.choice(sorted({event.node for event in flying}))
    if job.kind == "step":
        world.set_pace(0.6)  # or it would be done before the node goes
    world.machine.take_away(name)
    lost = world.unfinished(name)
    world.set_pace(job.pace_s)
    return Struck(f"node {name}, {NOTICE_S} s after SIGTERM", lost, name)


def terminate_worker(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """SIGTERM to one process that makes rows or steps."""
    hit = drawn.choice(_point(world, job, run, drawn, job.kind))
    os.kill(hit.pid, signal.SIGTERM)
    return Struck(f"SIGTERM to the process at {hit.name} on node {hit.node}")


def nothing(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """The fault is in place from the beginning."""
    return Struck("")


def set_off(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """What the cell's setting has in its hands: a server that fails."""
    _point(world, job, run, drawn, job.kind)
    world.strike()
    return Struck("")


def leave_and_join(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """A node is killed; when training goes on with the other one alone, it joins again, and both train."""

    def nodes_since(time_s: float) -> set[str]:
        return {event.node for event in world.begun(job.kind) if event.time > time_s}

    flying = _point(world, job, run, drawn, job.kind)
    assert {event.node for event in flying} == {"a", "b"}, "the workers are not on two nodes"
    name = drawn.choice(["a", "b"])
    lost = world.unfinished(name)
    world.set_pace(2.0)
    world.machine.kill(name)
    killed_at = time.time()
    world.wait_for(run, lambda: nodes_since(killed_at + 1) - {name}, "a step with one worker")
    world.set_pace(1.0)
    world.machine.restore(name)
    world.wait_for(run, lambda: nodes_since(killed_at + 1) == {"a", "b"}, "a step with both workers again")
    world.set_pace(job.pace_s)
    return Struck(f"node {name} left and joined; 2, 1, 2 workers", lost)


def set_at_once(world: World, job: JobUnderTest, run: Run, drawn: random.Random) -> Struck:
    """What the cell's setting has in its hands, before the job begins its work."""
    world.strike()
    return Struck("")
