"""Connecting to Ray, and what must hold on a cluster before work starts."""

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nearid_ray.data import s3
from nearid_ray.data.lock import release_held
from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.submitted import in_submitted_job

_SOURCE_ROOT = Path(__file__).resolve().parents[1]
_GRACE_S = 20.0
"""How long a job may take to end in order after SIGTERM."""
_ANSWER_S = 10.0
"""How long a cluster may take to answer."""


@contextmanager
def ray_session(*, num_cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray for the time of the block.

    Joins the cluster that RAY_ADDRESS names (as in a submitted job), uses a session that is already there, or starts a
    private one on this machine, which ends with the block. Workers run the driver's own version of the code.
    """
    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        modules = [str(_SOURCE_ROOT / "nearid_ray"), str(_schemas_root() / "schemas")]
        with _joining(os.environ["RAY_ADDRESS"]):
            ray.init(runtime_env={"py_modules": modules}, **quiet)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _put_on_python_path(_SOURCE_ROOT, _schemas_root())
        ray.init("local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    try:
        with ending_in_order():  # Ray's own handler can be swallowed, and the job then hangs
            yield
    finally:
        ray.shutdown()
        if in_main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM raises Terminated in the block, so that it ends as after Ctrl-C."""
    if not in_main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM: the job ends as after Ctrl-C, with its own exit code."""

    received = False
    """Whether the signal came; some libraries end with another exception than the one raised for it."""


def in_main_thread() -> bool:
    """Whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _terminate(*_: object) -> None:
    """End the job in order; where that fails or takes too long, end the process: every file is whole at any time."""

    _end_soon()
    raise Terminated


def _end_soon() -> None:
    def end() -> None:
        time.sleep(_GRACE_S)
        release_held()
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the end
    threading.Thread(target=end, daemon=True).start()
    Terminated.received = True


@contextmanager
def told_to_end(tell: Callable[[], None]) -> Iterator[None]:
    """SIGTERM calls `tell`, on a thread of its own, and the block then ends by itself; raises Terminated after it.

    Where it takes too long the process ends, as ever.
    """
    if not in_main_thread():
        yield
        return

    def told(*_: object) -> None:
        _end_soon()
        threading.Thread(target=tell, daemon=True).start()

    before = signal.signal(signal.SIGTERM, told)
    received = Terminated.received
    try:
        yield
    finally:
        if Terminated.received == received and before is not None:
            signal.signal(signal.SIGTERM, before)
    if Terminated.received and not received:
        raise Terminated


_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 client (gRPC, which Ray speaks) says first: the preface and empty settings."""
_SETTINGS_FRAME = 4
"""The kind of the frame that an HTTP/2 server answers with."""


@contextmanager
def _joining(address: str) -> Iterator[None]:
    """Around joining the cluster at `address`: what Ray refuses comes as UsageError with what to do."""
    _check_address(address)
    try:
        yield
    except AuthenticationError as error:
        raise UsageError(f"RAY_ADDRESS is {address}: {error}") from error
    except (ConnectionError, RuntimeError) as error:
        cause = str(error.__cause__ or error)
        if "Version mismatch" in cause:
            raise UsageError(
                f"RAY_ADDRESS is {address}, a cluster of other versions than this machine's; install the same "
                f"(constraints.txt names them), or submit the job (`ray job submit`). {cause}"
            ) from error
        if "ailed to connect" not in str(error):
            raise
        raise UsageError(
            f"RAY_ADDRESS is {address}, where a server answers that does not let this client in ({_authentication()}). "
            "Most likely the cluster has another token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with what "
            "`ray get-auth-token` prints on its head; or the port is not that of the head (6379 unless changed)"
        ) from error


def _authentication() -> str:
    """How this process shows who it is, without the token."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        return f"RAY_AUTH_MODE is {mode}: it came without a token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "it came with the token of RAY_AUTH_TOKEN"
    return f"it came with the token of {os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'}"


def _check_address(address: str) -> None:
    """Say at once that no cluster answers at RAY_ADDRESS; Ray would try for minutes."""
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"RAY_ADDRESS is {address}, a job server: hand the job to it with `ray job submit --runtime-env "
            "jobs/runtime_env.yaml --working-dir . -- python jobs/...`, or give the head's HOST:6379"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # auto, local: Ray finds it, or says so itself
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S) as server:
            answer = _greeted(server)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"RAY_ADDRESS is {address}, where no Ray cluster answers ({error}); correct it, or unset it to work on "
            "this machine alone"
        ) from error
    if answer is not None and answer[3:4] != bytes([_SETTINGS_FRAME]):
        kind = "an HTTP server, as the dashboard is" if answer.startswith(b"HTTP") else "no Ray head"
        raise UsageError(
            f"RAY_ADDRESS is {address}, where something else answers ({kind}); give the port of the head (6379 unless "
            "changed), or `ray job submit --address http://HOST:8265` for the job server"
        )


def _greeted(server: socket.socket) -> bytes | None:
    """The first bytes of the answer to a gRPC client; None where they would be encrypted."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None
    server.settimeout(_ANSWER_S)
    server.sendall(_HELLO)
    return server.recv(9)


def resources() -> tuple[float, float]:
    """(CPUs, GPUs) of the whole cluster, as Ray counts them: the driver's own devices say nothing.

    Of an autoscaled cluster what it can grow to, where its autoscaler tells.
    """
    total, most = ray.cluster_resources(), _can_become()
    return max(total.get("CPU", 0.0), most.get("CPU", 0.0)), max(total.get("GPU", 0.0), most.get("GPU", 0.0))


def grows() -> bool:
    """Whether an autoscaler adds nodes to the cluster."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    if _can_become():
        return True
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    kinds = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    # Without an autoscaler Ray reports each node as a kind of its own, named after its id.
    return any(not re.fullmatch(r"node_[0-9a-f]{56}", kind) for kind in kinds)


def _can_become() -> dict[str, float]:
    """The largest resources by the autoscaler's configuration; empty where there is none. Ray Data and Ray Train read
    the same."""
    return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})


def output_location(uri: str) -> Location:
    """Where a job may write `uri`.

    Raises UsageError for a relative path in a submitted job, whose working directory is Ray's package cache, and for a
    place on S3 whose bucket is missing or cannot be reached.
    """
    if in_submitted_job() and "://" not in uri and not os.path.isabs(os.path.expanduser(uri)):
        raise UsageError(
            f"{uri} is a relative path; a submitted job runs in Ray's package cache, where outputs are lost. "
            "Give an absolute path or s3://bucket/prefix."
        )
    place = locate(uri)
    if place.is_local and os.path.isfile(place.path):
        raise UsageError(f"{uri} is a file; give a folder to write to")
    if not place.is_local:
        s3.check_reachable()
        place.exists()
    return place


def check_shared(place: Location) -> None:
    """Refuse a local output path that other nodes of the cluster do not see. Needs a Ray session."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not place.is_local or len({node["NodeManagerAddress"] for node in nodes}) < 2:
        return
    marker = place.child(f".shared-{uuid.uuid4().hex}")
    marker.write_bytes(b"")
    try:
        blind = [node["NodeManagerAddress"] for node in nodes if not _sees(node["NodeID"], marker.path)]
    finally:
        marker.delete()
    if blind:
        raise UsageError(
            f"{place.uri} is a local path that node(s) {', '.join(blind)} do not see; "
            "on a cluster of several nodes give a shared mount or s3://bucket/prefix"
        )


def _sees(node_id: str, path: str) -> bool:
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.get(ray.remote(os.path.exists).options(num_cpus=0, scheduling_strategy=on_node).remote(path))


def quiet_ray_data() -> None:
    """Leave Ray Data's warnings on the console, drop its notices: jobs print their own progress and results."""
    import ray.data  # noqa: F401  (its import sets its own log handlers)

    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if not hasattr(handler, "baseFilename"):  # Ray's own log files keep everything
            handler.setLevel(logging.WARNING)
            handler.addFilter(_untold)


def _untold(record: logging.LogRecord) -> bool:
    """False for what Ray Data says of an error that it raises as well: jobs tell it themselves."""
    return record.name not in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")


def _schemas_root() -> Path:
    import schemas

    return Path(schemas.__file__).resolve().parents[1]


def _put_on_python_path(*roots: Path) -> None:
    """Make workers of a private session import the same code as this process."""
    for root in roots:
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    old = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    new = [str(root) for root in dict.fromkeys(roots) if str(root) not in old]
    os.environ["PYTHONPATH"] = os.pathsep.join([*new, *old])
