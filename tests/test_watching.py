"""Seeing a run: lines of progress, what is waited for, metrics and traces."""

import gzip
import io
import json
import time
import urllib.request

import pytest
import ray

from nearid_ray import cluster
from nearid_ray.data.store import locate
from nearid_ray.watching import Watchdog, count_rows, progress, traced


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines_and_a_terminal_a_bar():
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        with progress(10, "embed", stream=stream) as bar:
            bar.update(10)
    assert "\r" not in log.getvalue()
    assert log.getvalue().splitlines()[-1].startswith("embed: 10/10 rows (100 %)")
    assert "\r" in terminal.getvalue()


def test_silence_is_told_with_what_is_asked_for_and_what_is_free(ray_session):
    told: list[str] = []
    with Watchdog("embed", wanted="2 worker(s) of 1 CPU and 1 GPU", silence_s=0.2, say=told.append) as watchdog:
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
        watchdog.alive()
    assert told[0].startswith("embed: no shard finished for 0 s; free in the cluster: ")
    assert "asked for: 2 worker(s) of 1 CPU and 1 GPU" in told[0] and "1 node(s) alive" in told[0]
    assert "Nothing has come yet" in told[0]


def test_progress_keeps_the_watchdog_quiet(ray_session):
    told: list[str] = []
    with Watchdog("embed", silence_s=0.4, say=told.append) as watchdog:
        for _ in range(12):
            watchdog.alive()
            time.sleep(0.1)
    assert told == []


def test_rows_and_errors_are_counted_where_ray_exports_its_metrics(ray_session):
    ray.get(ray.remote(count_rows).options(num_cpus=0).remote("a stage", 7, 2))
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline, found = time.monotonic() + 60, ""
    while 'stage="a stage"' not in found and time.monotonic() < deadline:
        time.sleep(0.5)
        found = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in found.splitlines() if "a stage" in line}
    assert values["ray_nearid_rows_total"] == 7 and values["ray_nearid_errors_total"] == 2


def test_a_trace_holds_the_operations_of_the_block(tmp_path):
    import torch

    with traced(locate(tmp_path / "profile" / "a.json.gz")):
        torch.ones(3, 3) @ torch.ones(3, 3)
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress((tmp_path / "profile" / "a.json.gz").read_bytes()))["traceEvents"]
    }
    assert "aten::matmul" in names
    with traced(None):
        pass


@pytest.fixture
def autoscaled(ray_session):
    """The session says of itself what an autoscaler would: up to four nodes of 8 CPUs and a GPU."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    config = ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "gpu", 4
    group.resources["CPU"], group.resources["GPU"] = 8, 1
    client.report_cluster_config(config.SerializeToString())
    yield
    client.report_cluster_config(ClusterConfig().SerializeToString())


def test_a_cluster_counts_as_what_its_autoscaler_can_make_of_it(autoscaled):
    assert cluster.resources() == (32.0, 4.0) and cluster.grows()


def test_a_session_of_its_own_does_not_grow(ray_session):
    assert cluster.resources() == (4.0, 0.0) and not cluster.grows()


def test_the_wanted_items_are_traced_and_all_come_through(tmp_path):
    import torch

    from nearid_ray.watching import traced_items

    place, seen = locate(tmp_path / "a.json.gz"), []
    for item in traced_items(iter(range(9)), 2, place, after=3):
        seen.append(item)
        with torch.profiler.record_function(f"item {item}"):
            torch.ones(3, 3).sum()
    assert seen == list(range(9))
    events = json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes()))["traceEvents"]
    assert {event["name"] for event in events if str(event.get("name")).startswith("item ")} == {"item 3", "item 4"}
    assert list(traced_items(iter("abc"), 0, place)) == list("abc")
