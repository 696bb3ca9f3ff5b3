"""A small Ray cluster on one machine, whose nodes can be killed, cut off and put back.

Where this process may, every node lives in a network namespace of its own on a private bridge, so that a node is all
processes of its namespace, a partition is a link that is down, and no port meets another Ray's. Where it may not, nodes
share the loopback, and a partition is a node whose processes are all stopped.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PORT = 6379
HEALTH = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
}
"""A node that does not answer is dead after some 20 s."""
NOTICE_S = 15
"""How long a node that gets SIGTERM stays."""


@dataclass
class Node:
    """One node: a raylet, what serves it, and the workers it started."""

    name: str
    address: str
    started: subprocess.Popen
    space: str = ""
    """Its network namespace, "" where it has none."""

    def processes(self) -> list[psutil.Process]:
        """All processes of the node that run."""
        if self.space:
            found = _pids_in(self.space)
        else:
            with suppress(psutil.NoSuchProcess):
                return [c for c in psutil.Process(self.started.pid).children(recursive=True) if c.is_running()]
            return []
        result = []
        for pid in found:
            with suppress(psutil.NoSuchProcess):
                result.append(psutil.Process(pid))
        return result

    def signal(self, number: int) -> None:
        """Send a signal to every process of the node."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        with suppress(ProcessLookupError):
            self.started.send_signal(number)


@dataclass
class Machine:
    """The nodes, of which the first to be added is `head`: it has no CPU for work, and the jobs' drivers run on it."""

    environment: dict[str, str]
    """Added to the environment of nodes and drivers."""
    cpus: int = 2
    gpus: int = 1
    """Told to Ray for each node; there are none."""
    spaces: bool = True
    nodes: dict[str, Node] = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="nrf-")))

    def __post_init__(self) -> None:
        self._tag = f"nf{os.getpid() % 100000}"
        self._subnet = f"10.{secrets.randbelow(56) + 200}.{secrets.randbelow(250)}"
        self.spaces = self.spaces and self._can_make_spaces()
        self.host = f"{self._subnet}.254" if self.spaces else "127.0.0.1"
        """Where servers of this process are reached from the nodes."""
        if self.spaces:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{self.host}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
        self._port = PORT if self.spaces else _free_port()

    @property
    def address(self) -> str:
        """RAY_ADDRESS of the cluster."""
        return f"{self.nodes['head'].address}:{self._port}"

    @property
    def _bridge(self) -> str:
        return f"{self._tag}b"

    def add(self, name: str) -> Node:
        """Start a node and wait until it is one."""
        number = len(self.nodes) + 1 if name not in self.nodes else list(self.nodes).index(name) + 1
        space, address = "", "127.0.0.1"
        if self.spaces:
            space, address = f"{self._tag}-{name}", f"{self._subnet}.{number}"
            if name not in self.nodes:
                self._make_space(space, f"{self._tag}v{number}", address)
        head = name == "head"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", address, "--object-store-memory", str(150 << 20)]
        if not self.spaces:  # ports of their own on one address
            command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        if head:
            command += ["--head", "--port", str(self._port), "--num-cpus", "0"]
            # As clusters have one: Ray Train's cleaner of resources asks it whether the controller lives, or stays.
            command += ["--include-dashboard", "true"]
            command += ["--temp-dir", str(self.folder)]
        else:
            command += ["--address", self.address, "--num-cpus", str(self.cpus), "--num-gpus", str(self.gpus)]
        log = open(self.folder / f"{name}.log", "ab")  # noqa: SIM115  (the process keeps it)
        started = subprocess.Popen(
            self.inside(space, command),
            env=self.surroundings(name),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        log.close()
        self.nodes[name] = Node(name, address, started, space)
        self._await(name)
        return self.nodes[name]

    def surroundings(self, name: str) -> dict[str, str]:
        """The environment of a node's processes, or of a driver."""
        own = {"RAY_AUTH_MODE": "disabled", "NEARID_NODE": name}
        own["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(NOTICE_S)
        if self.spaces:
            own["GLOO_SOCKET_IFNAME"] = "eth0"
        kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS",)}
        return {**kept, **HEALTH, **own, **self.environment}

    @staticmethod
    def inside(space: str, command: list[str]) -> list[str]:
        """The command in a network namespace."""
        return ["nsenter", f"--net=/var/run/netns/{space}", *command] if space else command

    def drive(self, command: list[str], **options: object) -> subprocess.Popen:
        """A job's process on the head, connected to the cluster."""
        environment = self.surroundings("driver") | {"RAY_ADDRESS": self.address}
        return subprocess.Popen(  # type: ignore[call-overload]
            self.inside(self.nodes["head"].space, command), env=environment, start_new_session=True, **options
        )

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node."""
        self.nodes[name].signal(signal.SIGKILL)
        self.nodes[name].started.wait()
        self.nodes[name].signal(signal.SIGKILL)  # those that were being started

    def cut(self, name: str) -> None:
        """Nothing goes to the node or comes from it any more."""
        node = self.nodes[name]
        if node.space:
            _run("ip", "-n", node.space, "link", "set", "eth0", "down")
        else:
            node.signal(signal.SIGSTOP)

    def mend(self, name: str) -> None:
        """Undo `cut`."""
        node = self.nodes[name]
        if node.space:
            self._connect(node.space, node.address)
        else:
            node.signal(signal.SIGCONT)

    def take_away(self, name: str) -> None:
        """SIGTERM to `ray start`, as a cloud or Kubernetes ends a node: it says so to the cluster, waits, and goes."""
        self.nodes[name].started.send_signal(signal.SIGTERM)
        self.nodes[name].started.wait(4 * NOTICE_S)
        self.kill(name)

    def restore(self, name: str) -> None:
        """Make a node whole again after whatever happened to it."""
        self.mend(name)
        self.kill(name)
        self.add(name)

    def close(self) -> None:
        """End all nodes, remove all namespaces and files."""
        for name in reversed(list(self.nodes)):
            self.kill(name)
        for node in self.nodes.values():
            if node.space:
                _run("ip", "netns", "del", node.space)
        if self.spaces:
            _run("ip", "link", "del", self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    def alive(self) -> list[str]:
        """`ADDRESS ID` of the nodes that the cluster takes for alive."""
        said = self._ask(
            "import json; print(json.dumps([n.node_manager_address + ' ' + n.node_id.hex() "
            "for n in g.get_all_node_info(timeout=5).values() if n.state == 0]))"
        )
        return json.loads(said) if said else []

    def _ask(self, code: str) -> str:
        """What a line of Python says that asks the cluster, `g`; "" where the cluster does not answer."""
        code = f"import ray._raylet as r; g = r.GcsClient(address={self.address!r}); {code}"
        ended = subprocess.run(
            self.inside(self.nodes["head"].space, [sys.executable, "-c", code]),
            env=self.surroundings("") | {"NEARID_OBSERVED": ""},
            capture_output=True,
            text=True,
        )
        return ended.stdout.splitlines()[-1] if ended.returncode == 0 else ""

    def _await(self, name: str, timeout_s: float = 120.0) -> None:
        """Wait until as many nodes are alive as there are here."""
        deadline = time.monotonic() + timeout_s
        wanted = sorted(node.address for node in self.nodes.values() if node.started.poll() is None)
        while sorted(entry.split()[0] for entry in self.alive()) != wanted:
            log = (self.folder / f"{name}.log").read_text()
            if time.monotonic() > deadline or self.nodes[name].started.poll() is not None:
                raise AssertionError(f"node {name} did not join:\n{log}")
            time.sleep(0.5)

    def _can_make_spaces(self) -> bool:
        if not shutil.which("ip") or not shutil.which("nsenter") or os.geteuid():
            return False
        trial = f"{self._tag}t"
        if subprocess.run(["ip", "link", "add", trial, "type", "bridge"], capture_output=True).returncode:
            return False
        _run("ip", "link", "del", trial)
        if subprocess.run(["ip", "netns", "add", trial], capture_output=True).returncode:
            return False
        _run("ip", "netns", "del", trial)
        return True

    def _make_space(self, space: str, link: str, address: str) -> None:
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", link, "master", self._bridge, "up")
        _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        self._connect(space, address)

    def _connect(self, space: str, address: str) -> None:
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "route", "replace", "default", "via", self.host)


def _pids_in(space: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]
