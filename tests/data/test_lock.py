"""One writer a dataset: who is refused, who takes over, and that no lock stays behind. With real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nearid_ray.data import lock
from nearid_ray.data.lock import LOCK, Owner, machine_lock, owned
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
from nearid_ray import job
from nearid_ray.cluster import ending_in_order
from nearid_ray.data.lock import owned
from nearid_ray.data.store import locate
def hold(argv):
    with ending_in_order(), owned(locate(argv[0]), "ingest", heartbeat_s=0.1):
        print("holding", flush=True)
        {then}
    return 0
job.main(hold)
"""


def start(place: object, then: str = "time.sleep(60)") -> subprocess.Popen:
    """A process that owns `place` as a job does, and then does something."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    command = [sys.executable, "-c", HOLD.format(then=then), str(place)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def holding(place: object, then: str = "time.sleep(60)") -> subprocess.Popen:
    process = start(place, then)
    assert process.stdout is not None
    said = process.stdout.readline()
    while said and said != "holding\n":
        said = process.stdout.readline()
    assert said == "holding\n", process.communicate()
    return process


def refusal(place: Path, **options) -> str:
    with pytest.raises(UsageError) as refused, owned(locate(place), "synthesize", **options):
        pass
    return str(refused.value)


def write_lock(place: Path, **changed: object) -> None:
    place.mkdir(exist_ok=True)
    (place / LOCK).write_text(json.dumps(vars(Owner.here("embed")) | changed))


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*"))


def test_a_second_writer_is_refused_with_the_firsts_owner_start_and_last_sign_of_life(tmp_path):
    first = holding(tmp_path / "tuples")
    try:
        said = refusal(tmp_path / "tuples")
        there = json.loads((tmp_path / "tuples" / LOCK).read_text())
        assert f"is being written by ingest of {there['user']}@{there['host']} (process {first.pid})" in said
        assert re.search(r"started 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC, last sign of life 20.* UTC \(\d+ s ago\)", said)
        assert f"Wait for it, end process {first.pid}, or give another output" in said
        assert f"end process {first.pid}" in refusal(tmp_path / "tuples", break_lock=True), "one that lives is kept"
        assert json.loads((tmp_path / "tuples" / LOCK).read_text()) == there
    finally:
        first.kill()
        first.wait()


def test_the_sign_of_life_is_renewed(tmp_path):
    with owned(locate(tmp_path), "train", heartbeat_s=0.05):
        token = json.loads((tmp_path / LOCK).read_text())["token"]
        sign, seen = tmp_path / f"{LOCK}.{token}", set()
        deadline = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < deadline:
            seen |= {sign.stat().st_mtime_ns} if sign.exists() else set()
            time.sleep(0.02)
        assert len(seen) == 3
    assert files(tmp_path) == []


def test_a_killed_jobs_lock_is_taken_over_and_its_half_written_files_go(tmp_path, capsys):
    first = holding(tmp_path / "tuples")
    (tmp_path / "tuples" / "data").mkdir()
    (tmp_path / "tuples" / "data" / ".000-000000.parquet.7-ab.tmp").write_bytes(b"half")
    first.kill()
    first.wait()
    assert (tmp_path / "tuples" / LOCK).exists()
    with owned(locate(tmp_path / "tuples"), "ingest"):
        assert json.loads((tmp_path / "tuples" / LOCK).read_text())["pid"] == os.getpid()
    assert f"(process {first.pid})" in (said := capsys.readouterr().out)
    assert "this run goes on with its work" in said
    assert files(tmp_path / "tuples") == ["data"]


def test_a_process_number_that_is_used_again_is_not_taken_for_the_owner(tmp_path):
    write_lock(tmp_path, pid=os.getppid(), process="1")
    with owned(locate(tmp_path), "embed"):
        pass
    assert files(tmp_path) == []


def test_an_owner_elsewhere_is_believed_until_a_person_breaks_its_lock(tmp_path, capsys):
    write_lock(tmp_path, host="node-7", machine="node-7 1 2", pid=1, began="2026-01-02 03:04:05 UTC")
    said = refusal(tmp_path)
    assert "@node-7 (process 1), started 2026-01-02 03:04:05 UTC" in said
    assert "If it has certainly ended, give --break-lock as well" in said
    with owned(locate(tmp_path), "embed", break_lock=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert "is broken as asked" in capsys.readouterr().out
    assert files(tmp_path) == []


def test_a_lock_that_says_nothing_of_its_owner_is_refused_in_words(tmp_path):
    (tmp_path / LOCK).write_bytes(b"")
    assert "a job that its lock does not name" in refusal(tmp_path)
    with owned(locate(tmp_path), "embed", break_lock=True):
        pass
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("then", "sent", "code"),
    [
        ("pass", None, 0),
        ("raise RuntimeError('planted')", None, 1),
        ("time.sleep(60)", signal.SIGINT, 130),
        ("time.sleep(60)", signal.SIGTERM, 143),
    ],
)
def test_no_lock_stays_behind_however_a_job_ends(tmp_path, then, sent, code):
    process = holding(tmp_path / "new" / "tuples", then)
    if sent is not None:
        process.send_signal(sent)
    assert process.wait(60) == code, process.communicate()
    assert files(tmp_path) == []


def test_a_job_that_does_not_end_on_sigterm_is_ended_and_its_lock_with_it(tmp_path):
    stubborn = """import nearid_ray.cluster as c; c._GRACE_S = 0.2
        while True:
            try: time.sleep(60)
            except BaseException: pass"""
    process = holding(tmp_path, stubborn)
    process.terminate()
    assert process.wait(60) == 143
    assert files(tmp_path) == []


def test_folders_that_were_there_stay(tmp_path):
    (tmp_path / "empty").mkdir()
    with owned(locate(tmp_path / "empty" / "deeper"), "ingest"):
        pass
    assert files(tmp_path) == ["empty"]


def test_a_job_whose_lock_was_broken_ends_and_leaves_the_others_lock_alone(tmp_path):
    first = holding(tmp_path)
    write_lock(tmp_path, token="another")
    out, err = first.communicate(timeout=60)
    assert first.returncode == 2, out + err
    assert "this job's lock was broken" in err
    assert "Traceback" not in err
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "another"


def test_of_many_that_start_at_once_one_writes_at_a_time(tmp_path):
    write_lock(tmp_path / "tuples", pid=2**22 + 1)  # all of them find a lock whose owner is gone
    then = f"f = open({str(tmp_path / 'told')!r}, 'a', 1); f.write('in\\n'); time.sleep(0.3); f.write('out\\n')"
    racing = [start(tmp_path / "tuples", then) for _ in range(6)]
    codes = [process.wait(60) for process in racing]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    assert (tmp_path / "told").read_text() == "in\nout\n" * codes.count(0)
    for process, code in zip(racing, codes, strict=True):
        said = process.communicate()[1]
        assert code == 0 or "is being written by ingest" in said
    assert files(tmp_path) == ["told", "tuples"]


def test_the_lock_is_no_part_of_the_dataset(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with owned(locate(tmp_path), "embed"):
        assert Dataset(tmp_path).location.names() == ["settings.json"]


def test_a_place_that_cannot_be_written_is_told(tmp_path, small_disk):
    (small_disk.path / "tuples").mkdir()
    small_disk.remount("ro")
    assert f"{small_disk.path}/tuples/{LOCK} cannot be written (Read-only file system)" in refusal(
        small_disk.path / "tuples"
    )
    assert "this folder cannot be made" in refusal(small_disk.path / "new")


def test_processes_of_one_machine_pass_one_at_a_time_and_leave_no_file(tmp_path):
    before = set(Path(lock.tempfile.gettempdir()).glob("nearid-*.lock"))
    code = f"""
from nearid_ray.data.lock import machine_lock
import time
for _ in range(20):
    with machine_lock({str(tmp_path)!r}), open({str(tmp_path / "told")!r}, "a", 1) as f:
        f.write("in\\n"); time.sleep(0.002); f.write("out\\n")
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    racing = [subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}) for _ in range(3)]
    assert [process.wait(60) for process in racing] == [0, 0, 0]
    assert (tmp_path / "told").read_text() == "in\nout\n" * 60
    with machine_lock(str(tmp_path)):
        pass
    assert set(Path(lock.tempfile.gettempdir()).glob("nearid-*.lock")) <= before
