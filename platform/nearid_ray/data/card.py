"""The dataset card: a README.md with the header that dataset hubs and `datasets.load_dataset` read."""

from typing import Any

import pyarrow.fs as pafs
import yaml

from nearid_ray.data.store import Dataset
from nearid_ray.identifiers import stable_hash
from schemas import TABLES


def write_card(dataset: Dataset, *, title: str, about: str, licence: str, facts: dict[str, Any]) -> None:
    """Write the dataset's README.md from what is in it now.

    `about` is a paragraph on what the data is; `facts` become a table (counts, settings).
    """
    stored = dataset.settings() or {}
    table = TABLES[stored["table"]]
    header = {
        "pretty_name": title,
        "license": licence,
        "configs": [{"config_name": _config_name(dataset, table.name), "data_files": "data/*.parquet"}],
        "tags": ["nearid", stored["table"]],
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {title}", "", about, ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in facts.items()), ""]
    lines += [f"## Columns\n\n{table.purpose} Schema version {stored['schema_version']}.\n"]
    lines += ["| column | meaning |", "| --- | --- |"]
    lines += [f"| {f.name} | {_cell(f.metadata[b'description'].decode())} |" for f in table.fields]
    lines += ["", "## Settings that decide the content", "", "```yaml", _settings_yaml(stored), "```", ""]
    lines += ["Read it with `datasets.load_dataset(FOLDER)`; `plan/` holds the work lists, `log/` the times.", ""]
    dataset.location.child("README.md").write_bytes("\n".join(lines).encode())


def _config_name(dataset: Dataset, table: str) -> str:
    """A name that changes with the data: `datasets` caches what it read under the folder's name and this one."""
    selector = pafs.FileSelector(dataset.location.child("data").path, allow_not_found=True)
    files = dataset.location.filesystem.get_file_info(selector)
    return f"{table}-{stable_hash(dataset.digest(), *sorted(f'{f.base_name}:{f.size}' for f in files))}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _settings_yaml(stored: dict[str, Any]) -> str:
    return yaml.safe_dump(stored.get("content", {}), sort_keys=True, allow_unicode=True).strip()
