"""The dataset card: a README.md with the header that dataset hubs and `datasets.load_dataset` read."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from nearid_ray.data.store import Dataset
from nearid_ray.identifiers import stable_hash
from schemas import IMAGE, TABLES, Table

CARD_FILE = "README.md"
UNKNOWN_LICENCE = "unknown"
"""How hubs call a licence that nobody stated."""

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_SIZE_NAMES = ("1K", "10K", "100K", "1M", "10M")
_ENGINE_COLUMNS = ["engine", "engine_family", "engine_revision", "engine_settings", "settings_hash"]
_AND = " and "


def write_card(dataset: Dataset, *, title: str, about: str, licence: str, facts: dict[str, Any]) -> None:
    """Write the dataset's README.md from what is in it now.

    `about` is a paragraph on what the data is; `facts` become a table (counts, settings), to which rows by split are
    added. `licence` is a hub's name of a licence, or several joined by " and ", as `licence_of` gives them.
    """
    stored = dataset.settings() or {}
    table = TABLES[stored["table"]]
    facts = facts | {"size on disk": f"{_file_bytes(dataset) / 1e6:,.1f} MB"} | _split_counts(dataset, table)
    lines = [
        "---",
        yaml.safe_dump(_header(dataset, table, title, licence), sort_keys=False, allow_unicode=True).strip(),
    ]
    lines += ["---", "", f"# {title}", "", about, ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in facts.items()), ""]
    lines += _engine_lines(dataset) if "engine_settings" in table.schema.names else []
    lines += [f"## Columns\n\n{table.purpose} Schema version {stored['schema_version']}.\n"]
    lines += ["| column | meaning |", "| --- | --- |"]
    lines += [f"| {f.name} | {_cell(f.metadata[b'description'].decode())} |" for f in table.fields]
    lines += ["", "## Settings that decide the content", "", "```yaml", _settings_yaml(stored), "```", ""]
    lines += [
        "Read it with `datasets.load_dataset(FOLDER)`. All rows are in the one split that hubs call train; what may be "
        "trained on is said by the column `split` where there is one. `plan/` holds the work lists, `log/` the times.",
        "",
    ]
    place, data = dataset.location.child(CARD_FILE), "\n".join(lines).encode()
    if not place.exists() or place.read_bytes() != data:
        place.write_bytes(data)


def licence_of(*datasets: Dataset) -> str:
    """The licence on the datasets' cards; " and " joins them where they differ, `unknown` stands for what is not said.

    What is made of a dataset carries its licence: give the result to `write_card`.
    """
    names: dict[str, None] = {}
    for dataset in datasets:
        said = read_header(dataset).get("license") or UNKNOWN_LICENCE
        names |= dict.fromkeys([said] if isinstance(said, str) else map(str, said))
    return _AND.join(names) or UNKNOWN_LICENCE


def read_header(dataset: Dataset) -> dict[str, Any]:
    """The YAML header of the dataset's card; empty where there is no card or no header."""
    place = dataset.location.child(CARD_FILE)
    if not place.exists():
        return {}
    parts = place.read_bytes().decode(errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}


def _header(dataset: Dataset, table: Table, title: str, licence: str) -> dict[str, Any]:
    names, config = licence.split(_AND), _config_name(dataset, table.name)
    rows, loaded_bytes = _rows_and_bytes(dataset)
    return {
        "pretty_name": title,
        "license": names[0] if len(names) == 1 else names,
        "tags": ["nearid", table.name, *(["image"] if any(f.type.equals(IMAGE) for f in table.fields) else [])],
        "size_categories": [_size_category(rows)],
        "configs": [{"config_name": config, "data_files": "data/*.parquet"}],
        "dataset_info": {
            "config_name": config,
            "features": [_feature(field.name, field.type) for field in table.schema],
            "splits": [{"name": "train", "num_bytes": loaded_bytes, "num_examples": rows}],
            "download_size": _file_bytes(dataset),
            "dataset_size": loaded_bytes,
        },
    }


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    """A column as `dataset_info` describes it: the short form of `datasets`' features."""
    if kind.equals(IMAGE):
        return {"name": name, "dtype": "image"}
    if pa.types.is_list(kind):
        inner = kind.value_type
        if pa.types.is_struct(inner) and not inner.equals(IMAGE):
            return {"name": name, "list": [_feature(f.name, f.type) for f in inner.fields]}
        return {"name": name, "list": _feature("", inner)["dtype"]}
    return {"name": name, "dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind))}


def _rows_and_bytes(dataset: Dataset) -> tuple[int, int]:
    """(rows, bytes when uncompressed) of all finished shards, from the files' ends alone."""

    def one(name: str) -> tuple[int, int]:
        place = dataset.shard(name)
        found = pq.read_metadata(place.path, filesystem=place.filesystem)
        return found.num_rows, sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))

    with ThreadPoolExecutor(16) as threads:
        pairs = list(threads.map(one, dataset.shards()))
    return sum(rows for rows, _ in pairs), sum(size for _, size in pairs)


def _data_files(dataset: Dataset) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(dataset.location.child("data").path, allow_not_found=True)
    files = dataset.location.filesystem.get_file_info(selector)
    return [f for f in files if f.base_name.endswith(".parquet") and not f.base_name.startswith(".")]


def _file_bytes(dataset: Dataset) -> int:
    return sum(file.size for file in _data_files(dataset))


def _config_name(dataset: Dataset, table: str) -> str:
    """A name that changes with the data: `datasets` caches what it read under the folder's name and this one."""
    files = sorted(f"{file.base_name}:{file.size}" for file in _data_files(dataset))
    return f"{table}-{stable_hash(dataset.digest(), *files)}"


def _split_counts(dataset: Dataset, table: Table) -> dict[str, int]:
    if "split" not in table.schema.names:
        return {}
    counts = dataset.read(columns=["split"])["split"].value_counts().to_pylist()
    return {f"rows of split {entry['values']}": entry["counts"] for entry in sorted(counts, key=lambda e: e["values"])}


def _engine_lines(dataset: Dataset) -> list[str]:
    """Every engine configuration with the settings that change its pixels."""
    found = dataset.read(columns=_ENGINE_COLUMNS).group_by(_ENGINE_COLUMNS, use_threads=False)
    rows = sorted(
        found.aggregate([([], "count_all")]).to_pylist(), key=lambda row: (row["engine"], row["settings_hash"])
    )
    lines = [
        "## Engines",
        "",
        "| engine | family | revision | settings hash | rows |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [row[name] for name in ("engine", "engine_family", "engine_revision", "settings_hash", "count_all")]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    settings = {f"{row['engine']} ({row['settings_hash']})": _parsed(row["engine_settings"]) for row in rows}
    return [*lines, "", "```yaml", yaml.safe_dump(settings, allow_unicode=True).strip(), "```", ""]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text


def _size_category(rows: int) -> str:
    """As hubs name it: n<1K, 1K<n<10K, ...

    >>> _size_category(999), _size_category(1000)
    ('n<1K', '1K<n<10K')
    """
    place = sum(rows >= size for size in _SIZES)
    low: Sequence[str] = ("", *_SIZE_NAMES)
    if place == 0:
        return "n<1K"
    return f"{low[place]}<n<{_SIZE_NAMES[place]}" if place < len(_SIZE_NAMES) else "n>10M"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _settings_yaml(stored: dict[str, Any]) -> str:
    return yaml.safe_dump(stored.get("content", {}), sort_keys=True, allow_unicode=True).strip()
