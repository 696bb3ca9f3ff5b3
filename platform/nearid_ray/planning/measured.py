"""What earlier jobs measured: time of a row and bytes of a row, read from the outputs they left."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from nearid_ray.data.store import Dataset, Location, locate, read_parquet
from nearid_ray.embedding.cache import BACKBONE_FILE
from nearid_ray.errors import UsageError
from nearid_ray.models.checkpoint import load_head

STAGES = ("ingest", "synthesize", "embed", "train")
_TABLES = {"ingest": "tuples", "synthesize": "distractors", "embed": "tokens_index"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an output says of its stage."""

    uri: str
    row_s: float
    """Seconds of one worker a row; of training, seconds a sample of all its workers together, for one head."""
    bytes_a_row: float = 0.0
    engine_row_s: dict[str, float] = field(default_factory=dict)
    """The same by engine; synthesis alone."""
    backbone: str = ""
    """The backbone whose tokens were made or read; embed and train alone."""
    width: int = 0
    """Width of its tokens."""


def read_measured(entries: Sequence[str]) -> dict[str, Measured]:
    """{stage: what was measured} from STAGE=FOLDER entries.

    Raises:
        UsageError: an entry is not of that form, or its folder holds nothing measured of the stage.
    """
    found: dict[str, Measured] = {}
    for entry in entries:
        stage, equals, uri = entry.partition("=")
        if not (equals and uri) or stage not in STAGES:
            raise UsageError(
                f"measured has the entry {entry!r}; expected STAGE=FOLDER with a stage of {', '.join(STAGES)}, e.g. "
                "synthesize=runs/toy/distractors"
            )
        if stage in found:
            raise UsageError(f"measured names {stage} twice; give one folder for each stage")
        found[stage] = _of_training(uri) if stage == "train" else _of_rows(stage, uri)
    return found


def _of_rows(stage: str, uri: str) -> Measured:
    """From the log that every run of a plan leaves: `paint_s` where the stage tells it, else the time of its shards."""
    dataset = Dataset(uri)
    table = (dataset.settings() or {}).get("table")
    if table != _TABLES[stage]:
        raise UsageError(f"measured: {uri} holds {table or 'no dataset'!r}; expected the {_TABLES[stage]} of {stage}")
    rows: dict[str, float] = {}
    seconds: dict[str, float] = {}
    log = dataset.location.child("log")
    for name in log.names(".parquet"):
        for entry in read_parquet(log.child(name)).to_pylist():
            engine = entry.get("engine") or ""
            rows[engine] = rows.get(engine, 0.0) + entry["rows"]
            seconds[engine] = seconds.get(engine, 0.0) + entry.get("paint_s", entry["ended"] - entry["began"])
    if not sum(rows.values()):
        raise UsageError(f"measured: {uri} has no log of a run; give the output of a {stage} job that made rows")
    by_engine = {engine: seconds[engine] / count for engine, count in rows.items() if engine and count}
    backbone = dataset.read_json(BACKBONE_FILE) or {}
    return Measured(
        uri=uri,
        row_s=sum(seconds.values()) / sum(rows.values()),
        bytes_a_row=_bytes(dataset.location) / max(1, dataset.count_errors()[0]),
        engine_row_s=by_engine,
        backbone=backbone.get("spec", ""),
        width=backbone.get("width", 0),
    )


def _of_training(uri: str) -> Measured:
    summary = Dataset(uri).read_json("summary.json") or {}
    heads = {name: said for name, said in summary.items() if isinstance(said, dict) and said.get("samples_per_s")}
    if not heads:
        raise UsageError(f"measured: {uri} has no summary.json of a finished train job")
    _, card = load_head(locate(uri).child("heads", next(iter(heads)), "best"))
    # Heads that trained together report the speed of their common pass.
    fastest = max(head["samples_per_s"] for head in heads.values())
    return Measured(uri=uri, row_s=1.0 / fastest, backbone=card.backbone, width=card.width)


def _bytes(place: Location) -> int:
    """Bytes of a dataset's rows and their side files."""
    total = 0
    for folder in ("data", "tokens"):
        selector = pafs.FileSelector(place.child(folder).path, recursive=True, allow_not_found=True)
        total += sum(info.size or 0 for info in place.filesystem.get_file_info(selector))
    return total
