"""Check the files of a dataset against its settings and plans, without opening a picture. Nothing is written.

settings        settings.json is broken, names no table, or its digest is not that of its content
missing-shard   a planned shard is not there
missing-file    a file that belongs to a shard is not there (tokens)
stray-file      a file in data/, plan/ or tokens/ that belongs to no plan
temporary-file  a half-written file that a killed job left
lock            a job is writing, or was killed while it did
no-card         there is no README.md
columns         a shard has other columns or types than the contract
values          nulls, values or keys that the contract does not allow
"""

import json
import posixpath
import re
from collections import Counter

import pyarrow as pa
import pyarrow.fs as pafs

from nearid_ray.data import s3
from nearid_ray.data.card import CARD_FILE
from nearid_ray.data.check import ShardJob
from nearid_ray.data.findings import Findings
from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.identifiers import settings_digest
from schemas import SCHEMA_VERSION, TABLES, validate

ROW_IS_KEY = ("tuples", "distractors", "generated", "ratings", "tokens_index")
"""Tables whose plans name the rows by the table's key."""
UNPLANNED = {"similarities": "000-000000", "margins": "000-000000"}
"""Tables that are written in one piece, without a plan: the name of their shard."""

_ABOUT_COLUMNS = ("missing column", "unknown column", "the column stands", "type ", "schema version", "the metadata")
"""How the violations begin that are not about values."""
_TEMPORARY = re.compile(r"^\..*\.tmp$")
_PLAN = re.compile(r"^\d{3,}\.parquet$")


def check_files(dataset: Dataset) -> tuple[Findings, list[ShardJob]]:
    """(what is wrong with the files, the shards to look into)."""
    found = Findings()
    files = _files(dataset)
    found.checked["files"] = len(files)
    table = _check_settings(dataset, found)
    planned = _planned(dataset, found)
    if table is None:
        return found, []
    expected = set(planned) or ({UNPLANNED[table]} if table in UNPLANNED else set())
    _check_names(files, expected, table, found)
    if CARD_FILE not in files:
        found.add("no-card", f"there is no {CARD_FILE}")
    shards = dataset.shards()
    for name in sorted(expected - set(shards)):
        rows = f" ({len(planned[name])} rows)" if name in planned else ""
        found.add("missing-shard", f"data/{name}.parquet{rows}")
    if not expected and not shards:
        found.add("missing-shard", "there is neither a plan nor a shard")
    jobs = []
    for name in shards:
        ids = planned.get(name)
        keys = tuple(ids) if ids and table in ROW_IS_KEY else ()
        jobs.append(ShardJob(dataset.location.uri, table, name, None if ids is None else len(ids), keys))
    return found, jobs


def check_schema(dataset: Dataset, table: str) -> Findings:
    """Whether all shards together keep the contract: columns, types, nulls, keys, allowed values."""
    found = Findings()
    try:
        with s3.in_words(dataset.location.uri):
            violations = validate(dataset.arrow(), table)
    except (OSError, pa.ArrowException, KeyError) as error:
        found.add("unreadable", " ".join(str(error).split()))
        return found
    for violation in violations:
        found.add("columns" if violation.message.startswith(_ABOUT_COLUMNS) else "values", str(violation))
    return found


def _files(dataset: Dataset) -> list[str]:
    root = dataset.location
    with s3.in_words(root.uri):
        entries = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True))
    return sorted(e.path.removeprefix(root.path).lstrip("/") for e in entries if e.type == pafs.FileType.File)


def _check_settings(dataset: Dataset, found: Findings) -> str | None:
    """The table, where settings.json names one of the contract."""
    try:
        stored = dataset.settings() or {}
        table, content, digest = stored["table"], stored["content"], stored["content_digest"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        found.add("settings", f"settings.json is broken: {type(error).__name__} {error}")
        return None
    if table not in TABLES:
        found.add("settings", f"settings.json names {table!r}, which is no table of the contract")
        return None
    if stored.get("schema_version") != SCHEMA_VERSION:
        found.add("settings", f"schema version {stored.get('schema_version')!r}; this program knows {SCHEMA_VERSION!r}")
    if settings_digest(content) != digest:
        found.add("settings", f"content_digest is {digest}; the content has {settings_digest(content)}")
    return table


def _planned(dataset: Dataset, found: Findings) -> dict[str, list[str]]:
    """shard -> row ids, in the order of the plan."""
    planned: dict[str, list[str]] = {}
    seen: Counter[str] = Counter()
    folder = dataset.location.child("plan")
    for name in folder.names(".parquet"):
        try:
            rows = read_parquet(folder.child(name), ["row_id", "shard"])
        except (OSError, pa.ArrowException, KeyError) as error:
            found.add("unreadable", f"plan/{name}: {' '.join(str(error).split())}")
            continue
        for row_id, shard in zip(rows["row_id"].to_pylist(), rows["shard"].to_pylist(), strict=True):
            planned.setdefault(shard, []).append(row_id)
            seen[row_id] += 1
    doubled = [row_id for row_id, count in seen.items() if count > 1]
    if doubled:
        found.add("plan-rows", f"{len(doubled)} row(s) are planned more than once, e.g. {doubled[0]}", len(doubled))
    return planned


def _check_names(files: list[str], expected: set[str], table: str, found: Findings) -> None:
    folders = {"data": ".parquet", "tokens": ".arrow"} if table == "tokens_index" else {"data": ".parquet"}
    for path in files:
        folder, name = posixpath.split(path)
        if _TEMPORARY.match(name):
            found.add("temporary-file", path)
        elif name == ".lock":
            found.add("lock", f"{path}: a job is writing, or was killed while it did")
        elif name.startswith(".lock."):
            continue
        elif folder in folders:
            if not name.endswith(folders[folder]) or name.removesuffix(folders[folder]) not in expected:
                found.add("stray-file", path)
        elif folder == "plan":
            if not _PLAN.match(name):
                found.add("stray-file", path)
        elif folder == "tokens" or folder.startswith(("data/", "tokens/", "plan/")):
            found.add("stray-file", path)
    if table == "tokens_index":
        there = set(files)
        for path in files:
            shard = posixpath.basename(path).removesuffix(".parquet")
            if posixpath.dirname(path) == "data" and shard in expected and f"tokens/{shard}.arrow" not in there:
                found.add("missing-file", f"tokens/{shard}.arrow")
