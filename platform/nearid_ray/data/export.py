"""Write datasets back in the layout in which NearID is published on the hub.

<output>/positives/data/*.parquet              id, img1..3, masks1..3, category, ...: one row an identity
<output>/distractors/<engine>/data/*.parquet   nimg1..3, aligned with the positives by row
<output>/splits/{train,val,test}.json          row numbers
<output>/export.json                           what was exported, so that a rerun goes on and never mixes two exports

Pictures are copied as they are. Each file appears whole; a rerun writes the files that are missing. Driver only: the
work is copying, and one file is held in memory at a time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from nearid_ray.data.card import CARD_FILE, licence_of
from nearid_ray.data.hub_layout import SLOTS, EngineTable, HubRow, plan_engines, plan_rows, rows_fingerprint
from nearid_ray.data.light import check_complete
from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, Location, read_rows
from nearid_ray.errors import UsageError
from nearid_ray.settings import dump_json
from schemas import IMAGE, SPLITS

MANIFEST = "export.json"
LAYOUT = "nearid-hub-1"

_FILE_BYTES = 192 << 20
"""About so large is a file; the driver holds one."""
_GROUP_BYTES = 32 << 20
"""About so large is a row group, and so much is read at a time."""
_TEXTS = ("category", "category_description", "objaverse_id")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is exported."""

    cut_views: bool = False
    """Export the first three views of identities that have more, instead of refusing them: the layout has three."""
    all_verdicts: bool = False
    """Export distractors with the verdicts `unchanged` and `blank` too."""
    rows_per_file: int = 0
    """Identities in a Parquet file; 0 chooses by the size of the pictures."""

    def __post_init__(self) -> None:
        if self.rows_per_file < 0:
            raise ValueError(f"rows_per_file is {self.rows_per_file}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export holds, and what this run did."""

    identities: int
    without_picture: int
    """Identities left out because none of their views has a picture."""
    distractors: dict[str, int]
    """By engine."""
    left_out: dict[str, int]
    """Distractors left out, by reason."""
    files_made: int
    files_before: int


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """All that is to be written."""

    rows: list[HubRow]
    engines: list[EngineTable]
    rows_per_file: int
    rows_per_group: int
    manifest: dict[str, Any]
    without_picture: int
    left_out: Counter[str]


def plan_export(
    tuples: Dataset, distractors: Sequence[Dataset], output: Location, settings: ExportSettings
) -> ExportPlan:
    """Plan the export. Raises UsageError, before anything is written, for datasets that are incomplete or do not fit
    the layout, and for an output that holds something else."""
    for dataset in (tuples, *distractors):
        check_complete(dataset)
    rows, without_picture = plan_rows(tuples, cut_views=settings.cut_views)
    engines, left_out = plan_engines(distractors, rows, all_verdicts=settings.all_verdicts)
    row_bytes = int(3 * 0.5 * 3 * max(row.size_px for row in rows) ** 2)  # three PNG, half the size of the pixels
    per_file = settings.rows_per_file or max(1, min(4096, _FILE_BYTES // row_bytes))
    manifest = {
        "layout": LAYOUT,
        "rows": len(rows),
        "rows_per_file": per_file,
        "positives": rows_fingerprint(rows, tuples.digest()),
        "distractors": {table.engine: table.fingerprint for table in engines},
    }
    return ExportPlan(
        rows=rows,
        engines=engines,
        rows_per_file=per_file,
        rows_per_group=max(1, min(1000, _GROUP_BYTES // row_bytes)),
        manifest=_with_earlier(output, manifest),
        without_picture=without_picture,
        left_out=left_out,
    )


def export(tuples: Dataset, distractors: Sequence[Dataset], output: Location, plan: ExportPlan) -> ExportSummary:
    """Write what is missing of a planned export."""
    _write(output.child(MANIFEST), dump_json(plan.manifest))
    made = before = 0
    tables: list[tuple[Location, pa.Schema, EngineTable | None]]
    tables = [(output.child("positives"), _positives_schema(plan.rows), None)]
    tables += [(_engine_place(output, engine), _engine_schema(), engine) for engine in plan.engines]
    files = list(_files(plan))
    with tqdm(total=len(files) * len(tables), desc="export", unit="file", mininterval=1.0) as bar:
        for place, schema, engine in tables:
            for name, first, last in files:
                target = place.child("data", name)
                if target.exists():
                    before += 1
                else:
                    groups = (
                        _positives(tuples, plan.rows[start:stop], schema)
                        if engine is None
                        else _distractors(distractors, plan.rows[start:stop], engine.places[start:stop], schema)
                        for start, stop in _steps(first, last, plan.rows_per_group)
                    )
                    target.write_bytes(_parquet(groups, schema))
                    made += 1
                bar.update()
    for split in SPLITS:
        numbers = [number for number, row in enumerate(plan.rows) if row.split == split]
        _write(output.child("splits", f"{split}.json"), dump_json({"indices": numbers}))
    _write_cards(output, plan, licence_of(tuples), licence_of(tuples, *distractors))
    return ExportSummary(
        identities=len(plan.rows),
        without_picture=plan.without_picture,
        distractors={table.engine: table.distractors for table in plan.engines},
        left_out=dict(plan.left_out.most_common()),
        files_made=made,
        files_before=before,
    )


def _with_earlier(output: Location, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the engines that were exported before; UsageError where the output holds another export."""
    earlier = Dataset(output).read_json(MANIFEST)
    if earlier is None:
        if output.names() or Dataset(output).shards():
            raise UsageError(
                f"{output.uri} is not empty and holds no export of this program; give a new or empty folder"
            )
        return manifest
    common = {name: value for name, value in earlier.get("distractors", {}).items() if name in manifest["distractors"]}
    now = manifest | {"distractors": {name: manifest["distractors"][name] for name in common}}
    differing = differences(earlier | {"distractors": common}, now)
    if differing:
        raise UsageError(
            f"{output.uri} holds another export:\n  "
            + "\n  ".join(differing)
            + "\nGive another output, or remove the folder to start again."
        )
    return manifest | {"distractors": dict(sorted((earlier["distractors"] | manifest["distractors"]).items()))}


def _files(plan: ExportPlan) -> Iterator[tuple[str, int, int]]:
    """(name, first row, row after the last) of each file of a table."""
    count = -(-len(plan.rows) // plan.rows_per_file)
    for number, (first, last) in enumerate(_steps(0, len(plan.rows), plan.rows_per_file)):
        yield f"train-{number:05d}-of-{count:05d}.parquet", first, last


def _steps(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, last)) for start in range(first, last, size))


def _positives(tuples: Dataset, rows: Sequence[HubRow], schema: pa.Schema) -> pa.Table:
    found = _read(tuples, [(row.shard, row.row) for row in rows], "views")
    return pa.Table.from_pylist([_positive(row, found[row.shard, row.row], schema) for row in rows], schema=schema)


def _positive(row: HubRow, views: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any]:
    values: dict[str, Any] = {"id": row.id, "identity_id": row.identity_id, "n_images": len(row.slots), **row.texts}
    for slot, index in row.slots.items():
        values |= {f"img{slot}": views[index]["image"], f"masks{slot}": views[index]["mask"]}
    values |= {f"prompts{slot}": row.prompts.get(slot, "") for slot in SLOTS}
    if "quality" in schema.names and row.quality is not None:
        is_number = schema.field("quality").type == pa.float64()
        values["quality"] = float(row.quality) if is_number else str(row.quality)
    return values


def _distractors(
    datasets: Sequence[Dataset],
    rows: Sequence[HubRow],
    places: Sequence[dict[int, tuple[int, str, int]]],
    schema: pa.Schema,
) -> pa.Table:
    images: dict[tuple[int, str, int], Any] = {}
    for number, dataset in enumerate(datasets):
        wanted = [(shard, row) for cells in places for at, shard, row in cells.values() if at == number]
        images |= {(number, *place): image for place, image in _read(dataset, wanted, "image").items()}
    made = [
        {"id": row.id, "identity_id": row.identity_id} | {f"nimg{slot}": images[at] for slot, at in cells.items()}
        for row, cells in zip(rows, places, strict=True)
    ]
    return pa.Table.from_pylist(made, schema=schema)


def _read(dataset: Dataset, places: Sequence[tuple[str, int]], column: str) -> dict[tuple[str, int], Any]:
    wanted: dict[str, set[int]] = {}
    for shard, row in places:
        wanted.setdefault(shard, set()).add(row)
    found: dict[tuple[str, int], Any] = {}
    for shard, rows in wanted.items():
        ordered = sorted(rows)
        values = read_rows(dataset.shard(shard), ordered, [column])[column].to_pylist()
        found |= {(shard, row): value for row, value in zip(ordered, values, strict=True)}
    return found


def _parquet(groups: Iterator[pa.Table], schema: pa.Schema) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1, write_batch_size=8) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def _positives_schema(rows: Sequence[HubRow]) -> pa.Schema:
    masks = [pa.field(f"masks{slot}", IMAGE) for slot in SLOTS] if any(row.has_mask for row in rows) else []
    qualities = [row.quality for row in rows if row.quality is not None]
    numbers = all(isinstance(quality, int | float) and not isinstance(quality, bool) for quality in qualities)
    quality = [pa.field("quality", pa.float64() if numbers else pa.string())] if qualities else []
    return _with_features(
        [
            pa.field("id", pa.int64()),
            pa.field("identity_id", pa.string()),
            *(pa.field(name, pa.string()) for name in _TEXTS),
            *(pa.field(f"img{slot}", IMAGE) for slot in SLOTS),
            *masks,
            pa.field("n_images", pa.int64()),
            *(pa.field(f"prompts{slot}", pa.string()) for slot in SLOTS),
            *quality,
        ]
    )


def _engine_schema() -> pa.Schema:
    names = [pa.field("id", pa.int64()), pa.field("identity_id", pa.string())]
    return _with_features([*names, *(pa.field(f"nimg{slot}", IMAGE) for slot in SLOTS)])


def _with_features(fields: list[pa.Field]) -> pa.Schema:
    """The schema with the metadata that makes `datasets` show pictures."""
    names = {pa.float64(): "float64"}
    features = {
        f.name: {"_type": "Image"} if f.type == IMAGE else {"_type": "Value", "dtype": names.get(f.type, str(f.type))}
        for f in fields
    }
    described = dump_json({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": described})


def _engine_place(output: Location, table: EngineTable) -> Location:
    return output.child("distractors", table.engine)


def _write_cards(output: Location, plan: ExportPlan, licence: str, distractors_licence: str) -> None:
    identities, views = len(plan.rows), sum(len(row.slots) for row in plan.rows)
    splits = Counter(row.split for row in plan.rows)
    shares = ", ".join(f"{splits[split]} {split}" for split in SPLITS)
    about = (
        f"{identities} identities with {views} views ({shares}), one row an identity: img1..3 are its views, masks1..3 "
        "the object's masks (non-zero = object), a missing view is null. The rows of each split are in splits/*.json "
        "beside this folder; the distractors are aligned with these rows."
    )
    _write(output.child("positives", CARD_FILE), _card("Identities in the layout of NearID", licence, about))
    for table in plan.engines:
        about = (
            f"{table.distractors} distractors by {table.engine}: nimg1..3 of a row are similar but different objects "
            "in the backgrounds of img1..3 of the same row of the positives; null where there is none."
        )
        title = f"Distractors by {table.engine} in the layout of NearID"
        _write(_engine_place(output, table).child(CARD_FILE), _card(title, distractors_licence, about))


def _card(title: str, licence: str, about: str) -> bytes:
    names = licence.split(" and ")
    # No `configs`: with them `datasets` takes what it cached under the folder's name, whatever the files hold now.
    header = {"pretty_name": title, "license": names[0] if len(names) == 1 else names, "tags": ["nearid", "image"]}
    said = yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()
    return f"---\n{said}\n---\n\n# {title}\n\n{about}\n\nRead it with `datasets.load_dataset(FOLDER)`.\n".encode()


def _write(place: Location, data: bytes) -> None:
    if not place.exists() or place.read_bytes() != data:
        place.write_bytes(data)
