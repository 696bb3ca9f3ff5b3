"""An S3 server that fails: for a while, for good, in the middle; and who may write there."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.lock import LOCK, owned
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.s3 import FAILING
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError
from tests.data.test_lock import holding, start
from tests.e2e.test_disturbed_jobs import SHARDS, ingest_photos, killed_thrice, photos_without_masks
from tests.s3.conftest import Runner
from tests.s3.faulty_proxy import Answer, faulty_proxy
from tests.s3.swift_server import SECRET
from tests.s3.test_s3 import contents

IDENTITIES = 12
INGEST = ("ingest", "toybox", "--train-identities", 0, "--val-identities", 0, "--test-identities", IDENTITIES)
OFF = ("--tracking-uri", "off")
BUSY, BROKEN = Answer(503, "SlowDown"), Answer(500, "InternalError")
EXPIRED, DENIED = Answer(400, "ExpiredToken"), Answer(403, "AccessDenied")
Plant = Callable[[str, str], Answer | None]


def NOTHING(method: str, path: str) -> Answer | None:
    return None


@dataclass
class Faults:
    """What goes wrong from now on, and what was asked."""

    plant: Plant = NOTHING
    asked: list[str] = field(default_factory=list)

    def __call__(self, method: str, path: str) -> Answer | None:
        self.asked.append(f"{method} {path}")
        return self.plant(method, path)


@pytest.fixture(scope="module")
def faults(bucket, server) -> Iterator[Faults]:
    """All requests of this module's processes pass here."""
    planted = Faults()
    with faulty_proxy(server.port, planted) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_MAX_ATTEMPTS", "4")
        yield planted


@pytest.fixture
def through(faults) -> Iterator[Faults]:
    faults.asked.clear()
    yield faults
    faults.plant = NOTHING


@pytest.fixture(scope="module")
def runner(faults, tmp_path_factory) -> Iterator[Runner]:
    """Jobs whose workers' requests pass the proxy too."""
    runner = Runner(tmp_path_factory.mktemp("jobs") / "log.txt")
    try:
        yield runner
    finally:
        runner.close()


def lasting(files: dict[str, bytes]) -> dict[str, bytes]:
    """What follows from the plan alone: not the times of a run."""
    return {name: data for name, data in files.items() if not name.startswith("log/") and name != "summary.json"}


def for_a_while(part: str, *answers: Answer) -> Plant:
    """Every request whose path holds `part` gets these answers one after the other before it is done."""
    seen: Counter[str] = Counter()

    def plant(method: str, path: str) -> Answer | None:
        if part not in path:
            return None
        seen[method + path] += 1
        return answers[seen[method + path] - 1] if seen[method + path] <= len(answers) else None

    return plant


def test_a_server_that_fails_for_a_while_costs_no_row_and_no_byte(bucket, through, runner, tmp_path):
    through.plant = for_a_while("/data/", BUSY, BROKEN)
    runner(*INGEST, "--output", f"{bucket}/mended", *OFF)
    assert sum("/data/" in path for path in through.asked) >= 3
    runner(*INGEST, "--output", tmp_path / "disk", *OFF)
    here, there = contents(str(tmp_path / "disk")), contents(f"{bucket}/mended")
    assert lasting(here) == lasting(there)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (BUSY, 1, f"{FAILING} at http://127.0.0.1"),
        (BROKEN, 1, "run the same command again when it is well, what is finished stays"),
        (EXPIRED, 2, "denies access; the credentials have expired; check the usual AWS variables"),
        (DENIED, 2, "denies access; check the usual AWS variables"),
    ],
)
def test_what_does_not_end_in_the_middle_of_a_job_is_one_clear_message(bucket, through, runner, answer, code, said):
    output = f"{bucket}/ended-{answer.code}"
    through.plant = lambda method, path: answer if method in ("PUT", "POST") and "/data/" in path else None
    ended, told = runner.run(*INGEST, "--output", output, *OFF)
    assert ended == code, told
    assert told.rstrip().splitlines()[-1].startswith("error: s3://" if code == 2 else f"error: {FAILING}"), told
    assert said in told
    assert "Traceback" not in told
    assert "user code" not in told, "Ray's own words"
    assert SECRET not in told
    assert not locate(output).child(LOCK).exists()
    through.plant = NOTHING
    if answer is BUSY:
        runner(*INGEST, "--output", output, *OFF)
        assert Dataset(output).read(["identity_id"]).num_rows == IDENTITIES


def test_a_server_that_does_not_answer_is_said_at_once(bucket, run_job, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for argv in (
        (*INGEST, "--output", f"{bucket}/x"),
        ("ingest", "photos", "--root", f"{bucket}/x", "--output", "x"),
        ("embed", "--tuples", f"{bucket}/x", "--output", "x"),
    ):
        ended = run_job(*argv, *OFF)
        assert ended.code == 2
        assert "S3 at http://127.0.0.1:1 cannot be reached" in ended.err
        assert "Traceback" not in ended.err


def test_on_s3_too_one_writes_and_the_others_are_told_who(bucket, through):
    place = f"{bucket}/one writer"
    racing = [start(place, "time.sleep(2)") for _ in range(3)]
    codes = [process.wait(60) for process in racing]
    said = [process.communicate()[1] for process in racing]
    assert sorted(codes) == [0, 2, 2], said
    assert all("is being written by ingest of" in text for code, text in zip(codes, said, strict=True) if code)
    assert contents(place) == {}
    killed = holding(place)
    with pytest.raises(UsageError, match=rf"\(process {killed.pid}\), started .*last sign of life"), owned_by_me(place):
        pass
    killed.kill()
    killed.wait()
    assert LOCK in contents(place)
    with owned_by_me(place):
        pass
    assert contents(place) == {}


def test_a_store_without_conditional_writes_is_told_and_works(bucket, through, capsys):
    place, puts = f"{bucket}/old store", []

    def not_known(method: str, path: str) -> Answer | None:
        return Answer(501, "NotImplemented") if (method, path) == ("PUT", f"/nearid/old%20store/{LOCK}") else None

    def not_heeded(method: str, path: str) -> Answer | None:
        puts.extend([path] if (method, path) == ("PUT", f"/nearid/old%20store/{LOCK}") else [])
        return Answer(200) if len(puts) == 2 else None

    def as_create_only(plant: Plant) -> Plant:
        asked: list[str] = []

        def once(method: str, path: str) -> Answer | None:
            answer = plant(method, path) if not asked else None
            asked.extend([path] if answer else [])
            return answer

        return once

    for plant in (not_known, not_heeded):
        through.plant = as_create_only(plant)
        with owned_by_me(place):
            assert LOCK in contents(place)
            with pytest.raises(UsageError, match="is being written by"), owned_by_me(place):
                pass
        assert "does not know conditional writes (If-None-Match)" in capsys.readouterr().err
        assert contents(place) == {}


def owned_by_me(place: str):
    return owned(locate(place), "embed")


@pytest.mark.faults
def test_a_job_on_s3_killed_at_three_random_points_ends_with_the_same_bytes(bucket, through, runner, tmp_path):
    root, source = photos_without_masks(tmp_path / "my photos"), f"{bucket}/photos of mine"
    for path in root.rglob("*.png"):
        locate(source).child(*path.relative_to(root).parts).write_bytes(path.read_bytes())
    kinds = tmp_path / "kinds.csv"
    kinds.write_text("".join(f"{folder.name},thing\n" for folder in root.iterdir()))
    locate(f"{bucket}/kinds.csv").write_bytes(kinds.read_bytes())
    photos = (source, "--categories", f"{bucket}/kinds.csv")
    command = (*ingest_photos(*photos, "--output", f"{bucket}/killed"), "--workers", 1)
    counts = killed_thrice(command, Dataset(f"{bucket}/killed"), seed=21)
    assert counts[2] < SHARDS
    assert "this run goes on with its work" in runner(*command)
    runner(*ingest_photos(*photos, "--output", tmp_path / "undisturbed"))
    assert len(Dataset(f"{bucket}/killed").shards()) == SHARDS
    assert lasting(contents(f"{bucket}/killed")) == lasting(contents(str(tmp_path / "undisturbed")))
    on_disk = PhotosImporter(PhotosSettings(root=str(root), categories=str(kinds), size_px=64))
    plan = plan_ingest(on_disk, Dataset(tmp_path / "from disk"))
    first = plan.shard_names[0]
    run_shard(ingest_task(on_disk), Dataset(tmp_path / "from disk"), first, plan.members(first))
    files = [locate(place).child("data", f"{first}.parquet") for place in (f"{bucket}/killed", tmp_path / "from disk")]
    assert files[0].read_bytes() == files[1].read_bytes()
