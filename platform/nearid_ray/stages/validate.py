"""The validate job: whether datasets are whole, right, and fit each other. Nothing is written.

What is checked is in `data/check.py` (shards), `data/check_files.py` and `data/check_between.py`; here the shards are
spread over Ray's workers, and token files are looked into as well.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.compute as pc
import ray
import tyro
from tqdm import tqdm

from nearid_ray import cluster
from nearid_ray.data.check import ShardChecker, ShardJob, ViewPlace, view_places
from nearid_ray.data.check_between import check_between, readable
from nearid_ray.data.check_files import check_files, check_schema
from nearid_ray.data.findings import NOTES, Findings
from nearid_ray.data.light import read_columns
from nearid_ray.data.show import find_datasets
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError

_SMALL_BYTES = 64 << 20
"""Less than this is checked in this process: Ray would take longer to start."""


@dataclass(frozen=True, kw_only=True)
class Validate:
    """Check datasets: files, contract, pictures, checksums, references, split leaks. Nothing is written to them."""

    datasets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATASET...")]
    """Folders or s3://bucket/prefix of datasets, or of folders that hold some. What they say of each other is compared:
    give distractors, tokens, embeddings together with their tuples."""
    hash_distance: int = 6
    """Views of two splits whose perceptual hashes differ in this many of 64 bits, or fewer, look the same; 0 to 16."""
    near_duplicates: Literal["note", "problem"] = "note"
    """Whether such views make the exit code 1. Small pictures on plain backgrounds look the same without being it."""
    workers: int | None = None
    """Ray workers, one CPU each; by default one a CPU where there is much to read, else none. 0 uses no Ray."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("no dataset is given; expected at least one folder or s3://bucket/prefix")
        if not 0 <= self.hash_distance <= 16:
            raise ValueError(f"hash_distance is {self.hash_distance}; expected 0 to 16 bits")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")


class Checker:
    """Checks any shard; a plain object, which Ray makes copies of."""

    def __init__(self, views: Mapping[str, ViewPlace]) -> None:
        self._rows = ShardChecker(views)

    def check(self, one: ShardJob) -> Findings:
        """The shard's rows, and its tokens where it has any."""
        found = self._rows.check(one)
        if one.table == "tokens_index" and not found.counts["unreadable"]:
            _check_tokens(Dataset(one.uri), one.shard, found)
        return found


def run_validate(settings: Validate) -> int:
    """Check, print a table, and give the number of problems."""
    entries = check_datasets(_datasets(settings.datasets), settings.hash_distance, settings.workers)
    also = ("near-duplicate",) if settings.near_duplicates == "problem" else ()
    for dataset, table, found in entries:
        print(text_table(dataset.location.uri, table, found, also), flush=True)
    problems = sum(found.problems(also) for _, _, found in entries)
    bad = sum(found.problems(also) > 0 for _, _, found in entries)
    print(f"\n{problems} problem(s) in {bad} of {len(entries)} dataset(s)" if problems else "\nno problem was found")
    return problems


def check_datasets(
    datasets: Sequence[Dataset], hash_distance: int, workers: int | None
) -> list[tuple[Dataset, str, Findings]]:
    """(dataset, its table, what was found) of each; with 0 workers without Ray."""
    entries: list[tuple[Dataset, str, Findings]] = []
    jobs: list[ShardJob] = []
    for dataset in datasets:
        found, mine = check_files(dataset)
        table = mine[0].table if mine else ""
        if table:
            found.merge(check_schema(dataset, table))
        entries.append((dataset, table, found))
        jobs += mine
    places = view_places([dataset for dataset, table, found in entries if table == "tuples" and readable(found)])
    by_uri = {dataset.location.uri: found for dataset, _, found in entries}
    for one, shard_found in _checked(jobs, places, workers):
        by_uri[one.uri].merge(shard_found)
    for _, table, found in entries:
        if table and not readable(found):
            found.add("not-compared", "it cannot be read whole, so other datasets are not compared with it")
    check_between([entry for entry in entries if entry[1] and readable(entry[2])], hash_distance)
    return entries


def text_table(uri: str, table: str, found: Findings, also: tuple[str, ...] = ()) -> str:
    """What was looked at, and each kind of finding with its number and examples."""
    looked = ", ".join(f"{count:,} {name}" for name, count in found.checked.items())
    lines = [f"\n{uri} ({table or 'unreadable'}): {looked}"]
    if not found.counts:
        lines.append("  ok")
    width = max((len(kind) for kind in found.counts), default=0)
    for kind, count in sorted(found.counts.items(), key=lambda entry: (entry[0] in NOTES, entry[0])):
        word = "note" if kind in NOTES and kind not in also else "PROBLEM"
        examples = found.examples.get(kind, [])
        lines.append(f"  {word:<7}  {kind:<{width}}  {count:>5}  {examples[0] if examples else ''}")
        lines += [f"  {'':<7}  {'':<{width}}  {'':>5}  {said}" for said in examples[1:]]
    return "\n".join(lines)


def _datasets(uris: Sequence[str]) -> list[Dataset]:
    found = [dataset for uri in uris for dataset in find_datasets(uri)]
    places = [dataset.location.uri for dataset in found]
    doubled = sorted({uri for uri in places if places.count(uri) > 1})
    if doubled:
        raise UsageError(f"{', '.join(doubled)} is given more than once")
    return found


def _checked(
    jobs: Sequence[ShardJob], views: Mapping[str, ViewPlace], workers: int | None
) -> Iterator[tuple[ShardJob, Findings]]:
    """(shard, findings) of all shards, in no fixed order, on Ray where that is worth it."""
    with _progress(len(jobs)) as advance:
        if workers == 0 or (workers is None and _bytes(jobs) < _SMALL_BYTES):
            checker = Checker(views)
            for one in jobs:
                yield one, checker.check(one)
                advance()
            return
        with cluster.ray_session():
            count = workers or max(1, int(cluster.resources()[0]))
            shared = ray.put(views)
            remote = ray.remote(num_cpus=1)(Checker)
            idle: list[Any] = [remote.remote(shared) for _ in range(min(count, len(jobs)))]
            waiting = list(reversed(jobs))
            running: dict[Any, tuple[Any, ShardJob]] = {}
            while waiting or running:
                while waiting and idle:
                    actor, one = idle.pop(), waiting.pop()
                    running[actor.check.remote(one)] = (actor, one)
                done = ray.wait(list(running), num_returns=1)[0][0]
                actor, one = running.pop(done)
                yield one, ray.get(done)
                idle.append(actor)
                advance()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    with tqdm(total=total, desc="validate", unit="shard", mininterval=1.0, disable=total < 10) as bar:
        yield bar.update


def _bytes(jobs: Sequence[ShardJob]) -> int:
    total = 0
    for uri in {one.uri for one in jobs}:
        place = Dataset(uri).location
        paths = [Dataset(uri).shard(one.shard).path for one in jobs if one.uri == uri]
        total += sum(info.size or 0 for info in place.filesystem.get_file_info(paths))
    return total


def _check_tokens(dataset: Dataset, shard: str, found: Findings) -> None:
    """Whether the shard's token file has the index's items, undamaged, and finite numbers where there is no error."""
    from nearid_ray.embedding.cache import BACKBONE_FILE, TOKENS_FOLDER
    from nearid_ray.embedding.shards import MappedShard

    name = f"{TOKENS_FOLDER}/{shard}.arrow"
    backbone = dataset.read_json(BACKBONE_FILE)
    place = dataset.location.child(TOKENS_FOLDER, f"{shard}.arrow")
    if backbone is None:
        found.add("missing-file", BACKBONE_FILE)
        return
    if not place.exists():
        return  # said with the files
    index = read_columns(dataset.shard(shard), ["shard", "row", "error"])
    if index["row"].to_pylist() != list(range(index.num_rows)) or set(index["shard"].to_pylist()) != {shard}:
        found.add("row", f"data/{shard}.parquet does not index the rows of {name} in their order")
        return
    with _on_disk(place) as path:
        try:
            tokens = MappedShard(path, index.num_rows, backbone["tokens"], backbone["width"])
            damaged = set(tokens.damaged())
        except UsageError as error:
            found.add("tokens", str(error).replace(str(path), name))
            return
        out_TD = np.empty((backbone["tokens"], backbone["width"]), np.float16)
        usable = pc.equal(index["error"], "").to_pylist()
        for row in range(index.num_rows):
            found.checked["tokens"] += 1
            if row in damaged:
                found.add("tokens", f"{name} row {row} is not what was written, by its checksum")
                continue
            tokens.copy(row, out_TD)
            if usable[row] and not np.isfinite(out_TD).all():
                found.add("tokens", f"{name} row {row} holds numbers that are not finite")


@contextmanager
def _on_disk(place: Location) -> Iterator[Path]:
    """The file, or a copy of it for the time of the block."""
    if place.is_local:
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokens.arrow")
        path.write_bytes(place.read_bytes())
        yield path
